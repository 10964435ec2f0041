"""Policies against a slow reference: lists of tokens, and transformers' weights and masks."""

import math
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

import bloomlab as bl
from bloomlab.errors import CacheError
from bloomlab.model.policies import Full
from tests.tiny import distance_in_eps, pair, tokens

N = 14
SPLIT = [6, 1, 1, 3, 1, 1, 1]  # a prompt, then single tokens and a chunk


def parts(split):
    ends = [0, *torch.tensor(split).cumsum(0).tolist()]
    return [slice(start, end) for start, end in pairwise(ends)]


class Slow:
    """One row of text through transformers' weights, its cache plain lists of tokens."""

    def __init__(self, theirs, drop, reindex):
        self.body, self.head = theirs.transformer, theirs.lm_head
        self.drop, self.reindex = drop, reindex
        self.tokens, self.next = [], 0  # a token: position, received, keys and values by layer

    def __call__(self, ids):
        start = len(self.tokens)
        for _ in ids:
            self.tokens.append({"position": self.next, "received": 0.0, "k": [], "v": []})
            self.next += 1
        n_head, width = self.body.config.n_head, self.body.config.hidden_size
        positions = [token["position"] for token in self.tokens]
        alibi = build_alibi_tensor(torch.ones(1, self.next), n_head, torch.float32)[:, 0, positions]
        hidden = self.body.word_embeddings_layernorm(self.body.word_embeddings(ids))
        for block in self.body.h:
            fused = block.self_attention.query_key_value(block.input_layernorm(hidden))
            q, k, v = fused.view(len(ids), n_head, 3, -1).unbind(2)
            for token, key, value in zip(self.tokens[start:], k, v, strict=True):
                token["k"].append(key)
                token["v"].append(value)
            layer, read = len(self.tokens[start]["k"]) - 1, []
            for i, query in enumerate(q):
                visible = self.tokens[: start + i + 1]
                keys = torch.stack([token["k"][layer] for token in visible], 1)
                values = torch.stack([token["v"][layer] for token in visible], 1)
                scores = (keys @ query[..., None])[..., 0] / math.sqrt(width // n_head)
                weights = (scores + alibi[:, : len(visible)]).softmax(-1)
                for token, weight in zip(visible, weights.sum(0), strict=True):
                    token["received"] += float(weight)
                read.append((weights[..., None] * values).sum(1).flatten())
            hidden = hidden + block.self_attention.dense(torch.stack(read))
            mlp, inner = block.mlp, block.post_attention_layernorm(hidden)
            hidden = hidden + mlp.dense_4h_to_h(
                F.gelu(mlp.dense_h_to_4h(inner), approximate="tanh")
            )
        self.tokens = self.drop(self.tokens)
        if self.reindex:
            for position, token in enumerate(self.tokens):
                token["position"] = position
            self.next = len(self.tokens)
        return self.head(self.body.ln_f(hidden))


def sink_window(sinks, window):
    def drop(tokens):
        last = len(tokens) - window
        return [token for i, token in enumerate(tokens) if i < sinks or i >= last]

    return drop


def heavy_hitters(heavy, recent):
    def drop(tokens):
        old, new = tokens[: max(len(tokens) - recent, 0)], tokens[-recent:]
        best = sorted(old, key=lambda token: -token["received"])[:heavy]
        return [token for token in old if any(token is b for b in best)] + new

    return drop


def kept_by(reindex):
    return {
        "sinks": (bl.SinkWindow(sinks=2, window=3, reindex=reindex), sink_window(2, 3)),
        "no sinks": (bl.SinkWindow(sinks=0, window=4, reindex=reindex), sink_window(0, 4)),
        "heavy": (bl.HeavyHitters(heavy=3, recent=2, reindex=reindex), heavy_hitters(3, 2)),
        "no heavy": (bl.HeavyHitters(heavy=0, recent=3, reindex=reindex), heavy_hitters(0, 3)),
    }


@torch.no_grad()
@pytest.mark.parametrize("alibi", ["hf", "exact"])
@pytest.mark.parametrize("reindex", [True, False])
@pytest.mark.parametrize("name", ["sinks", "no sinks", "heavy", "no heavy"])
@pytest.mark.parametrize("left", [0, 2])
def test_a_policy_equals_lists_of_tokens(left, name, reindex, alibi):
    """Rows choose for themselves; padding on the left changes nothing."""
    theirs, ours = pair()
    ours.alibi = alibi
    policy, drop = kept_by(reindex)[name]
    ids, mask = tokens(3, N), torch.ones(3, N, dtype=torch.long)
    mask[1, :left], ids[1, :left] = 0, 3
    past = bl.KVCache(policy=policy)
    slow = [Slow(theirs, drop, reindex) for _ in ids]
    for part in parts(SPLIT):
        got = ours(ids[:, part], attention_mask=mask[:, : part.stop], past_key_values=past).logits
        for row, reference in enumerate(slow):
            shown = mask[row, part].bool()
            expected = reference(ids[row, part][shown])
            assert distance_in_eps(got[row][shown], expected) < 500
            mine = past.positions[row, past.valid[row]].tolist()
            assert mine == [token["position"] for token in reference.tokens]
    assert past.seen == N
    assert len(past) == max(len(reference.tokens) for reference in slow)
    assert past.nbytes == 2 * 2 * 3 * len(past) * 48 * 4  # nothing is kept beyond


@torch.no_grad()
def test_sinks_and_window_are_what_transformers_sees_through_a_mask():
    """One layer: states do not depend on what was dropped."""
    theirs, ours = pair(n_layer=1)
    ids = tokens(2, N)
    past = bl.KVCache(policy=bl.SinkWindow(sinks=2, window=4))
    for column in range(N):
        mask = torch.ones(2, column + 1, dtype=torch.long)
        mask[:, 2 : max(column - 4, 2)] = 0
        got = ours(ids[:, column : column + 1], past_key_values=past).logits
        expected = theirs(ids[:, : column + 1], attention_mask=mask).logits[:, -1:]
        assert distance_in_eps(got, expected) < 200


@torch.no_grad()
@pytest.mark.parametrize(
    "policy", [bl.SinkWindow(sinks=2, window=3), bl.HeavyHitters(heavy=2, recent=3)]
)
def test_forks_crops_and_gathers_carry_the_policy_and_what_it_knows(policy):
    theirs, ours = pair()
    drop = {bl.SinkWindow: sink_window(2, 3), bl.HeavyHitters: heavy_hitters(2, 3)}[type(policy)]
    ids, new = tokens(2, 5), tokens(6, 4, seed=7)
    past = bl.KVCache(policy=policy)
    ours(torch.cat([ids, tokens(2, 1)], 1)[:, :5], past_key_values=past)
    past = past.fork(3).gather([5, 4, 3, 2, 1, 0])
    rows = ids.repeat_interleave(3, 0).flip(0)
    slow = [Slow(theirs, drop, policy.reindex) for _ in rows]
    for reference, row in zip(slow, rows, strict=True):
        reference(row)
    for column in range(4):
        got = ours(new[:, column : column + 1], past_key_values=past).logits
        for row, reference in enumerate(slow):
            assert distance_in_eps(got[row], reference(new[row, column : column + 1])) < 500
    cropped = past.crop(-1)
    assert cropped.policy is policy
    assert (len(cropped), cropped.seen) == (len(past) - 1, past.seen - 1)
    assert past.crop(0).policy is policy


@torch.no_grad()
def test_a_pruned_head_votes_for_no_token():
    """A head mask silences the head's attention too, as if it were not there."""
    _, ours = pair()
    policy, ids = bl.HeavyHitters(heavy=2, recent=1), tokens(1, 9)
    mask = torch.ones(2, 6)
    mask[:, :5] = 0
    past = bl.KVCache(policy=policy)
    attentions = ours(ids, head_mask=mask, past_key_values=past, output_attentions=True).attentions
    received = torch.stack([a[0, 5].sum(0) for a in attentions]).sum(0)
    best = sorted(received[:-1].topk(2).indices.tolist())
    assert past.positions.tolist() == [[*best, 8]]


def test_a_full_cache_is_one_without_policy():
    _, ours = pair()
    ids, past = tokens(2, N), bl.KVCache(policy=Full())
    for part in parts(SPLIT):
        ours(ids[:, part], past_key_values=past)
    assert len(past) == N
    assert torch.equal(past.positions[1], torch.arange(N))


def test_a_policy_does_not_touch_forks_made_before():
    _, ours = pair()
    plain = ours(tokens(1, 8)).past_key_values
    thin = plain.fork(4)
    thin.policy = bl.SinkWindow(sinks=1, window=2)
    before = plain.keys(0).clone()
    ours(tokens(4, 1), past_key_values=thin)
    assert (len(plain), len(thin)) == (8, 3)
    assert torch.equal(plain.keys(0), before)


@pytest.mark.parametrize("padded", [False, True])
def test_a_mask_may_cover_all_tokens_ever_seen(padded):
    _, ours = pair()
    ids, mask = tokens(2, N), torch.ones(2, N, dtype=torch.long)
    mask[0, : 3 * padded] = 0
    results = []
    for width in ("seen", "held", "none"):
        past = bl.KVCache(policy=bl.SinkWindow(sinks=1, window=3))
        ours(ids[:, :8], attention_mask=mask[:, :8], past_key_values=past)
        new = mask[:, 8:10].clone()
        new[1, 0] = width == "none"  # padding among the new tokens is heeded
        shown = {
            "seen": torch.cat([mask[:, :8], new], 1),
            "held": torch.cat([past.valid.long(), new], 1),
            "none": None,
        }[width]
        columns = torch.arange(8, 10)
        results.append(
            ours(ids[:, 8:10], attention_mask=shown, past_key_values=past, cache_position=columns)
        )
    assert torch.equal(results[0].logits, results[1].logits)
    assert not torch.equal(results[0].logits[1, 1], results[2].logits[1, 1])
    with pytest.raises(bl.errors.ShapeError, match="ever seen"):
        ours(ids[:, :1], attention_mask=torch.ones(2, 3), past_key_values=past)


class Wrong:
    reindex = watches_pattern = False

    def __init__(self, keep):
        self.keep = keep

    def kept(self, valid, received):
        return self.keep


@pytest.mark.parametrize("keep", [[True], torch.ones(2, 4), torch.ones(2, 3, dtype=torch.bool)])
def test_a_policy_that_answers_nonsense_leaves_the_cache_as_it_was(keep):
    _, ours = pair()
    past = bl.KVCache(policy=Wrong(None))
    ours(tokens(2, 3), past_key_values=past)
    past.policy = Wrong(keep)
    with pytest.raises(CacheError, match="policy"):
        ours(tokens(2, 1), past_key_values=past)
    assert (len(past), past.seen) == (3, 3)
    past.policy = None
    got = ours(tokens(2, 1), past_key_values=past).logits
    expected = ours(torch.cat([tokens(2, 3), tokens(2, 1)], 1)).logits[:, -1:]
    assert distance_in_eps(got, expected) < 200


@pytest.mark.parametrize(
    "make",
    [
        lambda: bl.SinkWindow(sinks=-1),
        lambda: bl.SinkWindow(window=0),
        lambda: bl.HeavyHitters(heavy=-1),
        lambda: bl.HeavyHitters(recent=0),
        lambda: bl.KVCache(policy="sinks"),
        lambda: bl.KVCache(policy=bl.SinkWindow),
    ],
)
def test_impossible_policies_are_refused(make):
    with pytest.raises(CacheError, match="expected"):
        make()
