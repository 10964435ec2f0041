"""Rebuilt attention against the hooks of a whole forward, closed forms and brute force."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import bloomlab as bl
from bloomlab.analysis.roles import content_free_pattern
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.session.run import difference_tiles, run_text
from tests.session.oracles import EDITS, edits_of, patterns_of, whole
from tests.tiny import pair, tokens

NONE = edits_of()
N = 13
CONFIGS = {
    "hf": {},
    "exact": {},
    "after the norm": {"apply_residual_connection_post_layernorm": True},
    "4 heads": {"n_head": 4, "n_layer": 3},
}


def model_of(config="hf", **fields):
    _, model = pair(**CONFIGS[config], **fields)
    model.alibi = "exact" if config == "exact" else "hf"
    return model


def text(n=N):
    ids = tokens(1, n // 2 + 1)
    ids[0, 1:2] = 3  # the id of padding is a token like any other
    return torch.cat([ids, ids], 1)[:, :n]


def run_of(model, ids, edits=None):
    none = edits_of(model.config.n_layer, model.config.n_head)
    clean = run_text(model, ids, none)
    return clean if edits is None else run_text(model, ids, edits, clean)


@pytest.mark.parametrize("n", [1, 2, N])
@pytest.mark.parametrize("config", CONFIGS)
def test_every_pattern_is_that_of_the_forward(config, n):
    model, ids = model_of(config), text(n)
    found = run_of(model, ids).patterns()
    np.testing.assert_allclose(found, patterns_of(whole(model, ids)[1], model), atol=1e-5)
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_patterns_are_transformers(config):
    theirs, model = pair(**CONFIGS[config])
    ids = text()
    theirs.set_attn_implementation("eager")
    with torch.no_grad():
        expected = theirs(ids, output_attentions=True).attentions
    run = run_of(model, ids)
    for layer, pattern in enumerate(expected):
        np.testing.assert_allclose(run.patterns([layer])[0], pattern[0], atol=1e-5)


@pytest.mark.parametrize("config", ["hf", "exact"])
def test_patterns_in_half_precision_differ_by_rounding(config):
    model = model_of(config, dtype=torch.bfloat16)
    found = run_of(model, text()).patterns()
    expected = patterns_of(whole(model, text())[1], model)
    np.testing.assert_allclose(found, expected, atol=0.03)
    assert np.abs(found - expected).mean() < 0.002


def test_patterns_of_the_packaged_model_are_those_of_the_forward(demo):
    ids = demo.to_tokens("The cat sat on the mat. The cat sat on")
    found = run_of(demo, ids).patterns()
    np.testing.assert_allclose(found, patterns_of(whole(demo, ids)[1], demo), atol=1e-5)


@pytest.mark.parametrize("name", ["slopes", "late slopes", "all"])
def test_edited_slopes_are_in_every_pattern(name):
    model, ids = model_of(), text()
    run = run_of(model, ids, EDITS[name])
    _, cache = whole(model, ids, EDITS[name])
    np.testing.assert_allclose(run.patterns(), patterns_of(cache, model), atol=1e-5)


@pytest.mark.parametrize("queries", [[N - 1], [-1], [0], [5, 2], [2, 2], range(3, 9), np.arange(N)])
@pytest.mark.parametrize("quantity", ["pattern", "value", "content", "alibi"])
def test_some_queries_are_rows_of_all(quantity, queries):
    attention = run_of(model_of(), text(), EDITS["slopes"]).attention
    whole_heads = attention.heads(quantity, 1, [4, 0])
    some = attention.heads(quantity, 1, [4, 0], queries)
    torch.testing.assert_close(some, whole_heads[:, list(queries)], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("queries", [[], [N], [-N - 1], [1.5], ["x"], 3, slice(0, 2)])
def test_queries_are_columns_of_the_text(queries):
    with pytest.raises(InputError, match="expected some of 0 to 12"):
        run_of(model_of(), text()).pattern(0, 0, queries)


@pytest.mark.parametrize("config", CONFIGS)
def test_content_is_a_softmax_without_alibi(config):
    model, ids = model_of(config), text()
    _, cache = whole(model, ids)
    run = run_of(model, ids)
    hidden = torch.ones(N, N).triu(1).bool()
    for layer in range(run.n_layer):
        q, k = (cache[f"blocks.{layer}.attn.hook_{part}"][0] for part in "qk")
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        expected = scores.masked_fill(hidden, -math.inf).softmax(-1)
        found = run.patterns([layer], quantity="content")[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("config", ["hf", "exact"])
def test_alibi_is_the_pattern_of_equal_tokens(config):
    model, ids = model_of(config), text()
    attended = torch.ones(1, N, dtype=torch.bool)
    for layer, factors in enumerate(EDITS["slopes"].slopes):
        slopes = model.blocks[layer].attn.slopes
        for edits, wanted in ((None, slopes), (EDITS["slopes"], slopes * torch.tensor(factors))):
            found = run_of(model, ids, edits).patterns([layer], quantity="alibi")[0]
            np.testing.assert_allclose(found, content_free_pattern(wanted, attended)[0], atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS)
def test_value_is_attention_times_the_length_of_what_is_written(config):
    model, ids = model_of(config), text()
    _, cache = whole(model, ids)
    run = run_of(model, ids)
    for layer, block in enumerate(model.blocks):
        v, weights = cache[f"blocks.{layer}.attn.hook_v"][0], block.attn.o.weight.detach()
        d_head = v.shape[-1]
        for head in range(run.n_head):
            columns = weights[:, head * d_head : (head + 1) * d_head]
            length = (v[:, head] @ columns.T).norm(dim=-1)
            expected = cache[f"blocks.{layer}.attn.hook_pattern"][0, head] * length
            found = run.pattern(layer, head, quantity="value")
            np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("edits", [None, EDITS["slopes"], EDITS["all"]])
@pytest.mark.parametrize("config", ["hf", "exact"])
def test_content_and_bias_sum_to_the_scores_up_to_a_constant(config, edits):
    model, ids = model_of(config), text()
    run = run_of(model, ids, edits)
    _, cache = whole(model, ids, edits)
    for layer in range(2):
        scores = cache[f"blocks.{layer}.attn.hook_attn_scores"][0]
        for head in range(6):
            for query in (0, 7, N - 1):
                content, bias, pattern = run.scores(layer, head, query)
                difference = content + bias - scores[head, query, : query + 1].numpy()
                np.testing.assert_allclose(difference, difference[0], atol=1e-4)
                assert bias[-1] == 0
                weights = np.exp(content + bias - (content + bias).max())
                np.testing.assert_allclose(pattern, weights / weights.sum(), atol=1e-5)


def test_scores_are_of_a_query_that_is_there():
    run = run_of(model_of(), text())
    for query in (-1, N):
        with pytest.raises(InputError, match=f"no query {query}"):
            run.scores(0, 0, query)


@pytest.mark.parametrize("quantity", ["pattern", "value", "content", "alibi"])
@pytest.mark.parametrize("size", [1, 4, N - 1, N, 64])
def test_tiles_are_the_largest_of_their_cells(size, quantity):
    run = run_of(model_of(), text())
    for layer in range(2):
        tiles, sinkless, _ = run.tiles(layer, size, quantity=quantity)
        whole_heads = torch.tensor(run.patterns([layer], quantity=quantity)[0])
        n = min(size, N)
        expected = F.adaptive_max_pool2d(whole_heads[None], n)[0]
        np.testing.assert_allclose(tiles, expected, atol=1e-6)
        whole_heads[:, :, 0] = 0
        expected = F.adaptive_max_pool2d(whole_heads[None], n)[0]
        np.testing.assert_allclose(sinkless, expected[:, :, 0], atol=1e-6)


def test_tiles_do_not_depend_on_how_many_heads_are_held(monkeypatch):
    expected = run_of(model_of(), text()).tiles(1, 5)
    monkeypatch.setattr("bloomlab.session.attention.CELLS", 2 * N * N)
    run = run_of(model_of(), text())
    for found, wanted in zip(run.tiles(1, 5), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    mean = run.attention.mean(1)
    np.testing.assert_allclose(mean, run.patterns([1])[0].mean(0), atol=1e-6)


def test_a_tile_of_a_difference_is_the_cell_farthest_from_0():
    model, ids = model_of(), text()
    clean, edited = (run_of(model, ids, edits) for edits in (None, EDITS["all"]))
    tiles, first, stats = difference_tiles(edited, clean, 1, 5)
    change = edited.patterns([1])[0] - clean.patterns([1])[0]
    edges = [(i * N // 5, -(-(i + 1) * N // 5)) for i in range(5)]
    for row, (top, bottom) in enumerate(edges):
        for column, (left, right) in enumerate(edges):
            cells = change[:, top:bottom, left:right].reshape(6, -1)
            farthest = np.abs(cells).argmax(1)
            expected = cells[np.arange(6), farthest]
            np.testing.assert_allclose(tiles[:, row, column], expected, atol=1e-6)
    assert (first == tiles[:, :, 0]).all()
    np.testing.assert_array_equal(stats, edited.tiles(1, 5)[2])


def test_stats_are_counted_from_the_pattern():
    run, ids = run_of(model_of(), text()), text()[0].tolist()
    for layer, patterns in enumerate(run.patterns().astype(float)):
        _, _, stats = run.tiles(layer, 4)
        for head, pattern in enumerate(patterns):
            entropy = [-sum(p * math.log2(p) for p in row if p > 0) for row in pattern]
            distance = [
                sum(p * (q - k) for k, p in enumerate(row)) for q, row in enumerate(pattern)
            ]
            same = {q: [k for k in range(q) if ids[k] == ids[q]] for q in range(N)}
            after = {q: [k + 1 for k in keys] for q, keys in same.items()}
            targets = (
                {q: [0] for q in range(1, N)},
                {q: [q - 1] for q in range(1, N)},
                same,
                after,
            )
            scores = [
                np.mean([pattern[q, keys].sum() for q, keys in some.items() if keys])
                for some in targets
            ]
            expected = [np.mean(entropy), np.mean(distance), *scores]
            np.testing.assert_allclose(stats[head], expected, atol=1e-5)


def test_other_quantities_have_no_stats():
    assert np.isnan(run_of(model_of(), text()).tiles(0, 4, quantity="content")[2]).all()


def test_a_pruned_head_is_0_and_cannot_be_asked():
    model, ids = bl.prune_heads(model_of(), {0: [1, 4]}), text()
    run = run_of(model, ids)
    np.testing.assert_allclose(run.patterns(), patterns_of(whole(model, ids)[1], model), atol=1e-5)
    assert (run.patterns()[0, [1, 4]] == 0).all()
    tiles, sinkless, stats = run.tiles(0, 4)
    assert (tiles[[1, 4]] == 0).all()
    assert (sinkless[[1, 4]] == 0).all()
    assert np.isnan(stats[:, 0]).tolist() == [False, True, False, False, True, False]
    assert (run.last_rows()[0, [1, 4]] == 0).all()
    for asked in (run.pattern, lambda layer, head: run.scores(layer, head, 3)):
        with pytest.raises(InputError, match="L0H4"):
            asked(0, 4)


@pytest.mark.parametrize("pruned", [{}, {0: [1, 4]}, {0: range(6)}])
def test_rollout_is_the_brute_force_recursion(pruned):
    model = bl.prune_heads(model_of(), pruned) if pruned else model_of()
    run = run_of(model, text())
    flow = np.eye(N)
    for layer, block in enumerate(model.blocks):
        heads, before = list(block.attn.heads), flow.copy()
        for query in range(N if heads else 0):
            through = run.patterns()[layer, heads, query].mean(0) @ before
            flow[query] = (before[query] + through) / 2
        np.testing.assert_allclose(run.attention.rollout(layer), flow, atol=1e-5)
        np.testing.assert_allclose(flow.sum(-1), 1, atol=1e-5)
        if heads:
            mean = run.patterns()[layer, heads].mean(0)
            np.testing.assert_allclose(run.attention.mean(layer), mean, atol=1e-6)


def test_the_last_rows_are_those_of_the_last_query():
    run = run_of(model_of(), text())
    np.testing.assert_allclose(run.last_rows(), run.patterns()[:, :, -1], atol=1e-5)


def test_what_is_not_there_is_named():
    run = run_of(model_of(), text())
    with pytest.raises(UnknownNameError, match="patern"):
        run.pattern(0, 0, quantity="patern")
    for layer in (-1, 2):
        for asked in (run.pattern, lambda layer, _: run.tiles(layer), run.require):
            with pytest.raises(InputError, match=f"no layer {layer}"):
                asked(layer, 0)
    for head in (-1, 6):
        with pytest.raises(InputError, match=f"no head {head}"):
            run.pattern(0, head)
    for size in (0, -3):
        with pytest.raises(InputError, match="1 or more"):
            run.tiles(0, size)
