"""Notebooks run with another BLOOM than the packaged one: untrained, of another shape."""

import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import bloomlab as bl

FILES = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
LOAD = re.compile(r'^model = bl\.load\("demo"\).*$', re.MULTILINE)
ELSEWHERE = [
    file
    for file in FILES
    # it is about the history of one packaged model and loads no other
    if file.stem != "08_phase_change"
]
SECONDS = 280


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A folder with a random BLOOM of 3 layers and 6 heads and the packaged tokenizer."""
    folder = tmp_path_factory.mktemp("other")
    tokenizer = bl.load("demo", device="cpu").tokenizer
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}  # as in BLOOM's own configs
    size = {"vocab_size": len(tokenizer), "hidden_size": 96, "n_layer": 3, "n_head": 6}
    config = bl.BloomConfig(**size, **special)
    torch.manual_seed(0)
    bl.BloomForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("file", ELSEWHERE, ids=lambda file: file.stem)
def test_a_notebook_runs_with_another_model(file, other, tmp_path):
    notebook = nbformat.read(file, as_version=4)
    replaced = 0
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source, n = LOAD.subn(f"model = bl.load({str(other)!r})", cell.source)
            replaced += n
    assert replaced == 1
    client = NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": tmp_path}})
    client.execute()  # raises CellExecutionError, with the cell
    streams = [
        out.text for cell in notebook.cells for out in cell.get("outputs", []) if "text" in out
    ]
    assert not [text for text in streams if "Warning" in text]
