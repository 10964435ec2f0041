"""Each factory does to one forward what its edit, written down by hand, leads to."""

import copy

import pytest
import torch

import bloomlab as bl
from bloomlab.errors import InputError
from bloomlab.interventions import (
    freeze_pattern,
    knock_out,
    mask_heads,
    mean_heads,
    patch,
    scale_heads,
    scale_slopes,
    steer,
)
from tests.points import LEFT, SHAPES, assert_same
from tests.straight import straight
from tests.tiny import make_hf, pair, tokens

N = 9
IDS, OTHER = tokens(2, N), tokens(2, N, seed=2)
SEEN = LEFT.bool()
LOGIT_LIMIT = 1e-9
PUSH = torch.linspace(-1, 1, 48, dtype=torch.float64)
MASKS = pytest.mark.parametrize("mask", [None, LEFT], ids=["full", "left-padded"])


@pytest.fixture(scope="module", params=[3, 6])
def models(request):
    return pair(n_head=request.param, dtype=torch.float64)


@pytest.fixture(scope="module")
def ours():
    return pair(dtype=torch.float64)[1]


def by_hand(change, *, rows=(0, 1), columns=range(N), heads=None):
    """An edit of the whole value, one row, column and head at a time."""

    def edit(value):
        value = value.clone()
        for row in rows:
            for column in columns:
                for head in [None] if heads is None else heads:
                    if head is None:
                        at = (row, column)
                    elif value.shape[1] in (3, 6):  # batch head query key
                        at = (row, head, column)
                    else:
                        at = (row, column, head)
                    value[at] = change(value[at], at, column)
        return value

    return edit


def cut(keys):
    """A pattern's row without some keys, the rest made to sum to 1: no scores, no softmax."""

    def change(row, at, column):
        row = row.clone()
        row[keys] = 0
        return row / row.sum()

    return change


FACTORIES = {  # intervention for (heads, values of another run), where it acts, what it does there
    "mask": lambda h, o: (mask_heads(1, h), "blocks.1.attn.hook_z", lambda v, *_: 0 * v),
    "scale": lambda h, o: (
        scale_heads(0, h, factor=-2.5),
        "blocks.0.attn.hook_z",
        lambda v, *_: -2.5 * v,
    ),
    "mean": lambda h, o: (
        mean_heads(0, h, mean=o["blocks.0.attn.hook_z"].mean((0, 1))),
        "blocks.0.attn.hook_z",
        lambda v, at, _: o["blocks.0.attn.hook_z"].mean((0, 1))[at[2]],
    ),
    "patch": lambda h, o: (
        patch("blocks.1.attn.hook_k", o, heads=h),
        "blocks.1.attn.hook_k",
        lambda v, at, _: o["blocks.1.attn.hook_k"][at],
    ),
    "knock out": lambda h, o: (
        knock_out(1, h, keys=[3, 4], queries=range(N)).when(lambda step, column: column > 4),
        "blocks.1.attn.hook_pattern",
        lambda v, at, column: cut([3, 4])(v, at, column) if column > 4 else v,
    ),
    "knock out of later queries": lambda h, o: (
        knock_out(0, h, keys=[6, 7]),
        "blocks.0.attn.hook_pattern",
        lambda v, at, c: cut([k for k in (6, 7) if k < c])(v, at, c) if c > 6 else v,
    ),
    "freeze": lambda h, o: (
        freeze_pattern(1, h, pattern=o["blocks.1.attn.hook_pattern"]),
        "blocks.1.attn.hook_pattern",
        lambda v, at, _: o["blocks.1.attn.hook_pattern"][at],
    ),
    "slopes": lambda h, o: (
        scale_slopes(0, h, factor=0.25),
        "blocks.0.attn.hook_alibi",
        lambda v, *_: 0.25 * v,
    ),
}


