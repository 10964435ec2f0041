"""Law 4 and 2: the values at the hook points are TransformerLens', also when decoding."""

import copy

import pytest
import torch

from bloomlab.errors import UnknownNameError
from tests.bridge import bridge_of
from tests.points import BATCH, HEADS, LEFT, POS, SHAPES, assert_same
from tests.straight import straight
from tests.tiny import pair, tokens


@pytest.fixture(scope="module", params=[False, True], ids=["pre-LN", "post-LN"])
def models(request):
    post = {"apply_residual_connection_post_layernorm": request.param}
    return pair(n_head=HEADS, dtype=torch.float64, **post)


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("n_head", [6, 4])
@torch.no_grad()
def test_every_value_equals_transformer_lens(n_head, post, padding):
    theirs, ours = pair(n_head=n_head, apply_residual_connection_post_layernorm=post)
    ids, mask = tokens(BATCH, POS), LEFT if padding == "left" else None
    seen = torch.ones(BATCH, POS, dtype=torch.bool) if mask is None else mask.bool()
    _, expected = bridge_of(theirs).run_with_cache(ids, attention_mask=mask)
    _, cache = ours.run_with_cache(ids, attention_mask=mask)
    shared = [name for name in expected if name in cache.cache_dict]
    assert set(cache) - set(shared) == {f"blocks.{i}.attn.hook_alibi" for i in (0, 1)}
    for name in shared:
        assert_same(cache[name], expected[name], name, seen=seen, limit=2e-5)


@torch.no_grad()
def test_every_alias_is_the_value_transformer_lens_has_under_that_name():
    theirs, ours = pair()
    ids, seen = tokens(BATCH, POS), torch.ones(BATCH, POS, dtype=torch.bool)
    _, expected = bridge_of(theirs).run_with_cache(ids)
    aliases = [name for name in expected if name not in SHAPES and resolves(ours, name)]
    assert len(aliases) == 2 * 12
    _, cache = ours.run_with_cache(ids, names_filter=aliases)
    for name in aliases:
        assert_same(cache[name], expected[name], name, seen=seen, limit=2e-5)


def resolves(model, name):
    try:
        return bool(model.resolve_hook_name(name))
    except UnknownNameError:
        return False


@pytest.mark.parametrize("padding", ["none", "left"])
@torch.no_grad()
def test_every_value_equals_the_closed_form_when_all_points_are_hooked(models, padding):
    theirs, ours = models
    ids, mask = tokens(BATCH, POS), LEFT if padding == "left" else None
    seen = torch.ones(BATCH, POS, dtype=torch.bool) if mask is None else mask.bool()
    logits, expected = straight(theirs, ids, mask, gated=True)
    # the oracle itself; in float64 transformers makes NaN of padding
    by_transformers = copy.deepcopy(theirs).float()(ids, attention_mask=mask).logits
    assert_same(logits, by_transformers, seen=seen, limit=1e-5)
    got, cache = ours.run_with_cache(ids, attention_mask=mask, names_filter=list(SHAPES))
    assert set(cache) == set(expected) == set(ours.hook_dict) == set(SHAPES)
    assert_same(got, logits, seen=seen)
    for name, value in expected.items():
        assert_same(cache[name], value, name, seen=seen)


def test_gradients_at_hooks_equal_autograd_of_transformers():
    theirs, ours = pair()
    ids, grads, expected = tokens(BATCH, POS), {}, {}
    theirs.transformer.h[1].register_full_backward_pre_hook(
        lambda module, grad: expected.update({"blocks.1.hook_resid_post": grad[0]})
    )
    theirs.transformer.h[1].self_attention.dense.register_full_backward_hook(
        lambda module, into, out: expected.update({"blocks.1.attn.hook_z": into[0]})
    )
    theirs.transformer.h[0].mlp.gelu_impl.register_full_backward_hook(
        lambda module, into, out: expected.update({"blocks.0.mlp.hook_pre": into[0]})
    )
    theirs(ids, labels=ids).loss.backward()
    store = [(name, lambda g, hook: grads.update({hook.name: g.clone()})) for name in SHAPES]
    loss = ours.run_with_hooks(ids, bwd_hooks=store, return_type="loss")
    loss.backward()  # after the hooks are gone: they belong to what was computed under them
    assert not ours.list_hooks()
    assert set(expected) == {n for n in expected if n in grads}
    for name, grad in expected.items():
        assert (grads[name].reshape(grad.shape) - grad).abs().max() < 1e-6, name


@pytest.mark.parametrize("mode", ["hf", "exact"])
@pytest.mark.parametrize("padding", ["none", "left"])
@torch.no_grad()
def test_hooks_see_the_same_in_cached_chunks(padding, mode):
    ours = pair(dtype=torch.float64)[1]
    ours.alibi = mode
    ids, mask = tokens(BATCH, POS), LEFT if padding == "left" else torch.ones(BATCH, POS)
    _, whole = ours.run_with_cache(ids, attention_mask=mask, names_filter=list(SHAPES))
    past, start, pieces = None, 0, []
    for end in (4, 5, 9):
        arguments = {"attention_mask": mask[:, :end], "past_key_values": past, "use_cache": True}
        cache, fwd, _ = ours.get_caching_hooks(list(SHAPES))
        with ours.hooks(fwd_hooks=fwd):
            past = ours(ids[:, start:end], **arguments).past_key_values
        pieces.append(cache)
        start = end
    seen = mask.bool()
    for name, axes in SHAPES.items():
        if axes == "batch head pos pos":
            for (start, end), piece in zip(((0, 4), (4, 5), (5, 9)), pieces, strict=True):
                rows = whole[name][:, :, start:end, :end]
                assert_same(piece[name], rows, name, seen=seen[:, start:end])
        else:
            assert_same(torch.cat([p[name] for p in pieces], 1), whole[name], name, seen=seen)
