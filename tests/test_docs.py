"""The documentation: examples run, commands exist, tests that are named exist, it builds."""

import ast
import inspect
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import mktestdocs
import pytest
import torch
import typer

import bloomlab
from bloomlab.cli import app

ROOT = Path(bloomlab.__file__).parent.parent
DOCS = ROOT / "docs"
TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md") if (ROOT / name).exists()]
PAGES = sorted([*DOCS.rglob("*.md"), *TOP])
EXTRAS = {"howto/other-tools.md": ("bertviz", "circuitsvis", "nnsight", "lm_eval")}
SLOW = {
    "CONTRIBUTING.md",
    "README.md",
    "howto/other-tools.md",
    "howto/probe.md",
    "howto/sweep-and-prune.md",
}
BLOCK = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)


def name_of(page):
    return page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT).as_posix()


def blocks(page, language):
    found = BLOCK.finditer(page.read_text(encoding="utf-8"))
    return [(block[3], block[4]) for block in found if block[2] == language]


def with_python(pages):
    for page in pages:
        if blocks(page, "python"):
            name = name_of(page)
            yield pytest.param(page, id=name, marks=[pytest.mark.slow] if name in SLOW else [])


def run_from_a_file(code):
    """Run code that can be looked up, as nnsight does and a traceback."""
    file = Path("example.py").resolve()
    file.write_text(code, encoding="utf-8")
    exec(compile(code, str(file), "exec"), {"__name__": "__main__", "__file__": str(file)})


mktestdocs.register_executor("python", run_from_a_file)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # bertviz' own scripts
@pytest.mark.parametrize("page", list(with_python(PAGES)))
def test_examples_run_where_the_reader_has_no_files(page, tmp_path, monkeypatch):
    for package in EXTRAS.get(name_of(page), ()):
        pytest.importorskip(package, reason=f"{package} is an extra: bloomlab[interop,eval]")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    try:
        mktestdocs.check_md_file(page, memory=True)
    finally:
        torch.set_grad_enabled(True)
        logging.getLogger().handlers.clear()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_python_example_is_one_that_runs(page):
    assert all(not rest for rest, _ in blocks(page, "python"))  # mktestdocs takes no attributes
    for _, code in blocks(page, "python"):
        ast.parse(inspect.cleandoc(code))


def commands_shown():
    for page in PAGES:
        text = "\n".join(code for _, code in [*blocks(page, "sh"), *blocks(page, "bash")])
        told = re.findall(r"`((?:python -m )?bloomlab [^`\n]*)`", page.read_text(encoding="utf-8"))
        for line in [*text.splitlines(), *told]:
            for part in re.split(r"&&|;|\|", line.split("#")[0]):
                if re.match(r"\s*(python -m )?bloomlab( |$)", part):
                    yield pytest.param(part.strip(), id=f"{name_of(page)}: {part.strip()}")


@pytest.mark.parametrize("shown", list(dict.fromkeys(commands_shown())))
def test_commands_and_their_options_exist(shown):
    words = shlex.split(shown.removeprefix("python -m "))[1:]
    known = typer.main.get_command(app).commands
    if words and words[0].startswith("-"):
        assert words[0] in ("--version", "--help")
        return
    command = known[words[0]]
    options = {name for option in command.params for name in option.opts}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options | {"--help"}


def test_tests_that_are_named_exist():
    tests = list((ROOT / "tests").rglob("*.py"))
    names = {name for file in tests for name in re.findall(r"def (test_\w+)", file.read_text())}
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        for name in re.findall(r"`(test_\w+)`", text):
            assert name in names, f"{name_of(page)} names {name}"
        for file in re.findall(r"`(tests/[\w/]+\.py)`", text):
            assert (ROOT / file).is_file(), f"{name_of(page)} names {file}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocstrings", reason="mkdocs is an extra: bloomlab[docs]")
    pytest.importorskip("material", reason="mkdocs-material is an extra: bloomlab[docs]")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "BLOOMLAB_NOTEBOOK_PAGES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for page in (tmp_path / "site").rglob("*.html"):
        loaded = re.findall(
            r"<(?:script|img|iframe|link)\b[^>]*\s(?:src|href)=[\"']?(https?://[^\s\"'>]+)",
            page.read_text(encoding="utf-8"),
        )
        assert not loaded, f"{page.name} loads {loaded}"
