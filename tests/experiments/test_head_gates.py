"""Learned masks: the planted heads are found, k is exact, the model is left as it was."""

import math

import pytest
import torch

from bloomlab.errors import InputError, NumericalError, UnknownNameError
from bloomlab.experiments.head_gates import learn_gates
from tests.tiny import pair, tokens

OPTIONS = {"hard_concrete": {"penalty": 0.05}, "subset": {"k": 2}}


@pytest.mark.parametrize("method", OPTIONS)
def test_no_trace_is_left_and_a_seed_decides(method):
    _, ours = pair()
    ours.train()  # without dropout nothing depends on it
    ours.embed.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    asking = {name for name, p in ours.named_parameters() if p.requires_grad}
    options = {"steps": 3, "rows": 4, **OPTIONS[method]}
    got = learn_gates(ours, tokens(3, 9), method, **options)

    def untouched():
        assert {n for n, p in ours.named_parameters() if p.requires_grad} == asking
        assert all(p.grad is None for p in ours.parameters())
        assert all(torch.equal(value, before[n]) for n, value in ours.state_dict().items())
        assert ours.training
        assert not any(point.fwd_hooks for point in ours.hook_dict.values())

    untouched()

    def broken(logits, ids):
        return logits[:, 0, 0] / (ids[:, 0] - ids[1, 0])

    with pytest.raises(NumericalError, match="'broken' is -?inf for example . in step 0"):
        learn_gates(ours, tokens(3, 9), method, metric=broken, **options)
    untouched()
    with torch.no_grad():
        same = learn_gates(ours, tokens(3, 9), method, **options)
    assert torch.equal(same.scores, got.scores)
    assert same.history.equals(got.history)
    other = learn_gates(ours, tokens(3, 9), method, seed=1, **options)
    assert not torch.equal(other.scores, got.scores)


@pytest.mark.parametrize("at_least", [0, 1])
def test_gates_of_a_subset_sum_to_k_at_every_step(at_least):
    _, ours = pair()
    seen, inner = [], ours.backbone

    def backbone(*given, head_mask, **arguments):
        seen.append(head_mask.detach().clone())
        return inner(*given, head_mask=head_mask, **arguments)

    ours.backbone = backbone
    got = learn_gates(
        ours, tokens(3, 9), "subset", k=5, at_least_k_per_layer=at_least, steps=8, rows=5, lr=1
    )
    assert len(seen) == 8
    for gates in seen:
        assert gates.shape == (5, 2, 6)
        assert (gates.sum((1, 2)) - 5).abs().max() < 1e-5
        assert (gates.sum(2) > at_least - 1e-5).all()
        assert (gates[0] - gates[1]).abs().max() > 0.1  # every example has its own
    assert got.mask.sum() == 5
    assert torch.equal(got.mask, got.order.keep(5))
    assert got.probabilities.sum().item() == pytest.approx(5)
    assert (got.history.open == 5).all()
    temperatures = got.history.temperature
    ratios = (temperatures / temperatures.shift()).iloc[1:]
    assert temperatures.iloc[[0, -1]].tolist() == pytest.approx([1.0, 0.1])
    assert ratios.tolist() == pytest.approx([0.1 ** (1 / 7)] * 7)


def test_the_penalty_closes_gates():
    _, ours = pair()
    got = learn_gates(ours, tokens(3, 9), penalty=1e6, steps=30, lr=0.4, rows=3)
    assert list(got.history.columns) == ["step", "metric", "open", "temperature"]
    # at first every gate is open with the same probability
    first = 12 / (1 + math.exp(-(2 - 0.33 * math.log(0.1 / 1.1))))
    assert got.history.open[0] == pytest.approx(first, rel=1e-6)
    assert (got.history.open.diff().iloc[1:] < 0).all()
    assert not got.mask.any()
    assert list(got.frame.columns) == ["layer", "head", "score", "probability", "gate", "kept"]
    assert torch.tensor(got.frame.gate).max() < 0.01
    kept = learn_gates(ours, tokens(1, 9), penalty=1e6, steps=9, lr=1, at_least_k_per_layer=2)
    assert kept.mask.sum(1).tolist() == [2, 2]
    assert learn_gates(ours, tokens(3, 9), k=5, steps=1, at_least_k_per_layer=2).mask.sum() == 5


