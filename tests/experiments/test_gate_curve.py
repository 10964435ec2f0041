"""The metric along a gate equals plain forwards, and its tangent a difference quotient."""

import pytest
import torch
from torch.nn import functional as F

from bloomlab.errors import InputError
from bloomlab.experiments.gate_curve import gate_curve
from tests.tiny import pair, tokens


def loss(model, ids, layer, head, gate):
    mask = torch.ones(model.config.n_layer, model.config.n_head, dtype=model.dtype)
    mask[layer, head] = gate
    with torch.no_grad():
        logits = model(ids, head_mask=mask, return_type="logits")[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()


def test_values_are_those_of_plain_forwards_and_the_tangent_touches_at_one():
    _, model = pair(dtype=torch.float64)
    ids, heads, step = tokens(3, 9), [(0, 4), (1, 2)], 1e-5
    frame = gate_curve(model, ids, heads, gates=[0, 0.5, 1, 1.5])
    assert list(frame.columns) == ["layer", "head", "gate", "value", "tangent"]
    assert list(zip(frame.layer, frame["head"], strict=True)) == [(0, 4)] * 4 + [(1, 2)] * 4
    for row in frame.itertuples():
        layer, head = row.layer, row.head
        assert row.value == pytest.approx(loss(model, ids, layer, head, row.gate), abs=1e-10)
        above, below = (loss(model, ids, layer, head, 1 + s) for s in (step, -step))
        slope = (above - below) / (2 * step)
        line = loss(model, ids, layer, head, 1) + (row.gate - 1) * slope
        assert row.tangent == pytest.approx(line, abs=1e-6)


def test_a_metric_that_is_better_when_larger_keeps_its_direction():
    _, model = pair(dtype=torch.float64)
    ids = tokens(2, 7)
    found = gate_curve(
        model,
        ids,
        [(1, 0)],
        gates=[1 - 1e-5, 1],
        metric="probability",
        answers=[5, 6],
        positions=-1,
    )
    assert found.value[0] == pytest.approx(found.tangent[0], abs=1e-8)
    assert found.value[0] - found.value[1] == pytest.approx(
        found.tangent[0] - found.tangent[1], rel=1e-3
    )


def test_sets_and_no_gates_are_refused():
    _, model = pair()
    with pytest.raises(InputError, match="single heads"):
        gate_curve(model, tokens(1, 5), [[(0, 0), (0, 1)]])
    with pytest.raises(InputError, match="gates is empty"):
        gate_curve(model, tokens(1, 5), [(0, 0)], gates=[])
