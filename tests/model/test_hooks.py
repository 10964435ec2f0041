"""Law 4 and 9: each hook fires once, its edits reach all downstream, and nothing is left behind."""

from collections import Counter

import pytest
import torch

from bloomlab.errors import InputError, UnknownNameError
from bloomlab.model.hooks import is_hooked
from tests.points import BATCH, GATED, HEADS, POS, SHAPES, SIZES, assert_same, halve, halved
from tests.straight import straight
from tests.tiny import pair, tokens

every_point = pytest.mark.parametrize("name", SHAPES)


@pytest.fixture(scope="module", params=[False, True], ids=["pre-LN", "post-LN"])
def models(request):
    post = {"apply_residual_connection_post_layernorm": request.param}
    return pair(n_head=HEADS, dtype=torch.float64, **post)


@pytest.fixture(scope="module")
def ours():
    return pair(n_head=HEADS, dtype=torch.float64)[1]


# -- each point ------------------------------------------------------------------------------------


@every_point
@torch.no_grad()
def test_a_point_fires_once_a_forward_with_its_shape(ours, name):
    seen = []
    ours.run_with_hooks(
        tokens(BATCH, POS), fwd_hooks=[(name, lambda v, hook: seen.append(v.shape))]
    )
    assert seen == [tuple(SIZES[axis] for axis in SHAPES[name].split())]


@torch.no_grad()
def test_all_points_fire_once_when_all_are_hooked(ours):
    fired = Counter()
    everywhere = [(lambda _: True, lambda v, hook: fired.update([hook.name]))]
    ours.run_with_hooks(tokens(BATCH, POS), fwd_hooks=everywhere)
    assert fired == dict.fromkeys(SHAPES, 1)


@every_point
@torch.no_grad()
def test_an_identity_hook_changes_nothing(models, name):
    _, ours = models
    ids = tokens(BATCH, POS)
    got = ours.run_with_hooks(ids, fwd_hooks=[(name, lambda value, hook: value)])
    assert (got - ours(ids).logits).abs().max() < 1e-5


@every_point
@torch.no_grad()
def test_an_edit_reaches_everything_downstream(models, name):
    theirs, ours = models
    ids = tokens(BATCH, POS)
    expected, values = straight(theirs, ids, edits={name: halved}, gated=True)
    for edit in (halved, halve):
        with ours.hooks(fwd_hooks=[(name, edit)]):
            got, cache = ours.run_with_cache(ids)
        assert_same(got, expected)
        for other in cache:
            assert_same(cache[other], values[other], other)
    clean = ours(ids).logits
    assert (got[0] - clean[0]).abs().max() > 1e-3
    assert (got[1] - clean[1]).abs().max() < 1e-5


@every_point
def test_an_edit_in_place_keeps_gradients_right(ours, name):
    ids, grads = tokens(BATCH, POS), []
    for edit in (halved, halve):
        ours.zero_grad()
        ours.run_with_hooks(ids, fwd_hooks=[(name, edit)], return_type="loss").backward()
        grads.append(ours.embed.weight.grad.clone())
    assert (grads[0] - grads[1]).abs().max() < 1e-6


# -- single points ---------------------------------------------------------------------------------


@torch.no_grad()
def test_resid_mid_feeds_skip_connection_and_mlp(ours):
    ids = tokens(BATCH, POS)
    clean = ours.run_with_cache(ids)[1]
    with ours.hooks(fwd_hooks=[("blocks.0.hook_resid_mid", halve)]):
        edited = ours.run_with_cache(ids)[1]
    assert torch.equal(edited["resid_mid", 0], halved(clean["resid_mid", 0]))
    assert (edited["mlp_out", 0] - clean["mlp_out", 0]).abs().max() > 1e-3
    both = edited["resid_mid", 0] + edited["mlp_out", 0]
    assert (edited["resid_post", 0] - both).abs().max() < 1e-5


@torch.no_grad()
def test_mlp_in_feeds_the_mlp_only(models):
    _, ours = models
    ids = tokens(BATCH, POS)
    clean = ours.run_with_cache(ids)[1]
    with ours.hooks(fwd_hooks=[("blocks.0.hook_mlp_in", halve)]):
        edited = ours.run_with_cache(ids)[1]
    assert torch.equal(edited["resid_mid", 0], clean["resid_mid", 0])
    gain = edited["mlp_out", 0] - clean["mlp_out", 0]
    assert gain.abs().max() > 1e-3
    assert (edited["resid_post", 0] - clean["resid_post", 0] - gain).abs().max() < 1e-5


