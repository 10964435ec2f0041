"""The recipes for conda and containers: they parse, and name what is there."""

import json
import re
from pathlib import Path

import pytest
import yaml

import bloomlab
from bloomlab import cli

ROOT = Path(bloomlab.__file__).parent.parent
FOLDER = ROOT / ".devcontainer"


@pytest.fixture
def steps():
    """The instructions of the Dockerfile, each in one line: (name, rest)."""
    text = (FOLDER / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [tuple(re.sub(r"\s+", " ", line).split(" ", 1)) for line in lines]


def test_the_conda_environment_installs_this_package_into_a_python_it_supports():
    recipe = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))
    assert recipe["name"] == "bloomlab"
    python, pip, installed = recipe["dependencies"]
    minor = int(re.fullmatch(r"python=3\.(\d+)", python)[1])
    assert minor >= 11
    assert f"Python :: 3.{minor}" in (ROOT / "pyproject.toml").read_text("utf-8")
    assert pip == "pip"
    assert installed == {"pip": ["-e ."]}  # JupyterLab is no extra


def test_the_container_runs_as_a_user_and_from_a_fixed_image(steps):
    names = [name for name, _ in steps]
    assert names[0] == "FROM"
    assert re.fullmatch(r"python:3\.\d+-slim", steps[0][1])
    assert [rest for name, rest in steps if name == "USER"] == ["lab"]
    assert names.index("USER") < names.index("COPY")
    assert dict(steps)["COPY"].startswith("--chown=lab:lab ")


def test_the_container_leaves_no_package_lists_and_caches(steps):
    runs = " ".join(rest for name, rest in steps if name == "RUN")
    assert runs.count("apt-get install -y --no-install-recommends") == runs.count("apt-get install")
    assert "rm -rf /var/lib/apt/lists/*" in runs
    assert "PIP_NO_CACHE_DIR=1" in dict(steps)["ENV"]
    assert "sudo" not in runs


def test_the_container_starts_the_lab_on_its_port(steps, run, monkeypatch, tmp_path):
    from jupyterlab.labapp import LabApp

    seen = []
    monkeypatch.setattr(LabApp, "launch_instance", lambda argv: seen.extend(argv))
    program, *arguments = json.loads(steps[-1][1])
    assert (steps[-1][0], program) == ("CMD", "bloomlab")
    place = arguments.index("--folder") + 1
    assert arguments[place].startswith("/home/lab/")
    code, _, err = run(*arguments[:place], tmp_path / "mine", *arguments[place + 1 :])
    assert code == 0, err
    port = dict(steps)["EXPOSE"]
    assert {f"--ServerApp.port={port}", "--ip=0.0.0.0", "--no-browser"} <= set(seen)
    assert f"--LabApp.default_url=/lab/tree/{cli.TOUR}" in seen


def test_the_dev_container_names_what_is_there(steps):
    recipe = json.loads((FOLDER / "devcontainer.json").read_text("utf-8"))
    assert (FOLDER / recipe["build"]["dockerfile"]).is_file()
    assert (FOLDER / recipe["build"]["context"] / "pyproject.toml").is_file()
    assert recipe["remoteUser"] in dict(steps)["USER"]
    [port] = recipe["forwardPorts"]
    assert str(port) == dict(steps)["EXPOSE"]
    assert f"--port {port}" in recipe["postAttachCommand"]
    python = recipe["customizations"]["vscode"]["settings"]["python.defaultInterpreterPath"]
    assert python == "/home/lab/venv/bin/python"
    assert "VIRTUAL_ENV=/home/lab/venv" in dict(steps)["ENV"]
