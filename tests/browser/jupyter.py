"""A JupyterLab server of its own: free port, empty settings, nothing kept."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from urllib.request import ProxyHandler, Request, build_opener

ROOT = Path(__file__).parents[2]
LIGHT, DARK = "JupyterLab Light", "JupyterLab Dark"
START_SECONDS, CLOSE_SECONDS = 90, 15


def notebook(*cells):
    """Notebook of code cells, from their sources."""
    return {
        "nbformat": 4,
        "nbformat_minor": 5,
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python"},
        },
        "cells": [
            {
                "cell_type": "code",
                "id": f"cell-{index}",
                "metadata": {},
                "execution_count": None,
                "outputs": [],
                "source": source,
            }
            for index, source in enumerate(cells)
        ],
    }


class JupyterLab:
    """A server in a temporary folder; its kernels run this Python and import this checkout.

    `windowing` is the notebook's: 'none' keeps every cell in the page, 'full' (JupyterLab's own
    default) only those near the part in view. Kernels inherit the environment, OMP_NUM_THREADS too.
    """

    def __init__(self, *, theme=LIGHT, windowing="none"):
        self._place = TemporaryDirectory(prefix="jupyter-", ignore_cleanup_errors=True)
        place = Path(self._place.name).resolve()
        self.work, home = place / "work", place / "home"
        self.work.mkdir()
        settings = {
            "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
            "apputils-extension/themes": {"theme": theme},
            "docmanager-extension/plugin": {"autosave": False},
            "notebook-extension/tracker": {"windowingMode": windowing},
        }
        for name, values in settings.items():
            file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        self._log = home / "server.log"
        self._token, port = secrets.token_hex(12), _free_port()
        self.address = f"http://127.0.0.1:{port}"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
                    *("--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}"),
                    "--ServerApp.port_retries=0",
                    f"--ServerApp.root_dir={self.work}",
                    f"--IdentityProvider.token={self._token}",
                    "--LabApp.expose_app_in_browser=True",  # as `jupyterapp`
                    "--LabApp.extension_manager=readonly",
                ],
                cwd=self.work,
                env=os.environ | _environment(home),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def write(self, notebook):
        """Put the notebook into a folder of its own; gives the file."""
        file = Path(mkdtemp(dir=self.work)) / "notebook.ipynb"
        file.write_text(json.dumps(notebook), encoding="utf-8")
        return file

    def page_of(self, file):
        """Address that opens a notebook, and nothing that an earlier visit left behind."""
        name = file.relative_to(self.work).as_posix()
        return f"{self.address}/lab/workspaces/test/tree/{name}?reset&token={self._token}"

    def end_kernels(self):
        for session in json.loads(self._ask("sessions")):
            self._ask(f"sessions/{session['id']}", method="DELETE")

    def close(self):
        """End the server, and with it every kernel."""
        self._process.terminate()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._place.cleanup()

    def _wait(self):
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                self._ask("status")
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"no server:\n{self._log.read_text()}") from None
                time.sleep(0.1)

    def _ask(self, what, method="GET"):
        headers = {"Authorization": f"token {self._token}"}
        request = Request(f"{self.address}/api/{what}", method=method, headers=headers)
        with build_opener(ProxyHandler({})).open(request, timeout=CLOSE_SECONDS) as answer:
            return answer.read()


def _environment(home):
    """Where a server and its kernels keep things, so that no setting of the user's is seen."""
    return {
        "HOME": str(home),
        "IPYTHONDIR": str(home / "ipython"),
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "PYTHONPATH": str(ROOT),
    }


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
