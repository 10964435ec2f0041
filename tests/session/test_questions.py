"""What a session answers, against forwards with hooks and head masks."""

import itertools

import numpy as np
import pytest
import torch

import bloomlab as bl
from bloomlab.errors import InputError, UnknownNameError
from tests.session.oracles import EDITS, edits_of, patterns_of, whole

TEXT = "A dog ran."


def kl(before, after):
    first, second = (one.double().log_softmax(-1) for one in (before, after))
    return (first.exp() * (first - second)).sum(-1).item()


def test_attention_flows_and_slopes_are_the_runs(session):
    session.edits = EDITS["all"]
    clean, edited = (
        patterns_of(whole(session.model, session.run().ids, edits)[1], session.model)
        for edits in (None, EDITS["all"])
    )
    found = session.attention("difference", 1, 3)
    np.testing.assert_allclose(found, (edited - clean)[1, 3], atol=1e-5)
    found = session.attention("difference", 1, 3, queries=[2])
    np.testing.assert_allclose(found, (edited - clean)[1, 3, [2]], atol=1e-5)
    for which, expected in (("clean", clean), ("edited", edited)):
        for ask in (
            session.attention,
            lambda _, *place, **run: session.flow("head", *place, **run),
        ):
            np.testing.assert_allclose(ask("pattern", 1, 3, which=which), expected[1, 3], atol=1e-5)
        mean = session.flow("mean", 1, 0, which=which)
        np.testing.assert_allclose(mean, expected[1].mean(0), atol=1e-5)
        own, eye = expected.mean(1), np.eye(expected.shape[-1])
        rollout = (own[1] + eye) / 2 @ (own[0] + eye) / 2
        np.testing.assert_allclose(session.flow("rollout", 1, 0, which=which), rollout, atol=1e-5)
    slopes = session.model.blocks[0].attn.slopes
    assert session.slope(0, 0) == pytest.approx(2 * slopes[0].item())
    assert session.slope(0, 0, "clean") == pytest.approx(slopes[0].item())
    assert session.slope(0, 1) == pytest.approx(slopes[1].item())


def test_importance_is_one_forward_a_head(session):
    ids = session.run().ids
    with torch.no_grad():
        clean = session.model(ids).logits[0, -1]
        for layer, head in itertools.product(range(2), range(6)):
            mask = torch.ones(2, 6)
            mask[layer, head] = 0
            expected = kl(clean, session.model(ids, head_mask=mask).logits[0, -1])
            assert session.importance()[layer, head] == pytest.approx(expected, abs=1e-4)


def test_importance_is_of_the_intact_model_and_of_its_prompt(session):
    first = session.importance().copy()
    session.edits = EDITS["all"]
    session.importance()[:] = 0  # what is handed out is a copy
    np.testing.assert_array_equal(session.importance(), first)
    session.prompt = TEXT
    other = bl.Session(session.model, TEXT).importance()
    np.testing.assert_array_equal(session.importance(), other)
    assert not np.allclose(other, first)


def test_importance_of_pruned_heads_is_missing(tiny):
    model = bl.prune_heads(tiny, {0: [1, 4]})
    model.tokenizer = tiny.tokenizer
    session = bl.Session(model, TEXT)
    found, ids = session.importance(), session.run().ids
    assert np.argwhere(np.isnan(found)).tolist() == [[0, 1], [0, 4]]
    clean, *off = (whole(model, ids, e)[0][0, -1] for e in (None, edits_of(scale={(0, 5): 0})))
    assert found[0, 5] == pytest.approx(kl(clean, off[0]), abs=1e-4)
    assert sorted(session.least_harm(100.0)) == [(a, b) for a in (0, 1) for b in session.kept(a)]
    assert session.kept(0) == [0, 2, 3, 5]
    with pytest.raises(InputError, match="L0H4"):
        session.slope(0, 4)


@pytest.mark.parametrize("limit", [0.0, 0.3, 1.0, 100.0])
def test_heads_that_do_least_harm_stay_within_the_limit(session, limit):
    heads, mask = session.least_harm(limit), torch.ones(2, 6)
    assert len(set(heads)) == len(heads)
    for head in heads:
        mask[head] = 0
    ids = session.run().ids
    with torch.no_grad():
        harm = kl(*(session.model(ids, head_mask=m).logits[0, -1] for m in (None, mask)))
    assert harm <= limit + 1e-4
    assert len(heads) == {0.0: 0, 100.0: 12}.get(limit, len(heads))


def test_what_is_not_there_is_named(session):
    for ask, error, match in (
        (lambda: session.run("other"), InputError, "other"),
        (lambda: session.attention("patern", 0, 0), UnknownNameError, "patern"),
        (lambda: session.attention("pattern", 2, 0), InputError, "no layer 2"),
        (lambda: session.attention("pattern", 0, 6), InputError, "no head 6"),
        (lambda: session.attention("pattern", 0, 0, which="dirty"), InputError, "dirty"),
        (lambda: session.tiles("patern", 0, 4), UnknownNameError, "patern"),
        (lambda: session.tiles("difference", 2, 4), InputError, "no layer 2"),
        (lambda: session.tiles("difference", 0, 0), InputError, "1 or more"),
        (lambda: session.flow("river", 0, 0), UnknownNameError, "river"),
        (lambda: session.flow("mean", 2, 0), InputError, "no layer 2"),
        (lambda: session.flow("rollout", -1, 0), InputError, "no layer -1"),
        (lambda: session.slope(2, 0), InputError, "L2H0"),
        (lambda: session.next_tokens(5, 99), InputError, "99"),
        (lambda: session.lens([99]), InputError, "99"),
        (lambda: session.contributions(99), InputError, "99"),
        (lambda: session.branch("other", 0), InputError, "other"),
    ):
        with pytest.raises(error, match=match):
            ask()
