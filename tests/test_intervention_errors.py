"""Interventions that cannot be meant are refused, with the reason, and nothing is left behind."""

import pytest
import torch

from bloomlab.errors import CacheError, InputError, ShapeError, UnknownNameError
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
from tests.tiny import pair, tokens

N = 9
IDS = tokens(2, N)
Z = torch.zeros(2, N, 6, 8)
GRID = torch.zeros(2, 6, N, N)


EMBED = steer("hook_embed", torch.zeros(48))


@pytest.fixture(scope="module")
def ours():
    return pair()[1]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: mask_heads("0", 1), InputError, "layer: got '0'"),
        (lambda: mask_heads(-1, 1), InputError, "layer: got -1"),
        (lambda: mask_heads([0, 1], 1), InputError, r"layer: got \[0, 1\], expected one"),
        (lambda: mask_heads(0, []), InputError, r"heads: got \[\]"),
        (lambda: mask_heads(0, True), InputError, "heads: got True"),
        (lambda: mask_heads(0, [1.0]), InputError, r"heads: got \[1.0\]"),
        (lambda: mask_heads(0, torch.tensor([True])), InputError, "heads"),
        (lambda: scale_heads(0, 1, factor="2"), InputError, "factor is '2', expected a number"),
        (lambda: scale_slopes(0, 1, factor=torch.ones(2)), InputError, "factor is"),
        (lambda: mean_heads(0, 1, mean=torch.zeros(8)), InputError, r"mean is \(8,\), expected"),
        (lambda: steer(0, torch.zeros(1, 48)), InputError, r"vector is \(1, 48\), expected"),
        (lambda: steer(0, [0.0] * 48), InputError, "expected a tensor of one axis"),
        (lambda: patch(0, Z), InputError, "hook name is 0"),
        (lambda: patch("blocks.0.attn.hook_z", 3), InputError, "in 'int': expected a tensor, a ca"),
        (lambda: patch("hook_embed", {"hook_embd": Z}), UnknownNameError, "mean 'hook_embd'"),
        (lambda: knock_out(0, 1, keys=[4, 6], queries=[2, 3]), InputError, "come before keys"),
        (lambda: knock_out(0, 1, keys=[]), InputError, "keys: got"),
        (lambda: EMBED.during("prompts"), InputError, "period is 'prompts', expected one of"),
        (lambda: EMBED.at_steps([]), InputError, r"steps: got \[\]"),
        (lambda: EMBED.at_columns([2, -1]), InputError, r"columns: got \[2, -1\]"),
        (lambda: EMBED.on_rows(slice(2)), InputError, r"rows: got slice"),
        (lambda: EMBED.on_rows([[0]]), InputError, r"rows: got \[\[0\]\]"),
        (lambda: EMBED.when([0]), InputError, r"predicate is \[0\], expected a function"),
    ],
)
def test_a_wrong_argument_is_refused_when_it_is_given(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("intervention", "error", "message"),
    [
        (mask_heads(2, 0), UnknownNameError, r"no hook point 'blocks.2.attn.hook_z'"),
        (mask_heads(0, [1, 6]), UnknownNameError, r"no head 6. blocks.0.attn.hook_z has 6, from 0"),
        (patch("hook_embed", Z[..., 0], heads=0), UnknownNameError, "hook_embed has no heads"),
        (mask_heads(0, 1).on_rows([0, 2]), InputError, "no row 2: the batch at .* has 2"),
        (mean_heads(0, 1, mean=Z[0, :3, 0]), ShapeError, r"\(6, 8\), of every head of the layer"),
        (steer("blocks.0.attn.hook_q", torch.zeros(48)), ShapeError, r"\(48,\), expected \(8,\)"),
        (patch("blocks.0.attn.hook_z", Z[:, :4]), ShapeError, "at least 9 columns. It ends before"),
        (patch("blocks.0.attn.hook_z", Z[0]), ShapeError, r"expected \(2, pos, 6, 8\). Batch and"),
        (patch("blocks.0.attn.hook_z", Z[:, :, :2]), ShapeError, r"expected \(2, pos, 6, 8\)"),
        (patch("blocks.0.attn.hook_z", Z[..., :4]), ShapeError, r"expected \(2, pos, 6, 8\)"),
        (patch("hook_embed", torch.zeros(3, N, 48)), ShapeError, r"expected \(2, pos, 48\)"),
        (
            patch("blocks.0.attn.hook_attn_scores", GRID[..., :5]),
            ShapeError,
            r"\(2, 6, pos, at least 9\)",
        ),
        (freeze_pattern(0, 1, pattern=GRID[:, :, :4]), ShapeError, "at least 9 columns"),
        (freeze_pattern(0, 1, pattern=GRID[0]), ShapeError, r"\(2, 6, pos, at least 9\)"),
        (
            knock_out(0, 1, keys=[0, 1], queries=[1, 4]),
            InputError,
            "leaves the query at column 1 no key to see at blocks.0.attn.hook_attn_scores",
        ),
    ],
)
@torch.no_grad()
def test_an_intervention_that_does_not_fit_is_refused_and_leaves_no_hook(
    ours, intervention, error, message
):
    with pytest.raises(error, match=message):
        ours.run_with_hooks(IDS, fwd_hooks=[intervention])
    assert not any(point.fwd_hooks for point in ours.hook_dict.values())


@torch.no_grad()
def test_keys_of_a_thinned_cache_are_not_taken_for_columns(ours):
    past = ours(IDS, use_cache=True).past_key_values.evict([2, 3])
    cut = knock_out(0, 1, keys=[4])
    with pytest.raises(CacheError, match="has 8 keys for 10 columns"):
        ours.run_with_hooks(IDS[:, :1], past_key_values=past, fwd_hooks=cut.hooks(start=N, step=1))
