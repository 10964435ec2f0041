"""transformers' caches: code written for transformers runs unchanged."""

import pytest
import torch
import transformers
from transformers import DynamicCache

import bloomlab as bl
from bloomlab.errors import CacheError, InputError, ShapeError
from bloomlab.model.outputs import PAST
from tests.tiny import distance_in_eps, pair, tokens

N = 10


def limit(dtype):
    return 200 if dtype == torch.float32 else 0


def greedy(model, ids, mask, steps, make=DynamicCache):
    """A generation loop as one writes it for transformers."""
    past, inputs, logits = make(), ids, []
    for _ in range(steps):
        out = model(input_ids=inputs, attention_mask=mask, use_cache=True, **{PAST: past})
        assert out[PAST] is past
        logits.append(out.logits[:, -1])
        inputs = out.logits[:, -1:].argmax(-1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return torch.stack(logits, 1), past


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("left", [0, 3])
def test_a_loop_written_for_transformers_runs_unchanged(dtype, left):
    theirs, ours = pair(dtype=dtype)
    ids, mask = tokens(2, N), torch.ones(2, N, dtype=torch.long)
    mask[0, :left] = 0
    (expected, cache), (got, past) = (greedy(m, ids, mask, 6) for m in (theirs, ours))
    assert distance_in_eps(got, expected) <= limit(dtype)
    for mine, layer in zip(past.layers, cache.layers, strict=True):
        shown = torch.cat([mask, mask.new_ones(2, 5)], 1).bool()
        for a, b in ((mine.keys, layer.keys), (mine.values, layer.values)):
            assert distance_in_eps(
                a.mT.transpose(1, 3)[shown], b.mT.transpose(1, 3)[shown]
            ) <= limit(dtype)


@torch.no_grad()
def test_a_cache_goes_from_one_model_to_the_other_and_back():
    theirs, ours = pair()
    ids, past = tokens(2, N), DynamicCache(config=theirs.config)
    logits = [
        model(ids[:, start : start + 2], **{PAST: past}).logits
        for start, model in zip(range(0, N, 2), (ours, theirs, ours, ours, theirs), strict=True)
    ]
    assert past.get_seq_length() == N
    assert distance_in_eps(torch.cat(logits, 1), theirs(ids).logits) < 200


@torch.no_grad()
def test_what_transformers_does_to_its_cache_is_followed():
    theirs, ours = pair()
    ids, new = tokens(2, N), tokens(4, 1)
    results = []
    for model in (theirs, ours):
        past = DynamicCache()
        model(ids, **{PAST: past})
        past.crop(-3)
        past.batch_repeat_interleave(2)
        past.reorder_cache(torch.tensor([3, 3, 0, 1]))
        logits = [model(new, **{PAST: past}).logits]
        past.reset()
        logits.append(model(new, **{PAST: past}).logits)
        results.append(torch.cat(logits, 1))
    assert distance_in_eps(results[1], results[0]) < 200


@torch.no_grad()
@pytest.mark.parametrize("left", [0, 3])
def test_conversions_both_ways_keep_everything(left):
    theirs, ours = pair()
    ids, mask = tokens(2, N), torch.ones(2, N + 1, dtype=torch.long)
    mask[0, :left] = 0
    past = ours(ids, attention_mask=mask[:, :N]).past_key_values
    cache = past.to_hf()
    assert type(cache) is DynamicCache
    again = bl.KVCache.from_hf(cache, mask)
    assert torch.equal(again.positions, past.positions)
    assert torch.equal(again.valid, past.valid)
    assert (len(again), again.seen, again.n_rows) == (N, N, 2)
    new = tokens(2, 1, seed=5)
    expected = theirs(new, attention_mask=mask, **{PAST: cache}).logits
    assert cache.get_seq_length() == N + 1
    for kept in (past, again):  # copies: neither saw the other's token
        assert distance_in_eps(ours(new, past_key_values=kept).logits, expected) < 200
    forked = past.fork(2)
    assert torch.equal(forked.to_hf().layers[1].values, forked.values(1))


def test_conversions_share_no_memory():
    _, ours = pair()
    past = ours(tokens(1, N)).past_key_values
    before = past.keys(0).clone()
    cache = past.to_hf()
    again = bl.KVCache.from_hf(cache)
    for layer in cache.layers:
        layer.keys.zero_()
    assert torch.equal(past.keys(0), before)
    assert torch.equal(again.keys(0), before)
    assert len(bl.KVCache.from_hf(DynamicCache())) == 0


def test_positions_with_gaps_have_no_counterpart():
    _, ours = pair()
    past = ours(tokens(1, N)).past_key_values
    with pytest.raises(CacheError, match="gaps"):
        past.evict([2]).to_hf()
    assert past.evict([2], reindex=True).to_hf().get_seq_length() == N - 1


class Odd:
    pass


def uneven():
    cache = DynamicCache()
    cache.update(torch.zeros(2, 6, 3, 8), torch.zeros(2, 6, 3, 8), 0)
    cache.update(torch.zeros(2, 6, 2, 8), torch.zeros(2, 6, 2, 8), 1)
    return cache


def half_empty():
    cache = DynamicCache(config=transformers.BloomConfig(n_layer=2))
    cache.update(torch.zeros(2, 6, 3, 8), torch.zeros(2, 6, 3, 8), 0)
    return cache


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ((torch.zeros(1), torch.zeros(1)),), "old format"),
        (lambda: [], "old format"),
        (Odd, "Odd, expected a bl.KVCache"),
        (
            lambda: transformers.EncoderDecoderCache(DynamicCache(), DynamicCache()),
            "EncoderDecoder",
        ),
        (
            lambda: transformers.StaticCache(transformers.BloomConfig(n_layer=2), max_cache_len=9),
            "StaticLayer",
        ),
        (
            lambda: DynamicCache(config=transformers.MistralConfig(sliding_window=4)),
            "DynamicSlidingWindowLayer",
        ),
        (lambda: DynamicCache(offloading=True), "offloading"),
        (uneven, "different shapes"),
        (half_empty, "different shapes"),
    ],
)
def test_other_caches_are_refused(make, text):
    _, ours = pair()
    with pytest.raises(CacheError, match=text):
        ours(tokens(2, 1), past_key_values=make())
    with pytest.raises(CacheError, match=text):
        bl.KVCache.from_hf(make())


