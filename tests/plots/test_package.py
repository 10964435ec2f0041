import subprocess
import sys

import bloomlab.plots


def test_plots_never_import_torch():
    code = "import sys, bloomlab.plots; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_public_names_are_sorted_and_there():
    names = bloomlab.plots.__all__
    assert names == sorted(names)
    assert all(callable(getattr(bloomlab.plots, name)) for name in names)
