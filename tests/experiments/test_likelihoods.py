"""Likelihoods against a full forward of transformers for every single text."""

import pytest
import torch

import bloomlab as bl
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments import likelihoods as module
from bloomlab.experiments.likelihoods import likelihoods
from bloomlab.interventions import mask_heads, steer
from tests.tiny import make_hf, pair

PUSH = torch.linspace(-2, 2, 48, dtype=torch.float64)
PAIRS = [  # contexts that share, that stand alone, of one token; the last continues greedily below
    ([5, 6, 7, 8], [9, 10]),
    ([5, 6, 7, 8], [11]),
    ([20], [21, 22, 23]),
    ([5, 6, 7, 8], [12, 13, 14, 15]),
    ([20], [24]),
    ([30, 31], [32]),
    ([5, 6, 7, 8], [9, 10]),
]


@pytest.fixture(scope="module")
def models():
    return pair(dtype=torch.float64)


def brute(logits_of, pairs):
    """Sum of log-probabilities and whether each is the largest, one text at a time."""
    found = []
    for context, continuation in pairs:
        logits = logits_of(torch.tensor([[*context, *continuation]]))[0].double()
        total, greedy = 0.0, True
        for i, token in enumerate(continuation, len(context) - 1):
            total += float(logits[i, token] - logits[i].exp().sum().log())
            greedy &= int(logits[i].argmax()) == token
        found.append((total, greedy))
    return found


def with_greedy(logits_of):
    """The pairs, and two whose continuations are the likeliest tokens."""
    extra = []
    for context in ([5, 6, 7, 8], [40, 41]):
        ids = torch.tensor([context])
        for _ in range(3):
            ids = torch.cat([ids, logits_of(ids)[:, -1].argmax(-1)[:, None]], -1)
        extra.append((context, ids[0, len(context) :].tolist()))
    return PAIRS + extra


@pytest.mark.parametrize("batch_size", [1, 3, 16])
@torch.no_grad()
def test_likelihoods_are_those_of_transformers_text_by_text(models, batch_size):
    theirs, ours = models

    def logits_of(ids):
        return theirs(ids).logits

    pairs = with_greedy(logits_of)
    expected = brute(logits_of, pairs)
    found = likelihoods(ours, pairs, batch_size=batch_size)
    assert [one.greedy for one in found] == [greedy for _, greedy in expected]
    assert {greedy for _, greedy in expected} == {True, False}
    for one, (total, _) in zip(found, expected, strict=True):
        assert one.log_prob == pytest.approx(total, abs=1e-5)  # transformers' softmax is float32


@pytest.mark.parametrize("alone", [True, False])
@torch.no_grad()
def test_a_steered_model_is_steered_in_every_token(models, alone):
    _, ours = models
    edit = steer(1, PUSH, coefficient=0.5)
    edit = edit.at_columns([1, 3, 4]) if alone else edit

    def logits_of(ids):
        return ours.run_with_hooks(ids, fwd_hooks=[edit])

    pairs = with_greedy(logits_of)
    found = likelihoods(ours, pairs, interventions=[edit], batch_size=4)
    for one, (total, greedy) in zip(found, brute(logits_of, pairs), strict=True):
        assert one.greedy == greedy
        assert one.log_prob == pytest.approx(total, abs=1e-9)
    plain = likelihoods(ours, pairs)
    assert abs(plain[0].log_prob - found[0].log_prob) > 0.01


@torch.no_grad()
def test_a_pruned_model_scores_as_the_masked_one(models):
    _, ours = models
    pruned = bl.prune_heads(ours, {0: [1, 3], 1: [0]})
    masks = [mask_heads(0, [1, 3]), mask_heads(1, 0)]
    masked = likelihoods(ours, PAIRS, interventions=masks)
    for one, other in zip(likelihoods(pruned, PAIRS), masked, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-9)


@torch.no_grad()
def test_logits_in_pieces_are_the_same(models, monkeypatch):
    expected = likelihoods(models[1], PAIRS)
    monkeypatch.setattr(module, "LOGITS", 2 * 97)
    for one, other in zip(likelihoods(models[1], PAIRS), expected, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, abs=1e-9)


@torch.no_grad()
def test_half_precision_sums_in_float32():
    ours = bl.BloomForCausalLM.from_hf(make_hf(dtype=torch.bfloat16))
    expected = brute(lambda ids: ours(ids, return_type="logits"), PAIRS)
    for one, (total, _) in zip(likelihoods(ours, PAIRS), expected, strict=True):
        assert one.log_prob == pytest.approx(total, rel=0.05)


def test_bad_requests_are_refused(models):
    _, ours = models
    with pytest.raises(InputError, match="the context of pair 1 is empty"):
        likelihoods(ours, [([5], [6]), ([], [7])])
    with pytest.raises(InputError, match="the continuation of pair 0 is empty"):
        likelihoods(ours, [([5], [])])
    with pytest.raises(InputError, match="outside the vocabulary"):
        likelihoods(ours, [([5], [97])])
    with pytest.raises(InputError, match="batch_size"):
        likelihoods(ours, PAIRS, batch_size=0)
    with pytest.raises(InputError, match="leave out on_rows"):
        likelihoods(ours, PAIRS, interventions=[steer(1, PUSH).on_rows(0)])
    with pytest.raises(UnknownNameError, match="hook_z"):
        likelihoods(ours, PAIRS, interventions=[("blocks.9.attn.hook_z", print)])
    assert likelihoods(ours, []) == []