@pytest.mark.parametrize("factory", FACTORIES)
@pytest.mark.parametrize(("rows", "columns"), [((0, 1), range(N)), ((1,), (8,)), ((1,), (2, 5, 7))])
@pytest.mark.parametrize("heads", [[0, 2], [1]])
@MASKS
@torch.no_grad()
def test_a_factory_does_what_its_edit_by_hand_does(models, factory, heads, rows, columns, mask):
    theirs, ours = models
    _, other = straight(theirs, OTHER, mask)
    intervention, name, change = FACTORIES[factory](heads, other)
    edit = by_hand(change, rows=rows, columns=columns, heads=heads)
    expected, values = straight(theirs, IDS, mask, edits={name: edit})
    narrowed = intervention.on_rows(rows).at_columns(columns)
    with ours.hooks(fwd_hooks=[narrowed]):
        got, cache = ours.run_with_cache(IDS, attention_mask=mask)
    seen = SEEN if mask is not None else torch.ones_like(SEEN)
    assert_same(got, expected, seen=seen)
    for other_name in ("blocks.1.attn.hook_z", "blocks.1.hook_resid_post"):
        assert_same(cache[other_name], values[other_name], other_name, seen=seen)
    assert (got - ours(IDS, attention_mask=mask).logits)[seen].abs().max() > 1e-6


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_a_patch_from_a_cache_puts_in_the_other_run_at_any_point(models, name):
    theirs, ours = models
    other = ours.run_with_cache(OTHER, names_filter=name)[1]
    edit = by_hand(lambda v, at, _: other[name][at], rows=[1], columns=[5, 6], heads=None)
    if "head" in SHAPES[name].split()[1]:  # queries and keys
        heads = range(ours.cfg.n_heads)
        edit = by_hand(lambda v, at, _: other[name][at], rows=[1], columns=[5, 6], heads=heads)
    expected, _ = straight(theirs, IDS, edits={name: edit}, gated=True)
    for source in (other, dict(other), other[name]):
        patched = patch(name, source).on_rows(1).at_columns([5, 6])
        assert_same(ours.run_with_hooks(IDS, fwd_hooks=[patched]), expected)


@torch.no_grad()
def test_masked_heads_are_head_mask(models):
    _, ours = models
    mask = torch.ones(2, ours.cfg.n_heads)
    mask[0, [0, 2]], mask[1, 1] = 0, 0
    masks = [mask_heads(0, [0, 2]), mask_heads(1, 1)]
    got = ours.run_with_hooks(IDS, fwd_hooks=masks)
    assert (got - ours(IDS, head_mask=mask).logits).abs().max() < LOGIT_LIMIT


@torch.no_grad()
def test_no_heads_named_are_all_heads(ours):
    got = ours.run_with_hooks(IDS, fwd_hooks=[mask_heads(0, None)])
    mask = torch.tensor([[0.0] * 6, [1.0] * 6])
    assert (got - ours(IDS, head_mask=mask).logits).abs().max() < LOGIT_LIMIT


@pytest.mark.parametrize("where", [1, "blocks.1.hook_resid_pre"])
@torch.no_grad()
def test_steering_adds_to_the_stream_that_enters_transformers_block(models, where):
    theirs, ours = models

    def add(module, arguments):
        resid = arguments[0].clone()
        resid[0, 4:6] += 3 * PUSH
        return (resid, *arguments[1:])

    handle = theirs.transformer.h[1].register_forward_pre_hook(add)
    expected = theirs(IDS).logits
    handle.remove()
    steered = steer(where, PUSH, coefficient=3).on_rows(0).at_columns([4, 5])
    got = ours.run_with_hooks(IDS, fwd_hooks=[steered])
    assert (got - expected).abs().max() < 1e-5  # transformers' softmax is float32


@pytest.mark.parametrize("alibi", ["hf", "exact"])
@pytest.mark.parametrize("factor", [0, -1, 0.5])
@MASKS
@torch.no_grad()
def test_scaled_slopes_are_a_model_with_those_slopes(models, alibi, factor, mask):
    ours = copy.deepcopy(models[1])
    ours.alibi = alibi
    edited = copy.deepcopy(ours)
    edited.blocks[1].attn.slopes[[0, 2]] *= factor
    got = ours.run_with_hooks(
        IDS, attention_mask=mask, fwd_hooks=[scale_slopes(1, [0, 2], factor=factor)]
    )
    expected = edited(IDS, attention_mask=mask).logits
    seen = SEEN if mask is not None else torch.ones_like(SEEN)
    assert (got - expected)[seen].abs().max() < LOGIT_LIMIT


