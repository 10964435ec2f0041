"""Shared fixtures."""

import sys

import pytest
import torch

import bloomlab as bl
from bloomlab import cli
from tests.tiny import make_hf

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def demo():
    """The packaged model, in float32."""
    return bl.load("demo", device="cpu")


@pytest.fixture
def theirs():
    return make_hf()


@pytest.fixture
def single(theirs, tmp_path):
    """A folder with all weights in one file."""
    theirs.save_pretrained(tmp_path / "single")
    return tmp_path / "single"


@pytest.fixture
def sharded(theirs, tmp_path):
    """A folder with the weights in several files."""
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


@pytest.fixture
def pickled(theirs, tmp_path):
    """A folder with the weights in a pickle."""
    theirs.config.save_pretrained(tmp_path / "pickled")
    torch.save(theirs.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    return tmp_path / "pickled"


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the console script in this process; gives its exit code, output and messages."""

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["bloomlab", *map(str, arguments)])
        capsys.readouterr()  # what came before
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return ended.value.code, out, err

    return run_main
