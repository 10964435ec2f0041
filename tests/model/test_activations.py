"""run_with_cache: which names, which shapes, whose memory; decompositions that really sum."""

import pytest
import torch

from bloomlab.errors import InputError, UnknownNameError, UnsupportedError
from bloomlab.model.activations import ActivationCache
from tests.points import BATCH, GATED, HEADS, POS, SHAPES, assert_same, halve, halved
from tests.tiny import pair, tokens

PATTERNS = ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"]
UNGATED = {name for name in SHAPES if name.split(".", 2)[-1] not in GATED}


@pytest.fixture(scope="module")
def ours():
    return pair(n_head=HEADS, dtype=torch.float64)[1]


@pytest.fixture(scope="module")
@torch.no_grad()
def cache(ours):
    return ours.run_with_cache(tokens(BATCH, POS))[1]


# -- which names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names_filter", "expected"),
    [
        (None, UNGATED),
        (PATTERNS[1], {PATTERNS[1]}),
        (PATTERNS, set(PATTERNS)),
        (tuple(PATTERNS), set(PATTERNS)),
        (set(PATTERNS), set(PATTERNS)),
        ((name for name in PATTERNS), set(PATTERNS)),
        (lambda name: name.endswith("hook_pattern"), set(PATTERNS)),
        ([lambda name: name.endswith("hook_pattern"), "hook_embed"], {*PATTERNS, "hook_embed"}),
        ("blocks.0.hook_in", {"blocks.0.hook_resid_pre"}),
        ("blocks.1.attn.hook_result", {"blocks.1.attn.hook_result"}),
        ([], set()),
    ],
)
def test_a_filter_picks_what_it_names(ours, names_filter, expected):
    logits, cache = ours.run_with_cache(tokens(1, 3), names_filter=names_filter)
    assert isinstance(logits, torch.Tensor)
    assert isinstance(cache, ActivationCache)
    assert set(cache) == expected


def test_flags_add_their_points_and_leave_the_logits_alone(ours):
    clean = ours(tokens(BATCH, POS)).logits
    switches = {
        "attn_result": {"attn.hook_result"},
        "hook_mlp_in": {"hook_mlp_in"},
        "attn_in": {"attn.hook_attn_in"},
        "split_qkv_input": {"attn.hook_q_input", "attn.hook_k_input", "attn.hook_v_input"},
    }
    for name, points in switches.items():
        switch = getattr(ours, f"set_use_{name}")
        switch(True)
        logits, cache = ours.run_with_cache(tokens(BATCH, POS))
        switch(False)
        assert set(cache) - UNGATED == {f"blocks.{i}.{point}" for i in (0, 1) for point in points}
        assert_same(logits, clean)


def test_the_two_forks_exclude_each_other(ours):
    for one, other in (("attn_in", "split_qkv_input"), ("split_qkv_input", "attn_in")):
        getattr(ours, f"set_use_{one}")(True)
        with pytest.raises(InputError, match="exclude each other"):
            getattr(ours, f"set_use_{other}")(True)
        getattr(ours, f"set_use_{one}")(False)


def test_a_cache_knows_names_shorthands_and_aliases(cache):
    assert cache["pattern", 1] is cache[PATTERNS[1]] is cache["pattern", -1]
    assert cache["blocks.0.ln2.hook_in"] is cache["resid_mid", 0]
    assert cache["scale", 1, "ln2"] is cache["blocks.1.ln2.hook_scale"]
    with pytest.raises(UnknownNameError, match="Did you mean 'blocks.0.attn.hook_pattern'"):
        cache["blocks.0.attn.hook_patern"]
    with pytest.raises(KeyError):
        cache["blocks.0.attn.hook_result"]  # a point, but not in this cache


# -- which part ------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions", [-1, [0, 3], (1, 4), torch.tensor([2, 2])])
def test_pos_slice_keeps_those_positions_at_every_point(ours, positions):
    _, whole = ours.run_with_cache(tokens(BATCH, POS), names_filter=list(SHAPES))
    _, part = ours.run_with_cache(
        tokens(BATCH, POS), names_filter=list(SHAPES), pos_slice=positions
    )
    for name, axes in SHAPES.items():
        index = slice(*positions) if isinstance(positions, tuple) else positions
        index = [index] if isinstance(index, int) else index  # TransformerLens keeps the axis
        lead = (slice(None),) * axes.split().index("pos")
        assert torch.equal(part[name], whole[name][*lead, index]), name


