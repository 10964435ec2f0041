"""What pruning saved: counts by hand, times that follow the work."""

import pytest
import torch

from bloomlab.errors import InputError
from bloomlab.experiments.pruning_report import pruning_report
from bloomlab.model.prune import prune_heads
from bloomlab.model.prune_parts import prune_layers, prune_neurons
from tests.tiny import pair


def test_counts_are_those_of_the_shapes():
    _, ours = pair(n_layer=3, dtype=torch.bfloat16)
    pruned = prune_neurons(prune_heads(ours, {0: [1, 2], 1: range(6)}), {2: range(92)})
    frame = pruning_report(ours, pruned, length=8, new=2, turns=1)
    table = {name: (row.before, row.after) for name, row in frame.iterrows()}
    assert table["layers"] == (3, 3)
    assert table["heads"] == (18, 10)
    assert table["MLP neurons"] == (576, 484)
    per_head, per_neuron = 4 * 48 * 8 + 3 * 8, 2 * 48 + 1
    whole, less = table["parameters"]
    assert whole == sum(p.numel() for p in ours.parameters())
    assert whole - less == 8 * per_head + 92 * per_neuron
    assert table["weights (bytes)"] == (2 * whole, 2 * less)
    assert table["KV cache (bytes per token)"] == (2 * 2 * 8 * 18, 2 * 2 * 8 * 10)
    assert frame.saved["heads"] == pytest.approx(8 / 18)
    assert (frame.loc[["forward over 8 tokens (s)", "generation per token (s)"]].before > 0).all()


@pytest.mark.slow
def test_time_follows_the_work():
    _, ours = pair(n_layer=12, hidden_size=96)
    frame = pruning_report(ours, prune_layers(ours, range(1, 12)), length=32, new=4, turns=5)
    for name in ("forward over 32 tokens (s)", "generation per token (s)"):
        assert frame.saved[name] > 0.5


def test_models_without_generation_have_a_report_too():
    _, ours = pair("BloomModel")
    frame = pruning_report(ours, prune_heads(ours, {0: [0]}), length=8, turns=1)
    assert "generation per token (s)" not in frame.index
    with pytest.raises(InputError, match="turns is 0"):
        pruning_report(ours, ours, turns=0)