def test_a_metric_that_should_be_large_is_not_made_small():
    """Of two functions that differ in sign each keeps what the other drops."""
    _, ours = pair()
    ids, answers = tokens(4, 9), torch.tensor([[5, 9], [7, 3], [11, 4], [8, 6]])
    options = {"positions": -1, "steps": 25, "k": 6, "lr": 0.3}
    named = learn_gates(ours, ids, "subset", metric="logit_difference", answers=answers, **options)

    def wrong_minus_right(logits, seen):
        row = torch.tensor([(ids == one).all(-1).nonzero()[0].item() for one in seen])
        last, (right, wrong) = logits[torch.arange(len(seen)), -1], answers[row].T
        return (last.gather(1, wrong[:, None]) - last.gather(1, right[:, None]))[:, 0]

    loss = learn_gates(ours, ids, "subset", metric=wrong_minus_right, **options)
    assert torch.equal(named.mask, loss.mask)
    assert named.history.metric.iloc[-5:].mean() > named.history.metric.iloc[:5].mean()
    assert (named.history.metric + loss.history.metric).abs().max() < 1e-2


def test_padding_changes_nothing():
    _, ours = pair()
    ids = tokens(1, 6)
    padded = torch.cat([torch.full((1, 3), 3), ids], 1)
    data = {"input_ids": padded, "attention_mask": (padded != 3).long()}
    for options in ({"metric": "kl"}, {}):
        one = learn_gates(ours, ids, steps=4, rows=3, **options)
        other = learn_gates(ours, data, steps=4, rows=3, **options)
        assert (one.scores - other.scores).abs().max() < 1e-3
        assert (one.history.metric - other.history.metric).abs().max() < 1e-4
        assert (one.history.metric > 0).all()


@pytest.mark.parametrize(
    ("method", "options", "error", "message"),
    [
        ("concrete", {}, UnknownNameError, "Did you mean 'hard_concrete'"),
        ("subset", {}, InputError, "needs k"),
        ("subset", {"k": 13}, InputError, "k is 13, expected a whole number, 0 to 12"),
        ("subset", {"k": 3, "at_least_k_per_layer": 2}, InputError, "k is 3, .* 4 to 12"),
        ("subset", {"k": 2, "penalty": 0.1}, InputError, "belongs to method 'hard_concrete'"),
        ("subset", {"k": 2, "temperatures": (1.0, 0.0)}, InputError, "a temperature is 0.0"),
        ("hard_concrete", {"k": -1}, InputError, "k is -1"),
        ("hard_concrete", {"penalty": -0.1}, InputError, "penalty is -0.1, expected a number"),
        ("hard_concrete", {"steps": 0}, InputError, "steps is 0"),
        ("hard_concrete", {"rows": 1.5}, InputError, "rows is 1.5"),
        ("hard_concrete", {"lr": math.nan}, InputError, "lr is nan"),
        ("hard_concrete", {"at_least_k_per_layer": 7}, InputError, "is 7, expected 0 to 6"),
        ("hard_concrete", {"metric": "accuracy"}, InputError, "has no gradient: learn by"),
        ("hard_concrete", {"metric": lambda logits, ids: logits[:, 0, 0].detach()}, InputError,
         "has no gradient"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(method, options, error, message):
    _, ours = pair()
    with pytest.raises(error, match=message):
        learn_gates(ours, tokens(2, 9), method, **options)


def test_hooks_in_the_way_are_refused():
    _, ours = pair()
    with (
        ours.hooks(fwd_hooks=[("blocks.0.attn.hook_z", lambda z, hook: z)]),
        pytest.raises(InputError, match="hooks are attached at blocks.0.attn.hook_z"),
    ):
        learn_gates(ours, tokens(2, 9))