def test_the_batch_axis_goes_only_when_there_is_one_row(ours):
    _, whole = ours.run_with_cache(tokens(1, POS))
    _, without = ours.run_with_cache(tokens(1, POS), remove_batch_dim=True)
    assert not without.has_batch_dim
    assert all(torch.equal(without[name], whole[name][0]) for name in whole)
    later = whole.remove_batch_dim()
    assert all(torch.equal(without[name], later[name]) for name in later)
    with pytest.raises(InputError, match="needs one row, .* has 2"):
        ours.run_with_cache(tokens(2, POS), remove_batch_dim=True)
    assert not ours.list_hooks()


def test_a_slice_of_rows_is_a_cache_of_ours(cache):
    row = cache.apply_slice_to_batch_dim(1)
    assert isinstance(row, ActivationCache)
    assert torch.equal(row["z", 0], cache["z", 0][1])


def test_a_plain_dict_on_request(ours):
    _, plain = ours.run_with_cache(tokens(1, 3), names_filter=PATTERNS, return_cache_object=False)
    assert type(plain) is dict
    assert set(plain) == set(PATTERNS)


# -- whose memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_a_hook_that_writes_in_place_spoils_nothing_in_a_cache(ours, name):
    """Neither the value at the same point before the edit, nor any upstream that shares memory."""
    ids, caches = tokens(BATCH, POS), []
    _, clean = ours.run_with_cache(ids, names_filter=list(SHAPES))
    for edit in (halve, halved):
        cache, store, _ = ours.get_caching_hooks(list(SHAPES))
        ours.run_with_hooks(ids, fwd_hooks=[*store, (name, edit)])
        caches.append(cache)
    in_place, returned = caches
    assert torch.equal(in_place[name], clean[name])
    assert all(torch.equal(in_place[point], returned[point]) for point in SHAPES)


def test_a_cache_holds_no_graph_and_copies_nothing_unedited(ours):
    ids = tokens(1, 3)
    seen = {}
    fwd = [("blocks.0.hook_resid_post", lambda value, hook: seen.update(at=value.data_ptr()))]
    _, cache = ours.run_with_cache(ids)
    assert not any(value.requires_grad for value in cache.values())
    assert cache["resid_post", 0].data_ptr() == cache["resid_pre", 1].data_ptr()
    with ours.hooks(fwd_hooks=fwd):
        _, cache = ours.run_with_cache(ids)
    assert cache["resid_post", 0].data_ptr() != seen["at"]


# -- gradients -------------------------------------------------------------------------------------


def test_gradients_in_the_cache_equal_autograd(ours):
    ids, name = tokens(BATCH, POS), "blocks.0.hook_resid_post"
    loss, cache = ours.run_with_cache(ids, return_type="loss", incl_bwd=True)
    with_gradient = {name for name in UNGATED if not name.endswith("alibi")}  # a constant
    assert set(cache) == UNGATED | {f"{name}_grad" for name in with_gradient}
    stream = cache[name].clone().requires_grad_()
    again = ours(stream, start_at_layer=1, return_type="loss", labels=ids)
    assert_same(again, loss.detach())
    again.backward()
    assert_same(cache[f"{name}_grad"], stream.grad)
    assert cache["blocks.1.hook_in_grad"] is cache["blocks.1.hook_resid_pre_grad"]


def test_gradients_of_no_scalar_are_refused(ours):
    with pytest.raises(InputError, match="return_type='loss'"):
        ours.run_with_cache(tokens(1, 3), incl_bwd=True)
    with torch.no_grad(), pytest.raises(InputError, match="outside torch.no_grad"):
        ours.run_with_cache(tokens(1, 3), incl_bwd=True, return_type="loss")
    assert not ours.list_hooks()


def test_caching_hooks_stay_until_reset(ours):
    kept = ours.add_caching_hooks("blocks.0.hook_out", incl_bwd=True)
    loss = ours(tokens(1, 3), return_type="loss")
    loss.backward()
    ours.reset_hooks()
    assert set(kept) == {"blocks.0.hook_resid_post", "blocks.0.hook_resid_post_grad"}
    assert not ours.list_hooks()


# -- decompositions --------------------------------------------------------------------------------


