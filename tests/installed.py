"""Checks an installation from outside: `cd elsewhere; python .../tests/installed.py`.

Needs no more than Python and what `pip install bloomlab-*.whl` brought; .ci/run calls it then.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, Request, build_opener

TOUR = "00_tour.ipynb"
CLEAN = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
OFFLINE = CLEAN | {"HF_HUB_OFFLINE": "1", "JUPYTER_TOKEN": "t0k"}


def main():
    """Every check in turn, in an empty folder; what fails raises."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for check in (packaged, requirements, described, generated, served, executed):
            check(Path(folder))
            sys.stdout.write(f"{check.__name__} ({time.monotonic() - began:.0f} s)\n")


def packaged(folder):
    """The package is that of this interpreter's own site-packages."""
    code = "import bloomlab; print(bloomlab.__file__, bloomlab.__version__)"
    file, version = output([sys.executable, "-c", code], folder).split()
    assert Path(file).is_relative_to(sys.prefix), file
    assert output([command("bloomlab"), "--version"], folder) == f"bloomlab {version}\n"


def requirements(folder):
    """All that is required is there, in versions that go together."""
    output([sys.executable, "-m", "pip", "check"], folder)


def described(folder):
    """Both spellings of the command line describe the machine and the packaged model."""
    for start in ([command("bloomlab")], [sys.executable, "-m", "bloomlab"]):
        told = output([*start, "info"], folder)
        assert re.search(r"^RAM: .* free of ", told, re.MULTILINE), told
        assert "missing" not in told, told
    assert "# The demo BLOOM" in output([command("bloomlab"), "info", "demo"], folder)


def generated(folder):
    """The packaged model goes on, from the command line and in Python."""
    told = output(
        [command("bloomlab"), "generate", "demo", "The cat", "--max-new-tokens", "5"], folder
    )
    code = (
        "import bloomlab as bl; model = bl.load('demo');"
        "print(model.to_string(model.generate('The cat', max_new_tokens=5))[0])"
    )
    assert output([sys.executable, "-c", code], folder) == told
    assert len(told) > len("The cat\n")


def served(folder):
    """JupyterLab opens the tour, and every notebook is there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start = [command("bloomlab"), "lab", "--no-browser", "--port", str(port)]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [*start, "--ServerApp.port_retries=0"], cwd=folder, env=OFFLINE, stdout=log, stderr=log
        )
    try:
        body, _ = page(f"http://127.0.0.1:{port}/api/contents", server)
        names = sorted(one["name"] for one in json.loads(body)["content"])
        package = output(
            [sys.executable, "-c", "import bloomlab; print(bloomlab.__path__[0])"], folder
        )
        packed = sorted(one.name for one in Path(package.strip(), "notebooks").glob("*.ipynb"))
        assert TOUR in packed
        assert [name for name in names if name.endswith(".ipynb")] == packed
        for name in packed:
            body, _ = page(f"http://127.0.0.1:{port}/api/contents/{name}", server)
            assert json.loads(body)["content"]["cells"], name
        _, address = page(f"http://127.0.0.1:{port}/", server)
        assert address == f"http://127.0.0.1:{port}/lab/tree/{TOUR}"
    except (AssertionError, OSError) as error:
        error.add_note((folder / "log").read_text(errors="replace"))
        raise
    finally:
        server.terminate()
        server.wait(timeout=30)


def executed(folder):
    """The tour runs from its first cell to its last, without a network."""
    notebook = folder / "bloomlab-notebooks" / TOUR
    arguments = ["--to", "notebook", "--execute", "--output", "ran.ipynb", str(notebook)]
    output([sys.executable, "-m", "jupyter", "nbconvert", *arguments], folder)
    cells = json.loads((notebook.parent / "ran.ipynb").read_text(encoding="utf-8"))["cells"]
    assert any(cell.get("outputs") for cell in cells)


def command(name):
    """The script that was installed beside this interpreter."""
    found = sorted(Path(sys.executable).parent.glob(f"{name}*"))
    assert found, f"no {name} beside {sys.executable}"
    return str(found[0])


def output(arguments, folder):
    """What a command prints; raises with all of it if it fails."""
    done = subprocess.run(
        arguments, cwd=folder, env=OFFLINE, capture_output=True, text=True, timeout=180
    )
    if done.returncode:
        raise RuntimeError(f"{arguments} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def page(address, server, patience=60):
    """Body and final address, once the server answers; no proxy is asked."""
    opener, end = build_opener(ProxyHandler({})), time.monotonic() + patience
    while True:
        try:
            request = Request(address, headers={"Authorization": "token t0k"})
            with opener.open(request, timeout=30) as answer:
                return answer.read(), answer.url
        except URLError:
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.1)


if __name__ == "__main__":
    main()
