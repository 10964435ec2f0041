"""What is shipped: the wheel is small and whole, and the source archive makes the same wheel."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import pytest

import bloomlab

ROOT = Path(bloomlab.__file__).parent.parent
JUNK = (".ipynb_checkpoints/old.ipynb", "__pycache__/old.pyc", ".hypothesis/old", ".DS_Store~.pyc")
MEGABYTE = 1_000_000


@cache
def tracked():
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    return [name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source archive of the files of the repository, with junk beside them."""
    pytest.importorskip("build", reason="building needs the extra `dev`")
    if not (ROOT / ".git").exists():
        pytest.skip("what belongs to the repository is known to git alone")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, source / name)
    for folder in ("bloomlab", "bloomlab/widgets", "notebooks", "tests"):
        for name in JUNK:
            (source / folder / name).parent.mkdir(exist_ok=True)
            (source / folder / name).write_text("junk")
    (source / "bloomlab-notebooks").mkdir()
    (source / "bloomlab-notebooks" / "00_tour.ipynb").write_text("junk")
    (source / "scratch.py").write_text("junk")
    # the archive first, the wheel from it: what a package index and a distribution do
    command = [sys.executable, "-m", "build", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    direct = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--outdir",
        str(out / "direct"),
        str(source),
    ]
    done = subprocess.run(direct, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def wheel_names(folder):
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {one.filename for one in archive.infolist()}


@pytest.mark.slow
def test_the_wheel_is_small(built):
    [wheel], [archive] = built.glob("*.whl"), built.glob("*.tar.gz")
    assert wheel.name == f"bloomlab-{bloomlab.__version__}-py3-none-any.whl"
    assert wheel.stat().st_size < 45 * MEGABYTE
    assert archive.stat().st_size < 50 * MEGABYTE


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_notebooks_and_nothing_else(built):
    names = wheel_names(built)
    expected = {name for name in tracked() if name.startswith("bloomlab/")} | {
        f"bloomlab/{name}" for name in tracked() if name.startswith("notebooks/")
    }
    told = {name for name in names if ".dist-info/" in name}
    assert names - told == expected
    assert {"bloomlab/py.typed", "bloomlab/notebooks/00_tour.ipynb"} < names
    assert {"bloomlab/widgets/js/shell.js", "bloomlab/widgets/js/view.css"} < names
    licences = {name.partition("/licenses/")[2] for name in told if "/licenses/" in name}
    assert licences == {
        "LICENSE",
        "bloomlab/excerpts/README.md",
        "bloomlab/excerpts/function_vectors/LICENSE",
    }


@pytest.mark.slow
def test_the_source_archive_makes_the_same_wheel(built):
    assert wheel_names(built) == wheel_names(built / "direct")


@pytest.mark.slow
def test_the_source_archive_holds_what_the_repository_holds(built):
    [archive] = built.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {one.name.partition("/")[2] for one in opened.getmembers() if one.isfile()}
    assert names - {"PKG-INFO"} == set(tracked())
