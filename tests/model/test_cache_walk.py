"""Law 2 by random walks: whatever is done to a cache, each row goes on as its own tokens say."""

import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

import bloomlab as bl
from tests.tiny import distance_in_eps, pair, tokens

LIMIT = {torch.float32: 300, torch.bfloat16: 12}


models_of = functools.cache(lambda n_layer, dtype: pair(n_layer=n_layer, dtype=dtype))


class Row:
    """A row as a list of tokens that can be seen: id and position."""

    def __init__(self, seen=(), following=0):
        self.seen, self.following = list(seen), following

    def copy(self):
        return Row(self.seen, self.following)

    def extend(self, ids):
        for i in ids:
            self.seen.append((i, self.following))
            self.following += 1

    def crop(self, n):
        self.following = min([self.following, *(position for _, position in self.seen[n:])])
        self.seen = self.seen[:n]

    def evict(self, gone, reindex):
        self.seen = [(i, position) for i, position in self.seen if position not in gone]
        if reindex:
            self.seen = [(i, position) for position, (i, _) in enumerate(self.seen)]
            self.following = len(self.seen)


def expected_logits(theirs, row, n_new):
    """The last tokens' logits, the row alone: by transformers, or by hand in one layer."""
    ids, positions = (torch.tensor(part) for part in zip(*row.seen, strict=True))
    if len(theirs.transformer.h) > 1:
        return theirs(ids[None]).logits[0, -n_new:]
    body, [block] = theirs.transformer, theirs.transformer.h
    n_head = body.config.n_head
    slopes = build_alibi_tensor(torch.ones(1, 2), n_head, torch.float32)[:, 0, 1]
    hidden = body.word_embeddings_layernorm(body.word_embeddings(ids))
    fused = block.self_attention.query_key_value(block.input_layernorm(hidden))
    q, k, v = fused.view(len(ids), n_head, 3, -1).permute(2, 1, 0, 3)
    scores = q @ k.mT / math.sqrt(q.shape[-1]) + slopes[:, None, None] * positions
    future = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
    read = scores.masked_fill(future, -torch.inf).softmax(-1).to(v.dtype) @ v
    hidden = hidden + block.self_attention.dense(read.transpose(0, 1).flatten(1))
    inner = block.mlp.dense_h_to_4h(block.post_attention_layernorm(hidden))
    hidden = hidden + block.mlp.dense_4h_to_h(F.gelu(inner, approximate="tanh"))
    return theirs.lm_head(body.ln_f(hidden))[-n_new:]


def extend(models, past, rows, data):
    theirs, ours = models
    n, seed = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 99))
    ids, mask = tokens(len(rows), n, seed=seed), None
    if data.draw(st.booleans()):
        mask = torch.rand(len(rows), n, generator=torch.Generator().manual_seed(seed)) < 0.7
        mask[:, -1] |= torch.tensor([not row.seen for row in rows])  # nobody is blind
    attentions = data.draw(st.sampled_from([None, True]))
    shown = (
        None if mask is None else torch.cat([past.valid if past.n_rows else mask[:, :0], mask], 1)
    )
    out = ours(ids, attention_mask=shown, past_key_values=past, output_attentions=attentions)
    visible = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
    for i, row in enumerate(rows):
        before = len(row.seen)
        row.extend(ids[i, visible[i]].tolist())
        if n_new := len(row.seen) - before:
            expected = expected_logits(theirs, row, n_new)
            assert distance_in_eps(out.logits[i, visible[i]], expected) < LIMIT[ours.dtype]


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alibi", ["hf", "exact"])
@pytest.mark.parametrize("n_layer", [1, 2])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_walk_equals_the_rows_alone(n_layer, alibi, dtype, data):
    """With one layer eviction too: other tokens' states do not depend on what is evicted."""
    models = theirs, ours = models_of(n_layer, dtype)
    ours.alibi = alibi
    past, rows = bl.KVCache(), [Row() for _ in range(data.draw(st.integers(1, 2)))]
    actions = ["extend", "fork", "crop", "gather", "group"] + ["evict"] * (n_layer == 1)
    extend(models, past, rows, data)
    for _ in range(data.draw(st.integers(2, 9))):
        match data.draw(st.sampled_from(actions)):
            case "extend":
                extend(models, past, rows, data)
            case "fork" if len(rows) < 9:
                n = data.draw(st.integers(2, 3))
                past, rows = past.fork(n), [row.copy() for row in rows for _ in range(n)]
            case "crop":
                length = data.draw(st.integers(1, max(len(past), 1)))
                if length <= len(past):
                    for row, n in zip(rows, past.valid[:, :length].sum(-1).tolist(), strict=True):
                        row.crop(n)
                    past = past.crop(length)
            case "gather":
                chosen = st.lists(st.integers(-len(rows), len(rows) - 1), min_size=1, max_size=6)
                index = data.draw(chosen)
                past, rows = past.gather(index), [rows[i].copy() for i in index]
            case "group":  # within halves: what they share stays shared
                half = max(len(rows) // 2, 1)
                index = [
                    i // half * half + data.draw(st.integers(0, half - 1))
                    for i in range(len(rows) // half * half)
                ]
                past, rows = past.gather(index), [rows[i].copy() for i in index]
            case "evict":
                end = max(row.following for row in rows)
                gone = data.draw(st.sets(st.integers(0, max(end - 1, 0)), max_size=3))
                reindex = data.draw(st.booleans())
                if end:
                    past = past.evict(sorted(gone), reindex)
                    for row in rows:
                        row.evict(gone, reindex)
        for i, row in enumerate(rows):
            assert past.positions[i, past.valid[i]].tolist() == [p for _, p in row.seen]
            assert past.next_position[i] == row.following
    extend(models, past, rows, data)
