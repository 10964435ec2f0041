"""Law 5: fused = eager; and head masks."""

import pytest
import torch

import bloomlab as bl
from bloomlab.errors import ShapeError
from tests.tiny import distance_in_eps, make_hf, pair, tokens

PATTERN = "blocks.1.attn.hook_pattern"


def ignore(value, hook):
    """A hook that looks and does nothing: its layer runs eagerly."""


@pytest.mark.parametrize("alibi", ["hf", "exact"])
@pytest.mark.parametrize("length", [1, 2, 63, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_fused_equals_eager(dtype, length, alibi):
    _, ours = pair(dtype=dtype, n_head=6)
    ours.alibi = alibi
    ids, mask = tokens(2, length), torch.ones(2, length, dtype=torch.long)
    mask[0, : length // 3] = 0
    rows = mask.bool()
    limit = 200 if torch.finfo(dtype).bits >= 32 else 10
    for attention_mask in (None, mask):
        fused = ours(ids, attention_mask=attention_mask).logits
        with ours.hooks(fwd_hooks=[(lambda name: name.endswith("pattern"), ignore)]):
            eager = ours(ids, attention_mask=attention_mask).logits
        assert distance_in_eps(fused[rows], eager[rows]) < limit


def test_only_hooked_layers_are_eager(monkeypatch):
    _, ours = pair(n_layer=3)
    ran = []
    for layer, block in enumerate(ours.blocks):
        for way in ("_eager", "_fused"):
            run = getattr(block.attn, way)
            monkeypatch.setattr(
                block.attn,
                way,
                lambda *a, run=run, way=way, n=layer: (ran.append((n, way)), run(*a))[1],
            )
    ours.run_with_hooks(tokens(1, 5), fwd_hooks=[(PATTERN, ignore)])
    assert ran == [(0, "_fused"), (1, "_eager"), (2, "_fused")]


def test_gradients_are_the_same_fused_and_eager():
    _, ours = pair()
    ids = tokens(2, 20)
    gradients = []
    for hooks in ([], [(lambda name: name.endswith("pattern"), ignore)]):
        ours.zero_grad()
        with ours.hooks(fwd_hooks=hooks):
            ours(ids, labels=ids).loss.backward()
        gradients.append(torch.cat([value.grad.flatten() for value in ours.parameters()]))
    assert distance_in_eps(*gradients) < 200


def shaped(values, shape):
    """`values` [batch layer head] in one of the three shapes a head mask may have."""
    return {"head": values[0, 0], "layer head": values[0], "batch layer head": values}[shape]


@pytest.mark.parametrize("shape", ["head", "layer head", "batch layer head"])
def test_a_head_mask_scales_heads_as_scaled_output_weights_do(shape):
    _, ours = pair()
    ids = tokens(2, 9)
    values = torch.rand(2, 2, 6).round(decimals=1)
    mask = shaped(values, shape)
    got = ours(ids, head_mask=mask).logits
    full = mask.expand(2, 2, 6)
    for row in range(2):
        theirs = make_hf()  # no head mask in transformers 5: scale the columns of `dense` instead
        with torch.no_grad():
            for layer, block in enumerate(theirs.transformer.h):
                block.self_attention.dense.weight *= full[row, layer].repeat_interleave(8)
        assert distance_in_eps(got[row], theirs(ids).logits[row]) < 200


@pytest.mark.parametrize("length", [1, 9])
def test_returned_attentions_are_the_masked_ones(length):
    _, ours = pair()
    ids = tokens(2, length)
    mask = torch.ones(2, 6)
    mask[1, 4], mask[0, 2] = 0, 0.5
    masked = ours(ids, head_mask=mask, output_attentions=True).attentions
    rows = torch.stack([pattern.sum(-1)[0, :, 0] for pattern in masked])
    torch.testing.assert_close(rows, mask)
    # the hook sees the pattern itself, and z after the mask
    _, cache = ours.run_with_cache(ids, head_mask=mask)
    torch.testing.assert_close(cache["pattern", 1].sum(-1), torch.ones(2, 6, length))
    assert cache["z", 1][:, :, 4].abs().max() == 0


def test_gradients_flow_through_the_head_mask():
    _, ours = pair()
    ids = tokens(2, 9)
    mask = torch.ones(2, 2, 6, requires_grad=True)
    ours(ids, head_mask=mask, labels=ids).loss.backward()
    ours.double()
    step = 1e-3
    for layer, head in ((0, 1), (1, 5)):
        losses = []
        for sign in (1, -1):
            moved = torch.ones(2, 6, dtype=torch.float64)
            moved[layer, head] += sign * step
            losses.append(ours(ids, head_mask=moved, labels=ids).loss.item())
        slope = (losses[0] - losses[1]) / (2 * step)
        assert abs(mask.grad[:, layer, head].sum().item() - slope) < 1e-4


def test_a_mask_of_ones_changes_nothing():
    _, ours = pair()
    ids = tokens(2, 9)
    assert torch.equal(ours(ids).logits, ours(ids, head_mask=torch.ones(2, 6)).logits)


@pytest.mark.parametrize("shape", [(5,), (3, 6), (6, 2), (3, 2, 6), (1, 1, 2, 6), ()])
def test_a_head_mask_of_another_shape_is_refused(shape):
    _, ours = pair()
    with pytest.raises(ShapeError, match=r"\[layer head\]"):
        ours(tokens(2, 9), head_mask=torch.ones(shape))


def test_every_class_takes_head_masks():
    for kind in ("BloomModel", "BloomForSequenceClassification", "BloomForTokenClassification"):
        model = getattr(bl, kind).from_hf(make_hf(kind))
        ids = tokens(2, 9)
        assert not torch.equal(model(ids)[0], model(ids, head_mask=torch.zeros(6))[0])