def test_the_stream_is_the_sum_of_its_parts(ours, cache):
    for layer in (0, 1, 2):
        target = cache["resid_post", layer - 1] if layer else cache["hook_embed"]
        assert_same(cache.decompose_resid(layer).sum(0), target)
        for neurons in (True, False):
            parts, labels = cache.get_full_resid_decomposition(
                layer, expand_neurons=neurons, return_labels=True
            )
            assert len(labels) == len(parts)
            assert_same(parts.sum(0), target)
    assert_same(cache.decompose_resid(1, mlp_input=True).sum(0), cache["resid_mid", 1])
    parts = cache.get_full_resid_decomposition(1, mlp_input=True)
    assert_same(parts.sum(0), cache["resid_mid", 1])


def test_accumulated_streams_are_the_streams(ours, cache):
    streams, labels = cache.accumulated_resid(incl_mid=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid", "final_post"]
    names = (
        ("resid_pre", 0),
        ("resid_mid", 0),
        ("resid_pre", 1),
        ("resid_mid", 1),
        ("resid_post", 1),
    )
    for stream, name in zip(streams, names, strict=True):
        assert torch.equal(stream, cache[name])
    logits = ours.unembed(cache.accumulated_resid(apply_ln=True)[-1])
    assert_same(logits, ours(tokens(BATCH, POS)).logits.detach())


def test_head_and_neuron_results_are_what_they_write(ours, cache):
    heads, labels = cache.stack_head_results(return_labels=True)
    assert labels == ours.all_head_labels
    _, live = ours.run_with_cache(tokens(BATCH, POS), names_filter=lambda n: n.endswith("result"))
    assert_same(heads[HEADS + 2], live["result", 1][:, :, 2])
    for layer, block in enumerate(ours.blocks):
        written = heads[layer * HEADS :][:HEADS].sum(0) + block.attn.b_O
        assert_same(written, cache["attn_out", layer])
        neurons = cache.get_neuron_results(layer).sum(-2) + block.mlp.b_out
        assert_same(neurons, cache["mlp_out", layer])
    whole = cache.stack_neuron_results(2, incl_remainder=True).sum(0)
    assert_same(whole, cache["resid_post", 1])
    assert cache.stack_activation("z").shape == (2, BATCH, POS, HEADS, 8)


@pytest.mark.parametrize("pos_slice", [None, -1])
def test_layer_norm_of_the_parts_sums_to_the_normalized_stream(cache, pos_slice):
    at = slice(None) if pos_slice is None else pos_slice
    parts = cache.decompose_resid(apply_ln=True, pos_slice=pos_slice)
    assert_same(parts.sum(0), cache["ln_final.hook_normalized"][:, at])
    parts = cache.decompose_resid(1, apply_ln=True, pos_slice=pos_slice)
    assert_same(parts.sum(0), cache["normalized", 1, "ln1"][:, at])


@pytest.mark.parametrize("pos_slice", [None, -1])
def test_logit_attributions_sum_to_the_logit(ours, cache, pos_slice):
    """But for the final LayerNorm's bias, which no part of the stream writes."""
    ids = tokens(BATCH, POS)
    at = slice(None) if pos_slice is None else pos_slice
    shift = ours.ln_final.b @ ours.W_U
    parts = cache.decompose_resid(pos_slice=pos_slice)
    logits = (ours(ids).logits - shift).detach()[:, at]
    got = cache.logit_attrs(parts, 7, pos_slice=pos_slice).sum(0)
    assert_same(got, logits[..., 7])
    got = cache.logit_attrs(parts, 7, incorrect_tokens=9, pos_slice=pos_slice).sum(0)
    assert_same(got, logits[..., 7] - logits[..., 9])
    got = cache.logit_attrs(parts, torch.tensor([7, 9]), pos_slice=pos_slice).sum(0)
    assert_same(got, torch.stack([logits[0, ..., 7], logits[1, ..., 9]]))


def test_a_stream_that_is_no_sum_is_not_taken_apart():
    _, ours = pair(apply_residual_connection_post_layernorm=True)
    ids = tokens(BATCH, POS)
    _, cache = ours.run_with_cache(ids)
    for method in (cache.decompose_resid, cache.get_full_resid_decomposition):
        with pytest.raises(UnsupportedError, match="not a sum of component outputs"):
            method()
    with pytest.raises(UnsupportedError, match="no sum of component outputs"):
        ours.accumulated_bias(1)
    logits = ours.unembed(cache.accumulated_resid(apply_ln=True)[-1])
    assert_same(logits, ours(ids).logits, limit=1e-5)
