"""What the site's hook puts into pages: files of the repository, notebooks, commands."""

import importlib.util
import json
from pathlib import Path

import pytest

import bloomlab

pytest.importorskip("mkdocs", reason="mkdocs is an extra: bloomlab[docs]")
ROOT = Path(bloomlab.__file__).parent.parent


class Site:
    """Knows which files are in it."""

    def __init__(self, *names):
        self.names = names

    def get_file_from_path(self, path):
        return path if path in self.names else None


@pytest.fixture
def hooks(monkeypatch, tmp_path):
    """The hook's module, looking at an empty repository."""
    place = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_links_of_included_files_lead_to_pages_or_stay_text(hooks, tmp_path):
    (tmp_path / "A.md").write_text(
        "[card](bloomlab/demo/README.md#files) [code](bloomlab/cli.py) [start](docs/start.md)\n"
        "[paper](https://arxiv.org/abs/2211.05100) [here](#there) ![picture](docs/lab.webp)"
    )
    assert hooks.included("A.md", "a.md") == (
        "[card](demo.md#files) code [start](start.md)\n"
        "[paper](https://arxiv.org/abs/2211.05100) [here](#there) ![picture](lab.webp)"
    )
    assert "(../demo.md#files) code [start](../start.md)" in hooks.included("A.md", "deep/a.md")


def test_a_missing_file_is_a_warning_that_ends_a_strict_build(hooks, caplog):
    assert hooks.included("B.md", "b.md") == "# B.md"
    assert "b.md includes B.md, which is not there" in caplog.text


def test_a_table_is_written_once_and_shown_twice(hooks, tmp_path, caplog):
    (tmp_path / "A.md").write_text(
        "| law | |\n|---|---|\n| a | [b](docs/start.md) |\n\n| c | d |\n"
    )
    told = hooks.rows_of("A.md", "law", "deep/a.md")
    assert told == "| law | |\n|---|---|\n| a | [b](../start.md) |\n"
    assert not caplog.text
    assert hooks.rows_of("A.md", "view", "a.md") == ""
    assert "A.md has no table that begins with 'view'" in caplog.text


def test_notebooks_are_links_where_their_pages_are(hooks, tmp_path):
    for name, cell in {"1_a": "# A\n\n**Question: why\nso?**\n\nText.", "2_b": "# B"}.items():
        cells = {"cells": [{"cell_type": "markdown", "source": [cell]}]}
        (tmp_path / f"{name}.ipynb").write_text(json.dumps(cells))
    with pytest.raises(Exception, match=r"2_b\.ipynb: the first cell lacks a title or a question"):
        hooks.notebooks(tmp_path)
    (tmp_path / "2_b.ipynb").unlink()
    found = hooks.notebooks(tmp_path)
    assert found == [hooks.Notebook("1_a", "A", "why so?")]
    hooks.notebooks = lambda: found
    row = hooks.notebook_list(Site(), "notebooks.md").splitlines()[-1]
    assert row == "| A<br>`1_a.ipynb` | Why so? |"
    row = hooks.notebook_list(Site("notebooks/1_a.html"), "notebooks.md").splitlines()[-1]
    assert row == "| [A](notebooks/1_a.html)<br>`1_a.ipynb` | Why so? |"


def test_every_command_and_option_is_listed(hooks):
    told = "\n".join(hooks.command_lines())
    assert told.count("## bloomlab ") == 4
    for words in ("`--folder FOLDER` |", "| `MODEL` |", "`--quick` |", "`--tokens NUMBER` |"):
        assert words in told
    assert "| `2048` |" in told
    assert "None" not in told
