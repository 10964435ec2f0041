"""Pickled checkpoints: refused unless asked for, and then never run."""

import json
import os
import pickle

import pytest
import torch

import bloomlab as bl
from tests.folders import assert_same_weights, refused


def test_a_pickle_is_refused_unless_asked_for(pickled, theirs):
    refused(pickled, r"only pickled weights .* Pass allow_pickle=True .* save_pretrained")
    ours = bl.BloomForCausalLM.from_pretrained(pickled, allow_pickle=True)
    assert_same_weights(ours, theirs)
    ours.save_pretrained(pickled)
    assert_same_weights(bl.BloomForCausalLM.from_pretrained(pickled), theirs)


@pytest.mark.parametrize("layout", ["old format", "sharded"])
def test_pickles_of_other_layouts_load(layout, pickled, theirs):
    file, state = pickled / "pytorch_model.bin", theirs.state_dict()
    if layout == "old format":
        torch.save(state, file, _use_new_zipfile_serialization=False)
    else:
        file.unlink()
        names = {n: f"pytorch_model_{i % 3:05d}-of-00003.bin" for i, n in enumerate(state)}
        for shard in set(names.values()):
            torch.save({n: state[n] for n in state if names[n] == shard}, pickled / shard)
        index = pickled / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": names}))
    assert_same_weights(bl.BloomForCausalLM.from_pretrained(pickled, allow_pickle=True), theirs)


class Evil:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new_format", [True, False, None])
def test_a_pickle_that_would_run_code_does_not_run_it(new_format, pickled, theirs, tmp_path):
    file, trace = pickled / "pytorch_model.bin", tmp_path / "was here"
    content = {**theirs.state_dict(), "evil": Evil(trace)}
    if new_format is None:
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=new_format)
    refused(pickled, "Python objects, which are never read", allow_pickle=True)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Evil(trace)))  # the proof can fail
    assert trace.exists()


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": {}, "epoch": 3}, torch.ones(2)])
def test_a_pickle_that_is_no_state_dict_is_refused(content, pickled):
    torch.save(content, pickled / "pytorch_model.bin")
    refused(pickled, "no plain dict of tensors", allow_pickle=True)
