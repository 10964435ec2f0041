"""Runs against whole forwards: transformers' own, and ours with edits written by hand."""

import numpy as np
import psutil
import pytest
import torch

import bloomlab as bl
from bloomlab.errors import InputError
from bloomlab.session.run import run_text
from tests.session.oracles import (
    EDITS,
    by_hand,
    edits_of,
    is_untouched,
    means_of,
    patterns_of,
    streams_of,
    whole,
    with_slopes,
)
from tests.tiny import pair, tokens

NONE = edits_of()
IDS = tokens(1, 11)


def assert_same(run, forward):
    """A run has the streams, the patterns and the logits of a forward."""
    logits, cache = forward
    for found, expected in zip(run.resid, streams_of(cache, run.model), strict=True):
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(run.patterns(), patterns_of(cache, run.model), atol=1e-5)
    for position in (0, 4, -1):
        expected = logits[0, position]
        torch.testing.assert_close(run.logits(position), expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("fields", [{}, {"apply_residual_connection_post_layernorm": True}])
def test_the_stream_is_transformers_hidden_states(fields):
    theirs, model = pair(**fields)
    run = run_text(model, IDS, NONE)
    with torch.no_grad():
        expected = theirs(IDS, output_hidden_states=True)
    norm = theirs.transformer.ln_f
    for found, state in zip(run.resid[:-1], expected.hidden_states, strict=False):
        torch.testing.assert_close(found, state, atol=2e-5, rtol=1e-5)
    with torch.no_grad():
        last = norm(run.resid[-1])
    torch.testing.assert_close(last, expected.hidden_states[-1], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(run.logits(), expected.logits[0, -1], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("alibi", ["hf", "exact"])
def test_an_edited_run_is_a_whole_forward_with_hooks(name, alibi):
    _, model = pair()
    model.alibi = alibi
    clean = run_text(model, IDS, NONE)
    run = run_text(model, IDS, EDITS[name], clean)
    assert_same(clean, whole(model, IDS))
    assert_same(run, whole(model, IDS, EDITS[name]))


@pytest.mark.parametrize("name", EDITS)
def test_edits_of_a_model_after_the_norm_are_too(name):
    _, model = pair(apply_residual_connection_post_layernorm=True)
    run = run_text(model, IDS, EDITS[name], run_text(model, IDS, NONE))
    assert_same(run, whole(model, IDS, EDITS[name]))


@pytest.mark.parametrize("name", ["off", "half", "double"])
def test_scaled_heads_are_a_head_mask(name):
    _, model = pair()
    run = run_text(model, IDS, EDITS[name], run_text(model, IDS, NONE))
    with torch.no_grad():
        logits = model(IDS, head_mask=torch.tensor(EDITS[name].scale)).logits
    torch.testing.assert_close(run.logits(), logits[0, -1], atol=1e-4, rtol=1e-5)


def test_edited_slopes_are_those_of_a_model_that_has_them():
    _, model = pair()
    run = run_text(model, IDS, EDITS["slopes"], run_text(model, IDS, NONE))
    assert_same(run, whole(with_slopes(model, EDITS["slopes"]), IDS))


def test_an_edited_run_of_a_pruned_model_edits_what_is_left():
    _, model = pair()
    pruned = bl.prune_heads(model, {0: [0, 1], 1: [5]})
    run = run_text(pruned, IDS, EDITS["all"], run_text(pruned, IDS, NONE))
    assert_same(run, whole(pruned, IDS, EDITS["all"]))


def test_an_edited_run_of_the_packaged_model_is_a_whole_forward(demo):
    ids = demo.to_tokens("The cat sat on the mat. The cat sat on")
    edits = edits_of(6, 8, scale={(3, 7): 0, (5, 1): 0.5}, mean=[(4, 2)], slopes={(4, 0): 2})
    clean = run_text(demo, ids, edits_of(6, 8))
    assert_same(run_text(demo, ids, edits, clean), whole(demo, ids, edits))


def test_means_are_of_the_clean_run():
    _, model = pair()
    clean = run_text(model, IDS, NONE)
    for found, expected in zip(clean.means, means_of(model, IDS), strict=True):
        torch.testing.assert_close(found, expected)
    assert run_text(model, IDS, EDITS["all"], clean).means is clean.means


@pytest.mark.parametrize("layer", range(4))
def test_layers_before_the_first_edited_are_the_clean_runs(layer):
    _, model = pair(n_layer=4)
    clean = run_text(model, IDS, edits_of(4))
    for edits in (
        edits_of(4, scale={(layer, 2): 0}),
        edits_of(4, slopes={(layer, 2): 0}),
        edits_of(4, mean=[(layer, 2)], scale={(3, 0): 0}),
    ):
        run = run_text(model, IDS, edits, clean)
        shared = [a is b for a, b in zip(run.resid, clean.resid, strict=True)]
        assert shared[:layer] == [True] * layer
        assert not any(shared[layer + 1 :])
        assert torch.equal(run.resid[layer], clean.resid[layer])
        assert not torch.allclose(run.resid[layer + 1], clean.resid[layer + 1])


@pytest.mark.parametrize("name", EDITS)
def test_tiles_that_are_shared_are_those_that_would_be_made(name):
    _, model = pair()
    clean = run_text(model, IDS, NONE)
    for layer in range(2):
        for quantity in ("pattern", "value", "content", "alibi"):
            clean.tiles(layer, 4, quantity=quantity)
    run = run_text(model, IDS, EDITS[name], clean)
    unshared = run_text(model, IDS, EDITS[name], run_text(model, IDS, NONE))
    for layer in range(2):
        for quantity in ("pattern", "value", "content", "alibi"):
            both = (one.tiles(layer, 4, quantity=quantity) for one in (run, unshared))
            for found, expected in zip(*both, strict=True):
                np.testing.assert_array_equal(found, expected)


def test_a_run_without_edits_is_the_clean_run_itself():
    _, model = pair()
    clean = run_text(model, IDS, NONE)
    assert run_text(model, IDS, edits_of(), clean) is clean


def test_nothing_stays_attached():
    _, model = pair()
    clean = run_text(model, IDS, NONE)
    run = run_text(model, IDS, EDITS["all"], clean)
    run.patterns()
    run.tiles(0)
    assert is_untouched(model)


@pytest.mark.parametrize("edits", [NONE, EDITS["all"]])
def test_nothing_stays_attached_after_an_error(edits):
    _, model = pair()
    clean = run_text(model, IDS, NONE)

    def fail(value, hook):
        raise RuntimeError("told to")

    handle = model.blocks[1].mlp.register_forward_pre_hook(lambda *_: fail(None, None))
    with pytest.raises(RuntimeError, match="told to"):
        run_text(model, IDS, edits, None if edits is NONE else clean)
    handle.remove()
    assert is_untouched(model)
    again = run_text(model, IDS, NONE)
    assert torch.equal(again.resid[-1], clean.resid[-1])


def test_hooks_of_the_user_stay_attached():
    _, model = pair()
    hooks = by_hand(model, {0: EDITS["off"]}, means_of(model, IDS))
    expected = whole(model, IDS, EDITS["off"])
    with model.hooks(fwd_hooks=hooks):
        run = run_text(model, IDS, NONE)
        assert not is_untouched(model)
    torch.testing.assert_close(
        run.resid[-1], streams_of(expected[1], model)[-1], atol=1e-4, rtol=1e-4
    )


def test_asking_twice_gives_the_same_numbers():
    _, model = pair()
    clean = run_text(model, IDS, NONE)
    first = [run_text(model, IDS, EDITS[name], clean).resid[-1] for name in EDITS]
    again = [run_text(model, IDS, EDITS[name], clean).resid[-1] for name in reversed(EDITS)]
    for one, other in zip(first, reversed(again), strict=True):
        assert torch.equal(one, other)
    assert torch.equal(run_text(model, IDS, NONE).resid[-1], clean.resid[-1])


def test_next_tokens_are_the_likeliest(session):
    run = session.run()
    probability = whole(session.model, run.ids)[0][0].softmax(-1)
    for position in (-1, 0):
        labels, values = run.next_tokens(5, position)
        best = probability[position].topk(5)
        assert labels == [run.labels([i])[0] for i in best.indices]
        np.testing.assert_allclose(values, best.values, atol=1e-5)
    assert len(run.next_tokens(10**6)[0]) == session.model.config.vocab_size


@pytest.mark.parametrize("position", [11, -12, 1.5, None])
def test_a_position_is_a_column_of_the_text(position):
    _, model = pair()
    with pytest.raises(InputError, match="expected some of 0 to 10"):
        run_text(model, IDS, NONE).logits(position)


def test_a_text_that_is_too_long_for_the_memory_is_refused(monkeypatch):
    _, model = pair()
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=40_000))
    # 48 channels of 4 bytes: (3 states twice, and 24 for a layer) x 7 tokens = 40,320 bytes
    with pytest.raises(InputError, match=r"7 tokens.*3 layers x 7 tokens x 48.*free"):
        run_text(model, IDS[:, :7], NONE)
    assert len(run_text(model, IDS[:, :6], NONE)) == 6
