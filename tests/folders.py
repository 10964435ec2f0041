"""Checkpoint folders: how tests look into them, change them, and compare what is loaded."""

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import bloomlab as bl
from bloomlab.errors import BloomlabError, CheckpointError
from tests.tiny import distance_in_eps, tokens

IDS = tokens(2, 9)
PREFIX = "transformer."
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def out(model):
    """Logits (of a BloomModel: hidden states), whatever the class calls them."""
    with torch.no_grad():
        result = model(IDS)
    if result.get("start_logits") is not None:
        return torch.stack([result.start_logits, result.end_logits], -1)
    return result.logits if "logits" in result else result.last_hidden_state


def assert_equal(ours, theirs):
    assert distance_in_eps(out(ours), out(theirs)) < 200
    expected = dict(theirs.named_parameters())
    found = dict(ours.hf_named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def class_of(kind):
    return getattr(bl, kind), getattr(transformers, kind)


def rewrite(folder, *, without=(), **added):
    """Change some tensors in the single weights file of a folder."""
    kept = {n: v.clone() for n, v in load_file(folder / SINGLE).items() if n not in without}
    save_file(kept | added, folder / SINGLE)


def contents(folder):
    """Every file below a folder, as bytes."""
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def assert_same_weights(ours, theirs):
    found = dict(ours.hf_named_parameters())
    assert all(torch.equal(found[name], value) for name, value in theirs.named_parameters())


def refused(folder, says, **options):
    """Loading the folder raises our error, which names it and says `says`, for every entry."""
    for load in (bl.load, bl.BloomForCausalLM.from_pretrained, bl.BloomModel.from_pretrained):
        with pytest.raises(CheckpointError, match=says) as caught:
            load(folder, **options)
        assert isinstance(caught.value, BloomlabError)
        assert str(folder) in str(caught.value)
