"""LayerNorm and the branches that path patching forks from its input."""

import pytest
import torch

from tests.tiny import pair, tokens

SCALE, FORK = "blocks.1.ln1.hook_scale", "blocks.1.attn.hook_q_input"


def q_of(model, ids, shift, hooks):
    """q of layer 1 when head 2's input is moved by `shift`."""

    def move(value, hook):
        value[:, :, 2] += shift
        return value

    seen = []
    watch = ("blocks.1.attn.hook_q", lambda value, hook: seen.append(value.clone()))
    model.run_with_hooks(ids, fwd_hooks=[(FORK, move), watch, *hooks])
    return seen[0][:, :, 2]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_frozen_scale_makes_a_branch_linear(in_place):
    """Frozen at its clean value too, which no comparison of values could tell from unfrozen."""
    _, ours = pair(dtype=torch.float64)
    ids = tokens(1, 7)
    _, cache = ours.run_with_cache(ids)
    clean = cache["scale", 1, "ln1"]

    def freeze(value, hook):
        return value.copy_(clean) if in_place else clean

    step = torch.randn(48, dtype=torch.float64)
    for hooks, linear in (([(SCALE, freeze)], True), ([], False)):
        base, once, twice = (q_of(ours, ids, k * step, hooks) for k in range(3))
        bend = (twice - 2 * once + base).abs().max() / (once - base).abs().max()
        assert (bend < 1e-9) == linear


def test_looking_at_the_scale_changes_nothing():
    _, ours = pair(dtype=torch.float64)
    ids = tokens(1, 7)
    step = torch.randn(48, dtype=torch.float64)
    look = (SCALE, lambda value, hook: None)
    torch.testing.assert_close(q_of(ours, ids, step, [look]), q_of(ours, ids, step, []))


def test_a_result_that_broadcasts_is_taken():
    _, ours = pair()
    ids = tokens(2, 7)
    name = "blocks.0.hook_mlp_out"
    got = ours.run_with_hooks(ids, fwd_hooks=[(name, lambda value, hook: torch.zeros(48))])
    expected = ours.run_with_hooks(ids, fwd_hooks=[(name, lambda value, hook: value * 0)])
    assert torch.equal(got, expected)
