"""Loss and divergence by position, against forwards of transformers."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

import bloomlab as bl
from bloomlab.errors import BloomlabError
from bloomlab.experiments import by_position as module
from bloomlab.experiments import kl_by_position, loss_by_position
from bloomlab.interventions import mask_heads
from tests.tiny import pair, tokens


@pytest.fixture(scope="module")
def models():
    return pair(dtype=torch.float64)


def losses_of(theirs, ids):
    """Of every token but the first, by transformers."""
    logits = theirs(ids).logits[:, :-1]
    return cross_entropy(logits.mT, ids[:, 1:], reduction="none")


@pytest.mark.parametrize(("rows", "logits"), [(1, 2**22), (2, 300), (8, 1)])
@torch.no_grad()
def test_losses_are_those_of_transformers_however_they_are_computed(
    models, rows, logits, monkeypatch
):
    monkeypatch.setattr(module, "LOGITS", logits)
    theirs, ours = models
    ids = tokens(3, 11)
    torch.testing.assert_close(loss_by_position(ours, ids, rows=rows), losses_of(theirs, ids))


@pytest.mark.parametrize("step", [1, 3, 50])
@pytest.mark.parametrize(("sinks", "window"), [(0, 4), (2, 3)])
@torch.no_grad()
def test_a_token_of_one_layer_sees_what_was_kept_and_what_came_with_it(step, sinks, window):
    theirs, ours = pair(dtype=torch.float64, n_layer=1)
    ids = tokens(2, 14)
    policy = bl.SinkWindow(sinks=sinks, window=window)
    found = loss_by_position(ours, ids, policy=policy, step=step)
    for i in range(13):
        read = i - i % step  # tokens before this step
        kept = ids[:, :read]
        if read > sinks + window:
            kept = torch.cat([ids[:, :sinks], ids[:, read - window : read]], 1)
        seen = torch.cat([kept, ids[:, read : i + 1]], 1)
        logits = theirs(seen).logits[:, -1]
        expected = cross_entropy(logits, ids[:, i + 1], reduction="none")
        torch.testing.assert_close(found[:, i], expected)


def test_a_window_that_drops_nothing_changes_nothing(models):
    ids = tokens(2, 12)
    whole = loss_by_position(models[1], ids)
    wide = loss_by_position(models[1], ids, policy=bl.SinkWindow(sinks=4, window=20), step=5)
    torch.testing.assert_close(wide, whole)


def test_attached_hooks_act(models):
    ids = tokens(1, 9)
    with models[1].hooks(fwd_hooks=[mask_heads(0, [2])]):
        found = loss_by_position(models[1], ids)
    mask = torch.ones(2, 6, dtype=torch.float64)
    mask[0, 2] = 0
    logits = models[1](ids, head_mask=mask, return_type="logits")[:, :-1]
    torch.testing.assert_close(found, cross_entropy(logits.mT, ids[:, 1:], reduction="none"))


@pytest.mark.parametrize(("rows", "logits"), [(4, 2**22), (1, 200)])
@torch.no_grad()
def test_divergence_is_that_of_transformers_predictions(models, rows, logits, monkeypatch):
    monkeypatch.setattr(module, "LOGITS", logits)
    other_theirs, other = pair(dtype=torch.float64, seed=5)
    ids = tokens(2, 7)
    first, second = (one(ids).logits.log_softmax(-1) for one in (models[0], other_theirs))
    expected = kl_div(second, first, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(kl_by_position(models[1], other, ids, rows=rows), expected)


def test_a_model_does_not_diverge_from_itself(models):
    assert not kl_by_position(models[1], models[1], tokens(1, 6)).any()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"step": 0, "policy": bl.SinkWindow()}, "step is 0"),
        ({"rows": 0}, "rows is 0"),
        ({"policy": "window"}, "policy"),
    ],
)
def test_wrong_arguments_are_refused(models, options, said):
    with pytest.raises(BloomlabError, match=said):
        loss_by_position(models[1], tokens(1, 6), **options)


def test_one_token_has_no_loss(models):
    with pytest.raises(BloomlabError, match="2 or more"):
        loss_by_position(models[1], tokens(2, 1))


@pytest.mark.parametrize("measure", [loss_by_position, lambda m, t: kl_by_position(m, m, t)])
def test_texts_of_several_lengths_are_refused(measure):
    with pytest.raises(BloomlabError, match="several lengths"):
        measure(bl.load("demo"), ["one", "one and two"])


def test_two_vocabularies_are_refused(models):
    _, other = pair(dtype=torch.float64, vocab_size=50)
    with pytest.raises(BloomlabError, match="97 and 50"):
        kl_by_position(models[1], other, tokens(1, 6))
