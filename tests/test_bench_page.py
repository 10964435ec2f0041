import pytest

from bloomlab.bench.page import Page
from bloomlab.bench.timing import Row
from bloomlab.errors import InputError, UnknownNameError

ROW = Row(case="walk", peer="a peer", ours=(1.0, 2.0, 4.0), theirs=(3.0, 5.0, 4.0))
TEXT = "Words.\n<!-- table: tiny -->\nold\n<!-- end -->\nMore.\n"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.mark.parametrize("model", ["tiny", "some/folder/tiny"])
def test_rows_stand_in_the_page_under_the_machine(file, model):
    page = Page(file, model)
    page.write("a machine", [ROW, ROW])
    made = file.read_text(encoding="utf-8")
    assert made.startswith("Words.\n<!-- table: tiny -->\na machine\n\n| case |")
    assert made.endswith("|\n<!-- end -->\nMore.\n")
    assert made.count("| walk | 2.00 s | a peer |") == 2
    assert "old" not in made
    page.write("a machine", [ROW, ROW])
    assert file.read_text(encoding="utf-8") == made


def test_a_page_without_a_place_is_told_before_anything_is_measured(file, tmp_path):
    with pytest.raises(UnknownNameError, match="no table 'demo'"):
        Page(file, "demo")
    with pytest.raises(InputError, match="cannot read the page"):
        Page(tmp_path / "none.md", "tiny")
    assert file.read_text(encoding="utf-8") == TEXT


def test_the_command_writes_what_it_prints(run, file):
    arguments = ("bench", "--model", "tiny", "--quick", "--only", "prefill")
    code, out, err = run(*arguments, "--markdown", "--write", file)
    assert code == 0
    assert "Written to" in err
    machine, *_ = out.splitlines()
    rows = [line for line in out.splitlines() if line.startswith("|")]
    made = file.read_text(encoding="utf-8")
    assert "\n".join([machine, "", *rows]) in made
    code, out, err = run("bench", "--model", "demo", "--write", file)
    assert (code, out) == (1, "")
    assert "no table 'demo'" in err
