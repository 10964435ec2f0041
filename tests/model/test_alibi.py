"""ALiBi: slopes, positions, and the two modes."""

import math

import pytest
import torch
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

from bloomlab.errors import InputError
from bloomlab.model.alibi import absolute_alibi, alibi_slopes, relative_alibi, token_positions
from tests.tiny import distance_in_eps, pair, tokens


@pytest.mark.parametrize("n_head", [*range(1, 34), 48, 64, 71, 112, 128])
def test_slopes_and_bias_equal_transformers_to_the_last_bit(n_head):
    mask = torch.tensor([[0, 0, 1, 1, 0, 1], [1, 1, 1, 1, 1, 1]])
    theirs = build_alibi_tensor(mask, n_head, torch.float32).view(2, n_head, 1, 6)
    ours = absolute_alibi(alibi_slopes(n_head), token_positions(mask.bool()))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("n", [1, 2, 8, 16, 64])
def test_slopes_of_a_power_of_two_are_the_geometric_series(n):
    series = [2 ** (-8 * (i + 1) / n) for i in range(n)]
    torch.testing.assert_close(alibi_slopes(n), torch.tensor(series))


def test_slopes_are_the_same_under_any_default_device_or_dtype():
    with torch.device("meta"):
        assert torch.equal(alibi_slopes(12), alibi_slopes(12).cpu())


def test_relative_and_absolute_bias_differ_by_a_constant_per_row():
    slopes, positions = alibi_slopes(6), torch.arange(9)[None]
    difference = relative_alibi(slopes, positions, positions) - absolute_alibi(slopes, positions)
    assert (difference - difference[..., :1]).abs().max() < 1e-5


def test_exact_mode_equals_hf_mode_in_float32():
    _, ours = pair()
    ids, mask = tokens(2, 64), torch.ones(2, 64, dtype=torch.long)
    mask[0, :9] = 0
    expected = ours(ids, attention_mask=mask).logits[mask.bool()]
    ours.alibi = "exact"
    assert distance_in_eps(ours(ids, attention_mask=mask).logits[mask.bool()], expected) < 200


def test_exact_mode_has_no_staircase_in_bfloat16():
    """With q = 0 the pattern is ALiBi's alone, known in closed form: proportional to exp(-m d)."""
    _, ours = pair(dtype=torch.bfloat16, n_layer=1)
    with torch.no_grad():
        ours.blocks[0].attn.W_Q[:] = 0
        ours.blocks[0].attn.b_Q[:] = 0
    ids = tokens(1, 1024)
    distance = 1023 - torch.arange(1024)
    expected = torch.softmax(-alibi_slopes(6)[:, None] * distance, -1)
    worst = {}
    for mode in ("hf", "exact"):
        ours.alibi = mode
        pattern = ours(ids, output_attentions=True).attentions[0][0, :, -1].float()
        worst[mode] = (pattern - expected).abs().sum(-1).max().item() / 2
    assert worst["exact"] < 0.005
    assert worst["hf"] > 0.1  # transformers' own numbers, kept on purpose


def test_an_unknown_mode_is_refused():
    _, ours = pair()
    with pytest.raises(InputError, match="'exact'"):
        ours.alibi = "relative"


def test_slopes_may_be_edited_in_place_or_replaced_in_one_layer_only():
    _, ours = pair()
    ids = tokens(1, 9)
    before = ours(ids, output_attentions=True).attentions
    ours.blocks[1].attn.slopes[2] = 0
    after = ours(ids, output_attentions=True).attentions
    assert torch.equal(before[0], after[0])
    changed = (before[1] - after[1]).abs().amax((0, 2, 3)) > 0
    assert changed.tolist() == [False, False, True, False, False, False]
    assert distance_in_eps(ours(ids).logits, ours(ids, output_attentions=True).logits) < 200
    ours.blocks[1].attn.slopes = alibi_slopes(6)
    assert torch.equal(ours(ids, output_attentions=True).attentions[1], before[1])


def test_slopes_keep_float32_in_a_bfloat16_model():
    _, ours = pair()
    assert ours.to(torch.bfloat16).blocks[0].attn.slopes.dtype == torch.float32


def test_gradients_reach_the_slopes():
    _, ours = pair()
    slopes = alibi_slopes(6).requires_grad_()
    ours.blocks[0].attn.slopes = slopes
    ours(tokens(1, 9), return_type="logits").sum().backward()
    step = 1e-2
    values = []
    for sign in (1, -1):
        ours.double().blocks[0].attn.slopes = (
            alibi_slopes(6).double() + sign * step * torch.eye(6)[1]
        )
        values.append(ours(tokens(1, 9), return_type="logits").sum().item())
    assert math.isclose(slopes.grad[1].item(), (values[0] - values[1]) / (2 * step), rel_tol=1e-2)


def test_the_bias_can_be_hooked_and_edited():
    _, ours = pair()
    ids = tokens(1, 9)
    name = "blocks.0.attn.hook_alibi"
    seen = []
    ours.run_with_hooks(ids, fwd_hooks=[(name, lambda value, hook: seen.append(value))])
    expected = absolute_alibi(alibi_slopes(6), torch.arange(9)[None]).expand(1, 6, 9, 9)
    assert torch.equal(seen[0], expected)

    def switch_off(value, hook):
        value[:, 3] = 0

    edited = ours.run_with_hooks(ids, fwd_hooks=[(name, switch_off)])
    ours.blocks[0].attn.slopes[3] = 0
    assert distance_in_eps(edited, ours(ids).logits) < 200
