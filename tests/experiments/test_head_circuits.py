"""Circuits of heads against whole [vocab vocab] matrices, planted heads and real runs."""

import sys

import numpy as np
import pytest
import torch

import bloomlab as bl
from bloomlab.errors import InputError, UnknownNameError, UnsupportedError
from bloomlab.experiments.head_circuits import composition, head_circuits, ov_circuit, qk_circuit
from bloomlab.model.prune import prune_heads
from tests.analysis.test_circuits import same_spectrum
from tests.planted import induction_circuit
from tests.tiny import pair, tokens


@pytest.fixture(scope="module")
def models():
    return pair(dtype=torch.float64)


@torch.no_grad()
def dense(hf, layer, head):
    """Whole OV and QK circuits [vocab vocab] of a head by transformers' weights, no biases."""
    body = hf.transformer
    block = body.h[layer]
    n_head, width = hf.config.n_head, hf.config.hidden_size
    embedded = body.word_embeddings_layernorm(body.word_embeddings.weight)
    reads = block.input_layernorm(embedded)
    fused = block.self_attention.query_key_value.weight.view(n_head, 3, -1, width)
    q, k, v = (part.T for part in fused[head])
    o = block.self_attention.dense.weight.view(width, n_head, -1)[:, head].T
    centre = torch.eye(width, dtype=o.dtype) - 1 / width
    ov = reads @ v @ o @ centre @ torch.diag(body.ln_f.weight) @ hf.lm_head.weight.T
    return ov.numpy(), (reads @ q @ k.T @ reads.T).numpy()


@pytest.mark.parametrize("at_once", [2**22, 48 * 10])
def test_eigenvalues_are_those_of_the_whole_circuits(models, monkeypatch, at_once):
    theirs, model = models
    monkeypatch.setattr(sys.modules["bloomlab.experiments.head_circuits"], "AT_ONCE", at_once)
    found = head_circuits(model)
    frame = found.frame.set_index(["layer", "head"])
    for layer, head in [(0, 0), (0, 5), (1, 2)]:
        for small, whole, name in zip(
            (found.ov[layer][head], found.qk[layer][head]),
            dense(theirs, layer, head),
            ("copying", "matching"),
            strict=True,
        ):
            values = np.linalg.eigvals(whole)
            scale = np.abs(values).max()
            same_spectrum((small / scale).tolist(), values / scale)
            score = values.real.sum() / np.abs(values).sum()
            assert frame.loc[(layer, head), name] == pytest.approx(score, abs=1e-6)
    assert (found.ov[0].abs().diff(dim=-1) <= 1e-9).all()


def test_a_planted_copying_head_scores_one_and_its_negative_minus_one():
    circuit = induction_circuit()
    matcher = circuit.matchers[0]
    frame = head_circuits(circuit.model).frame.set_index(["layer", "head"])
    assert frame.copying[matcher] > 0.99
    assert frame.drop([matcher, circuit.previous]).copying.isna().all()  # heads that write nothing
    attn = circuit.model.blocks[1].attn
    with torch.no_grad():
        attn.W_O[attn.index([matcher[1]])] *= -1
    assert head_circuits(circuit.model).frame.set_index(["layer", "head"]).copying[matcher] < -0.99


@torch.no_grad()
def test_circuits_between_tokens_are_what_the_first_layer_computes(models):
    _, model = models
    ids, head = tokens(1, 6), 4
    _, cache = model.run_with_cache(ids, names_filter=lambda name: True)
    scores = cache["attn_scores", 0] - cache["blocks.0.attn.hook_alibi"]
    got = qk_circuit(model, 0, head, queries=ids[0], keys=ids[0])
    seen = torch.ones(6, 6).tril().bool()
    assert (got - scores[0, head])[seen].abs().max() < 1e-10
    source = ids[:, :1]  # a text of one token attends to that alone
    _, alone = model.run_with_cache(source, names_filter=lambda name: True)
    result = alone["result", 0][0, 0, head]
    norm = model.ln_final
    logits = ((result - result.mean()) * norm.w) @ model.W_U
    got = ov_circuit(model, 0, head, sources=source, targets=range(97))
    torch.testing.assert_close(got[0], logits, atol=1e-10, rtol=0)


