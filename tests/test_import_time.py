import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest

import bloomlab

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(bloomlab.__file__).parent.parent)}
HEAVY = ("torch", "transformers", "numpy", "pandas", "plotly", "huggingface_hub", "jupyterlab")
HELP = "import sys; sys.argv = ['bloomlab', '--help']; import bloomlab.cli; bloomlab.cli.main()"


def seconds(code):
    start = perf_counter()
    subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, check=True, timeout=60, capture_output=True
    )
    return perf_counter() - start


@pytest.mark.parametrize(("code", "limit"), [("import bloomlab", 0.3), (HELP, 1.0)])
def test_added_time_is_small(code, limit):
    pairs = [(seconds("pass"), seconds(code)) for _ in range(5)]  # interleaved: the same weather
    bare, loaded = (min(times) for times in zip(*pairs, strict=True))
    assert loaded - bare < limit


@pytest.mark.parametrize(
    "code", ["import bloomlab", "import bloomlab.cli, bloomlab.machine, bloomlab.sizes"]
)
def test_nothing_heavy_is_imported(code):
    check = f"{code}, sys; sys.exit(', '.join(m for m in {HEAVY} if m in sys.modules) or 0)"
    done = subprocess.run(
        [sys.executable, "-c", check], env=ENVIRONMENT, timeout=60, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_loaded_model_that_writes_has_not_imported_torchs_compiler():
    uses = "import sys, bloomlab; bloomlab.load('demo').generate('one', max_new_tokens=2)"
    check = f"{uses}; sys.exit('torch._dynamo' in sys.modules)"  # a second that nothing needs
    done = subprocess.run(
        [sys.executable, "-c", check], env=ENVIRONMENT, timeout=120, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