@pytest.mark.parametrize("part", "qkv")
@torch.no_grad()
def test_a_split_input_feeds_that_part_of_that_head_only(ours, part):
    def edit(value, hook):
        value[:, :, 2, ::2] *= 0.5

    ids = tokens(BATCH, POS)
    clean = ours.run_with_cache(ids)[1]
    with ours.hooks(fwd_hooks=[(f"blocks.1.attn.hook_{part}_input", edit)]):
        edited = ours.run_with_cache(ids)[1]
    for other in "qkv":
        changed = (edited[other, 1] - clean[other, 1]).abs().amax((0, 1, 3)) > 1e-4
        assert changed.tolist() == [other == part and head == 2 for head in range(HEADS)]
    assert torch.equal(edited["normalized", 1, "ln1"], clean["normalized", 1, "ln1"])


@torch.no_grad()
def test_a_fork_does_not_hide_an_edit_at_its_layer_norm(models):
    """A hook that only reads a head's input, or the MLP's, changes nothing about other edits."""
    _, ours = models
    ids = tokens(BATCH, POS)
    for edited in (
        "ln1.hook_scale",
        "ln1.hook_normalized",
        "ln2.hook_scale",
        "ln2.hook_normalized",
    ):
        edit = [(f"blocks.0.{edited}", halve)]
        expected = ours.run_with_hooks(ids, fwd_hooks=edit)
        watched = [(f"blocks.0.{name}", lambda value, hook: None) for name in GATED]
        for watch in ([w] for w in watched):
            got = ours.run_with_hooks(ids, fwd_hooks=edit + watch)
            assert (got - expected).abs().max() < 2e-5


@torch.no_grad()
def test_a_frozen_scale_makes_a_heads_input_act_linearly(ours):
    """With LayerNorm's scale held, q of an edited input is a straight line in the edit."""
    ids, name = tokens(BATCH, POS), "blocks.1.attn.hook_q_input"
    direction = torch.randn(48, generator=torch.Generator().manual_seed(0))

    def q_at(step):
        hold = ("blocks.1.ln1.hook_scale", lambda value, hook: torch.full_like(value, 2.0))
        move = (name, lambda value, hook: value + step * direction)
        with ours.hooks(fwd_hooks=[hold, move]):
            return ours.run_with_cache(ids, names_filter="blocks.1.attn.hook_q")[1]["q", 1]

    straight_line = (q_at(0.0) + q_at(2.0)) / 2
    assert (q_at(1.0) - straight_line).abs().max() < 1e-5
    centred = (direction - direction.mean()) / 2.0 * ours.blocks[1].ln1.w
    step = torch.einsum("m,hmd->hd", centred, ours.blocks[1].attn.W_Q)
    assert (q_at(1.0) - q_at(0.0) - step).abs().max() < 1e-5


@torch.no_grad()
def test_an_edit_of_the_bias_equals_other_slopes():
    theirs, ours = pair()
    ids = tokens(BATCH, POS)
    got = ours.run_with_hooks(
        ids, fwd_hooks=[(f"blocks.{i}.attn.hook_alibi", lambda v, hook: v * 3) for i in (0, 1)]
    )
    edits = {f"blocks.{i}.attn.hook_alibi": lambda value: value * 3 for i in (0, 1)}
    assert (got - straight(theirs, ids, edits=edits)[0]).abs().max() < 2e-5
    for block in ours.blocks:
        block.attn.slopes = block.attn.slopes * 3
    assert (got - ours(ids).logits).abs().max() < 2e-5


@torch.no_grad()
def test_zeroing_z_or_result_of_a_head_equals_zeroed_output_weights():
    theirs, ours = pair()
    ids = tokens(BATCH, POS)
    theirs.transformer.h[1].self_attention.dense.weight[:, 3 * 8 : 4 * 8] = 0

    def silence(value, hook):
        value[:, :, 3] = 0

    for name in ("z", "result"):
        got = ours.run_with_hooks(ids, fwd_hooks=[(f"blocks.1.attn.hook_{name}", silence)])
        assert (got - theirs(ids).logits).abs().max() < 2e-5


# -- hygiene ---------------------------------------------------------------------------------------


def hooked_points(model):
    return [name for name, point in model.hook_dict.items() if is_hooked(point)]