def test_composition_is_the_ratio_of_norms_less_chance(models):
    _, model = models
    for mode in "QKV":
        frame = composition(model, mode)
        assert len(frame) == 36
        assert frame.columns.tolist() == [
            *("layer", "head", "to_layer", "to_head", "score", "excess")
        ]
        row = frame.query("head == 2 and to_head == 5").iloc[0]
        first, then = model.blocks[0].attn, model.blocks[1].attn
        writes = (first.W_V[2] @ first.W_O[2]).detach()
        qk = (then.W_Q[5] @ then.W_K[5].T).detach()
        reads = {"Q": qk, "K": qk.T, "V": (then.W_V[5] @ then.W_O[5]).detach()}[mode]
        score = ((writes @ reads).norm() / (writes.norm() * reads.norm())).item()
        assert row.score == pytest.approx(score, abs=1e-10)
        assert row.excess == pytest.approx(score - 48**-0.5, abs=1e-10)
    assert abs(composition(model, "K").excess.mean()) < 0.02  # random weights


def test_planted_heads_compose_by_keys():
    circuit = induction_circuit()
    keys = composition(circuit.model, "K").set_index(["layer", "head", "to_layer", "to_head"])
    queries = composition(circuit.model, "Q").set_index(["layer", "head", "to_layer", "to_head"])
    pair_of = (*circuit.previous, *circuit.matchers[0])
    assert keys.excess.idxmax() == pair_of
    assert keys.excess[pair_of] > 0.1
    assert queries.excess[pair_of] < 0


def test_heads_of_a_pruned_model_keep_their_numbers(models):
    _, model = models
    whole = head_circuits(model).frame.set_index(["layer", "head"])
    pruned = prune_heads(model, {0: [0, 3], 1: [1, 2]})
    kept = head_circuits(pruned).frame.set_index(["layer", "head"])
    assert kept.index.tolist() == [*((0, h) for h in (1, 2, 4, 5)), *((1, h) for h in (0, 3, 4, 5))]
    np.testing.assert_allclose(kept, whole.loc[kept.index], atol=1e-8)
    tokens_of = {"queries": [5, 6], "keys": [7]}
    got, expected = (qk_circuit(m, 1, 3, **tokens_of) for m in (pruned, model))
    torch.testing.assert_close(got, expected)
    index = ["layer", "head", "to_layer", "to_head"]
    some, every = (composition(m, "V").set_index(index).score for m in (pruned, model))
    assert some.index[0] == (0, 1, 1, 0)
    np.testing.assert_allclose(some, every[some.index], atol=1e-10)
    with pytest.raises(InputError, match="there is no L0H3"):
        ov_circuit(pruned, 0, 3, sources=5, targets=6)
    bare = head_circuits(prune_heads(model, {0: range(6), 1: [0]}))
    assert bare.frame.layer.tolist() == [1] * 5


def test_half_precision_is_computed_in_float32(demo):
    exact = head_circuits(demo).frame
    rounded = head_circuits(bl.load("demo", device="cpu", dtype=torch.bfloat16)).frame
    np.testing.assert_allclose(rounded, exact, atol=1e-3)
    assert exact[["copying", "matching"]].abs().max(axis=None) <= 1


def test_wrong_requests_are_refused(models):
    theirs, model = models
    with pytest.raises(UnknownNameError, match="no layer 2"):
        ov_circuit(model, 2, 0, sources=5, targets=6)
    with pytest.raises(InputError, match="there is no L1H6"):
        qk_circuit(model, 1, 6, queries=5, keys=6)
    with pytest.raises(InputError, match="97 is no token"):
        qk_circuit(model, 1, 0, queries=5, keys=[6, 97])
    with pytest.raises(InputError, match="mode is 'X'"):
        composition(model, "X")
    with pytest.raises(UnsupportedError, match="no unembedding"):
        head_circuits(bl.BloomModel.from_hf(theirs.transformer))
    _, post = pair(apply_residual_connection_post_layernorm=True)
    for refused in (
        lambda: head_circuits(post),
        lambda: ov_circuit(post, 0, 0, sources=5, targets=6),
        lambda: qk_circuit(post, 0, 0, queries=5, keys=6),
        lambda: composition(post, "Q"),
    ):
        with pytest.raises(UnsupportedError, match="no sum"):
            refused()
