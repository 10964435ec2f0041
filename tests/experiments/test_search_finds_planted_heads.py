"""Searches and learned masks keep the heads of an induction circuit written by hand.

L0H0 writes the previous token's code, L1H7 finds the token that followed it before and copies it;
all other heads have busy patterns and write nothing.
"""

import math

import pytest
import torch
import transformers

import bloomlab as bl
from bloomlab.experiments.head_gates import learn_gates
from bloomlab.experiments.head_search import prune_order

N_TOKEN, N_HEAD, LENGTH = 16, 8, 8
SHARP, SOFT = (40.0, 60.0, 8.0), (8.0, 16.0, 3.0)
POSITIONS = list(range(LENGTH, 2 * LENGTH - 1))  # where the next token was seen before


def circuit(strengths, *, copy=False):
    """The circuit; with `copy`, L1H6 does all that L1H7 does."""
    push, match, write = strengths
    n, width = N_TOKEN, N_TOKEN * N_HEAD
    hf = transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=n, hidden_size=width, n_layer=2, n_head=N_HEAD)
    ).eval()
    code = torch.cat([torch.eye(n), -torch.eye(n)], 1)
    now, before = torch.zeros(n, width), torch.zeros(n, width)
    now[:, : 2 * n], before[:, 2 * n : 4 * n] = code, code
    scale = math.sqrt(width / 2)  # the norm's, of a code
    read = {name: block / (2 * scale) for name, block in (("now", now), ("before", before))}
    heads = {(0, 0): (-push, "now", scale * before)}
    for head in (6, 7) if copy else (7,):
        heads[1, head] = (match, "before", write * scale * now)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in hf.named_parameters():
            value.fill_(float("layernorm.weight" in name or "ln_f.weight" in name))
        hf.transformer.word_embeddings.weight.copy_(now)
        for layer, block in enumerate(hf.transformer.h):
            attention = block.self_attention
            qkv = attention.query_key_value.weight.view(N_HEAD, 3, n, width)
            out = attention.dense.weight.view(width, N_HEAD, n)
            qkv.copy_(torch.randn(qkv.shape, generator=source) * 0.3)
            for (at, head), (strength, key, written) in heads.items():
                if at == layer:
                    query = strength * math.sqrt(n) * read["now"]
                    qkv[head] = torch.stack([query, read[key], read["now"]])
                    out[:, head] = written.T
    dead = [(i, j) for i in range(2) for j in range(N_HEAD) if (i, j) not in heads]
    return bl.BloomForCausalLM.from_hf(hf), dead


@pytest.fixture(scope="module")
def ids():
    source = torch.Generator().manual_seed(0)
    first = torch.stack([torch.randperm(N_TOKEN, generator=source)[:LENGTH] for _ in range(4)])
    return torch.cat([first, first], 1)


def kept(mask):
    return [tuple(head) for head in mask.nonzero().tolist()]


@pytest.mark.parametrize("strengths", [SHARP, SOFT])
@pytest.mark.parametrize("search", ["one_shot", "iterative", "greedy"])
def test_dead_heads_go_first_by_number_and_score_nothing(ids, search, strengths):
    model, dead = circuit(strengths)
    order = prune_order(model, ids, search=search, positions=POSITIONS)
    assert list(order.heads[:14]) == dead
    assert order.scores[:14] == (0.0,) * 14
    assert min(order.scores[14:]) > 0.3
    assert kept(order.keep(2)) == [(0, 0), (1, 7)]
    if search != "one_shot":
        assert order.metrics[13] == order.clean
        assert order.metrics[15] > order.clean + 1
    spared = prune_order(
        model, ids, search=search, positions=POSITIONS, at_least_k_per_layer=2, progress=False
    )
    assert kept(spared.keep(4)) == [(0, 0), (0, 7), (1, 6), (1, 7)]


@pytest.mark.parametrize(
    "options", [{"penalty": 0.05}, {"method": "subset", "k": 2}], ids=["concrete", "subset"]
)
def test_learned_masks_select_the_planted_heads(ids, options):
    model, _ = circuit(SOFT)
    got = learn_gates(model, ids, positions=POSITIONS, steps=70, rows=8, **options)
    assert kept(got.mask) == kept(got.order.keep(2)) == [(0, 0), (1, 7)]
    assert got.probabilities[got.mask].min() > 0.9
    assert got.probabilities[~got.mask].max() < 0.3
    assert torch.equal(got.order.keep(2), prune_order(model, ids, positions=POSITIONS).keep(2))
    whole = model(ids, return_type="logits")[:, POSITIONS].flatten(0, 1)
    target = ids[:, LENGTH + 1 :].flatten()
    clean = torch.nn.functional.cross_entropy(whole, target).item()
    assert got.history.metric.iloc[-20:].median() < clean + 0.1


def test_one_of_two_copies_is_enough(ids):
    model, _ = circuit(SOFT, copy=True)
    greedy = prune_order(model, ids, search="greedy", positions=POSITIONS)
    learned = learn_gates(model, ids, "subset", k=2, positions=POSITIONS, steps=70, rows=8)
    for mask in (greedy.keep(2), learned.mask):
        first, second = kept(mask)
        assert first == (0, 0)
        assert second in [(1, 6), (1, 7)]