@torch.no_grad()
def test_a_pattern_from_hand_serves_all_rows_and_heads_and_is_not_normalised(models):
    theirs, ours = models
    pattern = torch.rand(N, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    name = "blocks.0.attn.hook_pattern"
    edit = by_hand(lambda v, at, column: pattern[column], heads=[1, 2])
    expected, _ = straight(theirs, IDS, edits={name: edit})
    got = ours.run_with_hooks(IDS, fwd_hooks=[freeze_pattern(0, [1, 2], pattern=pattern)])
    assert_same(got, expected)


@torch.no_grad()
def test_keys_after_a_frozen_pattern_get_no_attention(models):
    theirs, ours = models
    pattern = straight(theirs, OTHER)[1][name := "blocks.0.attn.hook_pattern"][..., :5]
    padded = torch.nn.functional.pad(pattern, (0, N - 5))
    edit = by_hand(lambda v, at, _: padded[at], heads=[2])
    expected, _ = straight(theirs, IDS, edits={name: edit})
    got = ours.run_with_hooks(IDS, fwd_hooks=[freeze_pattern(0, 2, pattern=pattern)])
    assert_same(got, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_cut_edge_has_no_weight_in_half_precision(dtype):
    ours = bl.BloomForCausalLM.from_hf(make_hf(dtype=dtype))
    with ours.hooks(fwd_hooks=[knock_out(0, 1, keys=[4, 5], queries=[7])]):
        pattern = ours.run_with_cache(IDS, attention_mask=LEFT)[1]["pattern", 0]
    assert (pattern[:, 1, 7, [4, 5]] == 0).all()
    assert (pattern[:, 1, 7].float().sum(-1) - 1).abs().max() < 0.02
    assert (pattern[:, [0, 2, 3, 4, 5], 7][..., [4, 5]] > 0).any()


class FakeTrace:
    """What a trace offers, from a cache."""

    def __init__(self, cache):
        for method, point in {"q": "q", "k": "k", "v": "v", "resid": "resid_pre"}.items():
            setattr(self, method, lambda layer, point=point: cache[point, layer])


@pytest.mark.parametrize("point", ["attn.hook_q", "attn.hook_k", "attn.hook_v", "hook_resid_pre"])
@torch.no_grad()
def test_a_patch_from_a_trace_is_one_from_a_cache(ours, point):
    cache = ours.run_with_cache(OTHER)[1]
    name = f"blocks.1.{point}"
    got, expected = (
        ours.run_with_hooks(IDS, fwd_hooks=[patch(name, source).at_columns(range(3, 7))])
        for source in (FakeTrace(cache), cache)
    )
    assert torch.equal(got, expected)
    with pytest.raises(InputError, match=r"hook_mlp_out in 'FakeTrace'.*hook_resid_pre"):
        patch("blocks.1.hook_mlp_out", FakeTrace(cache))


def test_factors_and_vectors_may_be_learned(ours):
    factor = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    vector = PUSH.clone().requires_grad_()
    edits = [scale_heads(0, [0, 3], factor=factor), steer(1, vector, coefficient=factor)]

    def loss():
        return ours.run_with_hooks(IDS, fwd_hooks=edits, return_type="loss")

    slope, direction = torch.autograd.grad(loss(), [factor, vector])
    tiny = 1e-6
    with torch.no_grad():
        before = loss()
        vector += tiny * direction
        assert (loss() - before) / tiny == pytest.approx(float(direction.square().sum()), rel=1e-3)
        vector -= tiny * direction
    moved = [scale_heads(0, [0, 3], factor=0.5 + tiny), steer(1, PUSH, coefficient=0.5 + tiny)]
    after = ours.run_with_hooks(IDS, fwd_hooks=moved, return_type="loss")
    assert (after - before).item() / tiny == pytest.approx(float(slope), rel=1e-3)