def test_a_forward_that_raises_leaves_transformers_cache_as_it_was():
    _, ours = pair()
    ids, past = tokens(2, N), DynamicCache()

    def fail(value, hook):
        raise RuntimeError("in the middle")

    for hooks in (1, 2):  # before and after it holds something
        with pytest.raises(RuntimeError, match="middle"):
            ours.run_with_hooks(
                ids, past_key_values=past, fwd_hooks=[("blocks.1.attn.hook_z", fail)]
            )
        assert past.get_seq_length() == (0 if hooks == 1 else N)
        if hooks == 1:
            ours(ids, past_key_values=past)
    with pytest.raises(ShapeError, match="attention_mask"):
        ours(ids[:, :1], past_key_values=past, attention_mask=torch.ones(2, 3))
    with pytest.raises(CacheError, match="2 rows, the input 1"):
        ours(ids[:1, :1], past_key_values=past)
    other = bl.BloomForCausalLM(bl.BloomConfig(vocab_size=97, hidden_size=48, n_layer=3, n_head=6))
    with pytest.raises(CacheError, match="2 layers"):
        other(ids[:, :1], past_key_values=past)
    assert [layer.keys.shape[2] for layer in past.layers] == [N, N]
    with pytest.raises(ShapeError, match="attention_mask"):
        bl.KVCache.from_hf(past, torch.ones(2, 3))
    with pytest.raises(InputError, match="0s and 1s"):
        bl.KVCache.from_hf(past, "all")
