"""Law 5 at length: no kernel changes the numbers, and memory grows with T, not with T x T."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import bloomlab as bl
from bloomlab.model.alibi import AttentionBias, absolute_alibi, alibi_slopes
from bloomlab.model.block import rounded_gelu, stepwise_gelu
from bloomlab.model.fused import fused_attention, riding, rounded_attention
from bloomlab.model.scores import attention_pattern, attention_scores
from tests.tiny import distance_in_eps, pair, tokens

HALF = (torch.bfloat16, torch.float16)


def ignore(value, hook):
    """A hook that looks and does nothing: its layer runs eagerly."""


def limit(dtype):
    return 10 if dtype in HALF else 200


LONG = [
    pytest.param(6, 1023, marks=pytest.mark.slow),
    pytest.param(3, 2048, marks=pytest.mark.slow),
]
LONG_PROMPTS = [
    pytest.param(1023, True, marks=pytest.mark.slow),
    pytest.param(2048, False, marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def left_padded(rows, length):
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, : length // 3] = 0
    return mask


@pytest.mark.parametrize(("n_head", "length"), [(3, 1), (6, 2), (6, 257), *LONG])
@pytest.mark.parametrize("alibi", ["hf", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_fused_equals_eager_at_length(dtype, alibi, n_head, length):
    _, ours = pair(dtype=dtype, n_head=n_head)
    ours.alibi = alibi
    ids, mask = tokens(2, length), left_padded(2, length)
    fused = ours(ids, attention_mask=mask).logits
    with ours.hooks(fwd_hooks=[(lambda name: name.endswith("pattern"), ignore)]):
        eager = ours(ids, attention_mask=mask).logits
    seen = mask.bool()
    assert distance_in_eps(fused[seen], eager[seen]) < limit(dtype)
    assert bool(fused.isfinite().all())


@pytest.mark.parametrize(("length", "padded"), [(257, True), (259, False), *LONG_PROMPTS])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_long_prompts_equal_transformers(dtype, length, padded):
    theirs, ours = pair(dtype=dtype, n_head=6)
    ids = tokens(2, length)
    mask = left_padded(2, length) if padded else torch.ones(2, length, dtype=torch.long)
    got, expected = (m(ids, attention_mask=mask).logits[mask.bool()] for m in (ours, theirs))
    assert distance_in_eps(got, expected) < limit(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_chunks_over_a_cache_equal_one_forward(dtype):
    _, ours = pair(dtype=dtype, n_head=6)
    ids, mask = tokens(2, 900), left_padded(2, 900)
    expected = ours(ids, attention_mask=mask).logits
    past = bl.KVCache()
    parts = [
        ours(ids[:, s:e], attention_mask=mask[:, :e], past_key_values=past).logits
        for s, e in ((0, 310), (310, 311), (311, 900))
    ]
    seen = mask.bool()
    assert distance_in_eps(torch.cat(parts, 1)[seen], expected[seen]) < limit(dtype)


def made(length, *, past=0, padded=False, dtype=torch.float32, mode="hf", d_head=32, **fields):
    """q, k, v, the bias and slopes of six heads."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 6, n, d_head, generator=generator).to(dtype)
        for n in (length, past + length, past + length)
    )
    mask = torch.ones(2, past + length, dtype=torch.bool)
    mask[0, : 40 * padded] = False
    positions = (mask.cumsum(-1) - 1) * mask
    bias = AttentionBias(
        query_positions=positions[:, past:],
        key_positions=positions,
        keys_seen=mask if padded else None,
        mode=mode,
        dtype=dtype,
        **fields,
    )
    return (q, k, v), bias, alibi_slopes(6)


def plain(q, k, v, bias, slopes):
    """Attention in float64, straight from the definition."""
    alibi = absolute_alibi(slopes, bias.key_positions)
    if bias.mode == "hf":
        alibi = alibi.to(bias.dtype)
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1]) + alibi.double()
    past = bias.n_key - bias.n_query
    hidden = torch.ones(bias.n_query, bias.n_key).triu(past + 1).bool()[None, None]
    if bias.keys_seen is not None:
        hidden = hidden | ~bias.keys_seen[:, None, None]
    scores = scores.masked_fill(hidden, torch.finfo(torch.float32).min)
    return scores.softmax(-1) @ v.double()


@pytest.mark.parametrize("d_head", [32, 64, 80])  # a scale that is inexact, a power of two, neither
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("past", [0, 17])
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_the_bias_rides_on_the_keys_without_loss(dtype, past, padded, d_head):
    """In half precision the way of a GPU, with scores in float32, here on the CPU."""
    qkv, bias, slopes = made(
        600, past=past, padded=padded, dtype=dtype, d_head=d_head, rounded=False
    )
    got = riding(*qkv, bias=bias, slopes=slopes)
    assert got.shape == qkv[0].shape
    assert distance_in_eps(got, plain(*qkv, bias, slopes), dtype) < (
        100 if dtype == torch.float32 else 3
    )
    scores = attention_scores(*qkv[:2], bias=bias, alibi=bias.alibi(slopes))
    eager = attention_pattern(scores, dtype) @ qkv[2]
    assert distance_in_eps(got, eager) < (100 if dtype == torch.float32 else 5)


@pytest.mark.parametrize("mode", ["hf", "exact"])
@pytest.mark.parametrize("length", [1, 200, 600])
def test_fused_attention_is_attention(length, mode):
    qkv, bias, slopes = made(length, past=30, padded=True, mode=mode)
    got = fused_attention(*qkv, bias=bias, slopes=slopes)
    assert distance_in_eps(got, plain(*qkv, bias, slopes), torch.float32) < 100


def test_queries_that_see_nothing_spread_over_all_keys_in_every_block():
    qkv, bias, slopes = made(600, padded=True)
    even = qkv[2][:1].mean(2, keepdim=True).expand(-1, -1, 40, -1)
    for attend in (fused_attention, riding, rounded_attention):
        got = attend(*qkv, bias=bias, slopes=slopes)[:1, :, :40]
        assert distance_in_eps(got, even) < 200


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else [out]:
            if isinstance(one, torch.Tensor):
                self.numel = max(self.numel, one.untyped_storage().nbytes() // one.element_size())
        return out


@pytest.mark.parametrize(("alibi", "padded"), [("hf", False), ("hf", True), ("exact", False)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_of_queries_times_keys_is_made(dtype, padded, alibi):
    _, ours = pair(dtype=dtype, n_head=6)
    ours.alibi = alibi
    sizes = []
    for length in (1024, 2048):
        mask = left_padded(1, length) if padded else None
        with Largest() as largest:
            ours(tokens(1, length), attention_mask=mask)
        sizes.append(largest.numel)
    assert sizes[1] <= 2 * sizes[0]  # linear
    assert sizes[1] < 2048 * 2048


@pytest.mark.parametrize("dtype", HALF)
def test_the_table_of_gelus_holds_what_each_operation_rounds_to(dtype):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).reshape(16, -1)
    expected = every * 0.5 * (1.0 + torch.tanh(0.79788456 * every * (1 + 0.044715 * every * every)))
    got = rounded_gelu(every)
    assert torch.equal(got.isnan(), expected.isnan())
    assert torch.equal(got.nan_to_num(), expected.nan_to_num())
    strided = torch.randn(6, 8).to(dtype).T
    assert torch.equal(rounded_gelu(strided), stepwise_gelu(strided))
