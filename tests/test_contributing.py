"""The examples of CONTRIBUTING.md, in a copy of the repository: they fit, and their tests pass."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bloomlab

ROOT = Path(bloomlab.__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"(?:#|//) ((?:bloomlab|tests)/\S+)\n")  # the first line of a new file
LARGE = ("demo", "excerpts")  # folders of the package that are linked, not copied
ROW = re.compile(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def text():
    return (ROOT / "CONTRIBUTING.md").read_text("utf-8")


def added():
    """New files by their place: what the blocks that begin with a place hold."""
    blocks = [(PLACE.match(body), body) for _, body in BLOCK.findall(text())]
    return {place[1]: body[place.end() :] for place, body in blocks if place}


def changes():
    """(file, old text, new text) of every hunk of every diff."""
    for language, body in BLOCK.findall(text()):
        if language != "diff":
            continue
        for part in re.split(r"^--- a/.*\n", body, flags=re.MULTILINE)[1:]:
            file, *hunks = re.split(r"^@@\n", part, flags=re.MULTILINE)
            for hunk in hunks:
                lines = hunk.splitlines(keepends=True)
                assert all(line[0] in " +-" or line == "\n" for line in lines), hunk
                old = "".join(line[1:] or "\n" for line in lines if line[0] != "+")
                new = "".join(line[1:] or "\n" for line in lines if line[0] != "-")
                yield file.strip().removeprefix("+++ b/"), old, new


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """A copy of the repository with all examples in it."""
    copy = tmp_path_factory.mktemp("repository")
    ignored = shutil.ignore_patterns("__pycache__", ".*", *LARGE)
    for folder in ("bloomlab", "tests", "docs"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    shutil.copytree(ROOT / "tests" / "demo", copy / "tests" / "demo", dirs_exist_ok=True)
    for name in LARGE:
        (copy / "bloomlab" / name).symlink_to(ROOT / "bloomlab" / name)
    for name in ("pyproject.toml", "CONTRIBUTING.md", "README.md"):
        shutil.copyfile(ROOT / name, copy / name)
    for place, body in added().items():
        assert not (copy / place).exists(), f"{place} is there already"
        (copy / place).write_text(body, encoding="utf-8")
    for name, old, new in changes():
        source = (copy / name).read_text("utf-8")
        assert _line_start(source, old) >= 0, f"{name} has no such lines any more:\n{old}"
        assert source.count(old) == 1, f"{name} has these lines more than once:\n{old}"
        (copy / name).write_text(source.replace(old, new), encoding="utf-8")
    return copy


def _line_start(source, old):
    return f"\n{source}".find(f"\n{old}")


PROVED = (  # what the copy's tests are picked by: the examples' own, and those that meet them
    "hook_in",  # as a parameter: once a forward, its shape, edits in place and not
    "test_every_value",  # at every hook point: TransformerLens', the straight BLOOM's
    "test_gradients_at_hooks",
    "test_the_table_of_hook_points",
    "FocusBars",  # as a parameter: what every view must stand
    "focus.js",
    "test_every_public_name",
    "test_all_that_is_public",
    "test_the_package_obeys",
)
FILES = (
    *(f"tests/model/test_{name}.py" for name in ("activations", "hook_values", "hooks")),
    *(f"tests/widgets/test_{name}.py" for name in ("page", "source", "state", "stills")),
    *(f"tests/test_{name}.py" for name in ("docs_reference", "docstrings", "layering")),
)


def test_every_kind_of_example_is_there():
    places = list(added())
    for folder in ("experiments", "plots", "widgets"):
        assert any(place.startswith(f"bloomlab/{folder}/") for place in places)
        assert any(place.startswith(f"tests/{folder}/test_") for place in places)
    files = [name for name, _, _ in changes()]
    assert {"bloomlab/model/block.py", "bloomlab/experiments/metrics.py"} < set(files)


@pytest.mark.slow
def test_the_examples_work_and_obey_the_rules(changed):
    own = [place for place in added() if place.startswith("tests/")]
    picked = " or ".join([*PROVED, *(Path(place).name for place in own)])
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-v"]
    done = subprocess.run(
        [*command, *own, *FILES, "-k", picked],
        cwd=changed,
        env=os.environ | {"PYTHONPATH": str(changed), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    passed = [line for line in done.stdout.splitlines() if " PASSED" in line]
    for name in (*own, *FILES, *PROVED):
        assert any(name in line for line in passed), f"no test of {name} ran"


@pytest.mark.slow
def test_the_examples_are_formatted_and_linted(changed):
    pytest.importorskip("ruff", reason="ruff comes with the extra `dev`")
    files = [place for place in added() if place.endswith(".py")]
    for command in (["format", "--check", "--diff"], ["check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *files],
            cwd=changed,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_files_that_the_table_names_exist():
    section = text().partition("## Where do I put a new ...")[2].partition("\n## ")[0]
    rows = ROW.findall(section)[2:]
    assert len(rows) > 25
    for what, where, checked in rows:
        named = re.findall(r"`([\w/.]+\.(?:py|js|yml))`", f"{where} {checked}")
        named += re.findall(r"`((?:tests|docs|bench|widgets|plots|experiments)/[\w/]*)`", where)
        assert named or "<topic>" in where or "NN_topic" in where, what
        for name in named:
            here = [ROOT / name, ROOT / "bloomlab" / name, ROOT / "bloomlab" / "experiments" / name]
            assert any(place.exists() for place in here), name


def test_folders_of_the_package_are_on_the_map():
    shown = text().partition("## Map of the package")[2].partition("\n## ")[0]
    package = ROOT / "bloomlab"
    tops = [one for one in package.iterdir() if not one.name.startswith((".", "_"))]
    for one in tops:
        if one.is_dir() and any(one.glob("*.py")):
            assert f"{one.name}/" in shown
        elif one.suffix == ".py":
            assert one.name in shown, one.name
