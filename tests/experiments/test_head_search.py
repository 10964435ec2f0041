"""Searches: greedy equals brute force by transformers' model; re-scoring sees what is gone."""

import numpy as np
import pytest
import torch

from bloomlab.errors import (
    InputError,
    NumericalError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
)
from bloomlab.experiments import ablate_heads
from bloomlab.experiments.head_search import prune_order
from bloomlab.model.inflate import whole
from bloomlab.model.prune import prune_heads
from tests.experiments.naive import cross_entropy, logits_of, mask_of, zeroed
from tests.tiny import pair, tokens

SMALL = {"n_head": 4}  # 36 runs instead of 78


def mean_kl(logits, ids, mask, parent):
    """KL(parent || this) in nats per attended token."""
    p, q = parent.log_softmax(-1), logits.log_softmax(-1)
    each = (p.exp() * (p - q)).sum(-1)
    seen = torch.ones_like(ids) if mask is None else mask
    return (each * seen).sum(-1) / seen.sum(-1)


def probability(logits, ids, mask, parent):
    chance = logits.softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    counts = torch.ones_like(ids[:, 1:]) if mask is None else mask[:, 1:] * mask[:, :-1]
    return (chance * counts).sum(-1) / counts.sum(-1)


MEASURES = {
    "cross_entropy": (1, lambda logits, ids, mask, parent: cross_entropy(logits, ids, mask)),
    "kl": (1, mean_kl),
    "probability": (-1, probability),
}


def brute_force(theirs, ids, mask, metric, at_least=0):
    """Greedy elimination by one full forward of transformers' model a candidate."""
    sign, measure = MEASURES[metric]
    parent = logits_of(theirs, ids, mask)
    n_layer, n_head = theirs.config.n_layer, theirs.config.n_head
    left = [(layer, head) for layer in range(n_layer) for head in range(n_head)]
    gone, values = [], []

    def value(without):
        logits = logits_of(theirs, ids, mask, zeroed(without))
        return measure(logits, ids, mask, parent).mean().item()

    while True:
        tried = {
            head: value([*gone, head])
            for head in left
            if sum(layer == head[0] for layer, _ in left) > at_least
        }
        if not tried:
            return gone, values
        best = min(tried, key=lambda head: sign * tried[head])
        left.remove(best)
        gone.append(best)
        values.append(tried[best])


@pytest.mark.parametrize(
    ("metric", "padding", "at_least"),
    [("cross_entropy", "left", 0), ("cross_entropy", "none", 2), ("kl", "ragged", 0),
     ("probability", "none", 0)],
)  # fmt: skip
def test_greedy_equals_brute_force(metric, padding, at_least):
    theirs, ours = pair(**SMALL)
    ids, mask = tokens(3, 9), mask_of(padding)
    data = ids if mask is None else {"input_ids": ids, "attention_mask": mask}
    got = prune_order(
        ours, data, search="greedy", metric=metric, at_least_k_per_layer=at_least, progress=False
    )
    expected, values = brute_force(theirs, ids, mask, metric, at_least)
    assert list(got.heads) == expected
    assert np.abs(np.array(got.metrics) - np.array(values)).max() < 1e-4
    # a score is the harm of that step
    steps = np.diff([got.clean, *got.metrics]) * MEASURES[metric][0]
    assert np.abs(steps - np.array(got.scores)).max() < 1e-5
    assert len(got.protected) == 2 * at_least
    mask = got.keep(5)
    assert {tuple(head) for head in (~mask).nonzero().tolist()} == set(expected[:3])


def test_one_shot_sorts_the_exact_effects_and_takes_a_matrix_of_them():
    _, ours = pair()
    ids = tokens(3, 9)
    effects = ablate_heads(ours, ids)
    order = prune_order(ours, ids)
    by_effect = effects.frame.sort_values("effect")
    expected = list(zip(by_effect.layer, by_effect["head"], strict=True))
    assert list(order.heads) == expected
    assert order.frame.metric.isna().all()
    for matrix in (effects.matrix, effects.matrix.numpy(), effects.matrix.tolist()):
        assert prune_order(ours, ids, matrix).heads == order.heads
    better = prune_order(ours, ids, metric="probability")
    assert better.scores[0] == -ablate_heads(ours, ids, "probability").matrix.max()


def test_iterating_one_head_at_a_time_by_ablation_is_greedy_elimination():
    _, ours = pair(**SMALL)
    ids = tokens(2, 9)
    one = prune_order(ours, ids, search="iterative", per_step=1)
    assert one == prune_order(ours, ids, search="greedy")