@pytest.mark.parametrize("direction", ["fwd", "bwd"])
def test_an_unknown_name_is_refused_with_the_nearest_and_leaves_no_hook(ours, direction):
    good, bad = ("blocks.1.attn.hook_z", halve), ("blocks.1.attn.hook_patern", halve)
    pairs = {f"{direction}_hooks": [good, bad]}
    attempts = [
        lambda: ours.run_with_hooks(tokens(1, 3), **pairs),
        lambda: ours.hooks(**pairs).__enter__(),
        lambda: ours.add_hook(*bad, direction),
        lambda: ours.run_with_cache(tokens(1, 3), names_filter=[good[0], bad[0]]),
        lambda: ours.run_with_cache(tokens(1, 3), names_filter=bad[0]),
        lambda: ours.add_caching_hooks(bad[0]),
    ]
    for attempt in attempts:
        with pytest.raises(UnknownNameError, match=r"'blocks\.1\.attn\.hook_pattern'"):
            attempt()
        assert not hooked_points(ours)


def test_an_error_inside_a_hook_leaves_no_hook(ours):
    def fail(value, hook):
        raise ZeroDivisionError

    for run in (ours.run_with_hooks, lambda ids, fwd_hooks: nested_run(ours, ids, fwd_hooks)):
        with pytest.raises(ZeroDivisionError):
            run(tokens(1, 3), fwd_hooks=[("blocks.0.attn.hook_z", halve), ("hook_embed", fail)])
        assert not hooked_points(ours)
        assert not any(point.fwd_hooks for point in ours.hook_points())


def nested_run(model, ids, fwd_hooks):
    with model.hooks(fwd_hooks=fwd_hooks):
        model.run_with_cache(ids)


@torch.no_grad()
def test_nested_contexts_take_away_only_their_own(ours):
    ids = tokens(1, 3)
    first, second = ("blocks.0.hook_attn_out", halve), ("blocks.1.hook_attn_out", halve)
    with ours.hooks(fwd_hooks=[first]):
        outer = ours(ids).logits
        with ours.hooks(fwd_hooks=[second]):
            assert len(hooked_points(ours)) == 2
        assert torch.equal(ours(ids).logits, outer)
    assert not hooked_points(ours)


@torch.no_grad()
def test_hooks_left_attached_stay_until_reset(ours):
    ids, name = tokens(1, 3), "blocks.0.hook_mlp_out"
    clean = ours(ids).logits
    got = ours.run_with_hooks(ids, fwd_hooks=[(name, halve)], reset_hooks_end=False)
    ours.run_with_cache(ids)  # another context at the same level takes nothing away
    assert hooked_points(ours) == [name]
    assert torch.equal(ours(ids).logits, got)
    ours.reset_hooks()
    assert torch.equal(ours(ids).logits, clean)
    ours.add_hook("blocks.0.mlp.out.hook_out", halve)  # an alias
    assert torch.equal(ours(ids).logits, got)
    ours.reset_hooks()


def test_clear_contexts_empties_the_points_notes(ours):
    def note(value, hook):
        hook.ctx["norm"] = value.norm()

    ours.run_with_hooks(tokens(1, 3), fwd_hooks=[("hook_embed", note)])
    assert "norm" in ours.hook_dict["hook_embed"].ctx
    ours.run_with_hooks(tokens(1, 3), fwd_hooks=[("hook_embed", note)], clear_contexts=True)
    assert not ours.hook_dict["hook_embed"].ctx


@torch.no_grad()
def test_the_same_input_gives_the_same_logits_after_any_hook(ours):
    ids = tokens(BATCH, POS)
    clean = ours(ids).logits
    for name in SHAPES:
        ours.run_with_hooks(ids, fwd_hooks=[(name, halve)])
    assert torch.equal(ours(ids).logits, clean)


@pytest.mark.parametrize("wrong", [3, torch.ones(1, 2)])
def test_a_hook_that_returns_something_else_is_named(wrong):
    _, ours = pair()
    with pytest.raises(InputError, match=r"blocks\.0\.hook_mlp_out"):
        ours.run_with_hooks(
            tokens(1, 4), fwd_hooks=[("blocks.0.hook_mlp_out", lambda value, hook: wrong)]
        )


def test_hooks_that_are_no_pairs_are_refused():
    _, ours = pair()
    for wrong in (
        ("blocks.0.hook_mlp_out", print),
        [("blocks.0.hook_mlp_out",)],
        [(("z", 0), print)],
    ):
        with pytest.raises(InputError, match="name"):
            ours.run_with_hooks(tokens(1, 4), fwd_hooks=wrong)