def test_every_scoring_sees_the_mask_of_what_is_left():
    _, ours = pair()
    ids = tokens(2, 9)
    base, masks = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), []

    def scorer(model, given, head_mask):
        assert model is ours
        assert given is ids
        masks.append(head_mask.clone())
        turned = base * (-1) ** len(masks)
        return turned.masked_fill(head_mask == 0, torch.nan)  # nobody looks at those

    order = prune_order(
        ours, ids, scorer, search="iterative", per_step=3, at_least_k_per_layer=1, metric="kl"
    )
    left = torch.ones(2, 6)
    assert len(masks) == 4
    assert len(order.heads) == 10
    for step, mask in enumerate(masks):
        assert torch.equal(mask, left)
        for layer, head in order.heads[3 * step : 3 * step + 3]:
            left[layer, head] = 0
    first = (-base).flatten().sort().indices[:3].tolist()
    assert order.heads[:3] == tuple((i // 6, i % 6) for i in first)
    measured = order.frame.metric.notna().tolist()
    assert measured == [False, False, True] * 3 + [True]
    assert order.clean == pytest.approx(0, abs=1e-6)  # KL of the intact model from itself


def test_a_pruned_model_is_searched_with_its_pruned_heads_as_zeros():
    _, ours = pair()
    ids, gone = tokens(2, 9), [(0, 1), (0, 2), (1, 0)]
    pruned = prune_heads(ours, {0: [1, 2], 1: [0]})
    mask = torch.ones(2, 6)
    for head in gone:
        mask[head] = 0
    effects = ablate_heads(ours, ids, head_mask=mask).matrix
    order = prune_order(whole(pruned), ids)
    for head, score in zip(order.heads, order.scores, strict=True):
        assert score == pytest.approx(effects[head].item(), abs=1e-5)
    with pytest.raises(UnsupportedError, match="whole.model."):
        prune_order(pruned, ids)


def test_scoring_again_keeps_one_of_two_copies():
    _, ours = pair()
    one, other = (0, 2), (1, 4)

    def scorer(model, given, head_mask):
        scores = torch.full((2, 6), 0.5)
        scores[one] = 0.0 if head_mask[other] else 1.0
        scores[other] = 0.0 if head_mask[one] else 1.0
        return scores

    ids = tokens(2, 9)
    once = prune_order(ours, ids, scorer)
    again = prune_order(ours, ids, scorer, search="iterative", per_step=1)
    assert once.heads[:2] == (one, other)
    assert again.heads[0] == one
    assert again.heads[-1] == other


def test_a_tenth_of_the_heads_goes_at_a_time_by_default():
    _, ours = pair()
    calls = []

    def scorer(model, given, head_mask):
        calls.append(int(head_mask.sum()))
        return torch.rand(2, 6)

    prune_order(ours, tokens(2, 9), scorer, search="iterative")
    assert calls == [12, 10, 8, 6, 4, 2]


@pytest.mark.parametrize(
    ("scorer", "options", "error", "message"),
    [
        ("ablation", {"search": "gredy"}, UnknownNameError, "Did you mean 'greedy'"),
        (torch.rand(2, 6), {"search": "greedy"}, InputError, "leave out the scorer"),
        (torch.rand(2, 6), {"search": "iterative"}, InputError, "give a function, no matrix"),
        ("ablation", {"per_step": 2}, InputError, "per_step belongs to search 'iterative'"),
        ("ablation", {"search": "iterative", "per_step": 0}, InputError, "per_step is 0"),
        ("ablation", {"search": "iterative", "per_step": 1.5}, InputError, "per_step is 1.5"),
        ("ablation", {"at_least_k_per_layer": 7}, InputError, "is 7, expected 0 to 6"),
        ("ablation", {"metric": "los"}, UnknownNameError, "no metric 'los'"),
        (torch.rand(6), {}, ShapeError, r"the scores has shape .6,., expected \[2, 6\]"),
        (lambda *_: torch.rand(2, 5), {}, ShapeError, r"expected \[2, 6\]"),
        (lambda *_: torch.rand(2, 6, 1), {"search": "iterative"}, ShapeError, "2, 6, 1"),
        (lambda *_: "high", {}, InputError, "the scorer returned str, expected numbers"),
        (lambda *_: torch.ones(2, 6) / (torch.arange(6) != 4), {}, NumericalError, "L0H4 is inf"),
        (lambda *_: torch.full((2, 6), torch.nan), {"search": "iterative"}, NumericalError,
         "score of L0H0 is nan"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(scorer, options, error, message):
    _, ours = pair()
    with pytest.raises(error, match=message):
        prune_order(ours, tokens(2, 9), scorer, **options)
