"""The circuit written by hand: transformers reads it, and every head does what is said of it."""

import pytest
import torch
import transformers

from bloomlab.demo.planted import FIRM, SHARP, SOFT, induction_circuit
from bloomlab.errors import InputError
from bloomlab.experiments import Graph, evaluate_circuits

CLOSE = 1e-5  # transformers' softmax is float32 in a float64 model, too


@pytest.mark.parametrize(("n_token", "n_head", "copies"), [(16, 8, 1), (12, 12, 1), (16, 6, 2)])
def test_transformers_reads_it_and_gives_the_same(n_token, n_head, copies, tmp_path):
    circuit = induction_circuit(n_token=n_token, n_head=n_head, copies=copies)
    circuit.model.save_pretrained(tmp_path)
    theirs = transformers.BloomForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    ids = circuit.ids()
    with torch.no_grad():
        expected = theirs(ids, output_attentions=True)
        got = circuit.model(ids, output_attentions=True)
    torch.testing.assert_close(got.logits, expected.logits, rtol=0, atol=CLOSE)
    for ours, pattern in zip(got.attentions, expected.attentions, strict=True):
        torch.testing.assert_close(ours, pattern, rtol=0, atol=CLOSE)
    assert circuit.accuracy(expected.logits, ids) == 1


def test_ids_are_distinct_tokens_said_twice():
    circuit = induction_circuit(n_token=10)
    for row in circuit.ids(5).tolist():
        assert row[0] == 0
        assert row[1:6] == row[6:]
        assert len(set(row)) == 6
    assert circuit.positions == [6, 7, 8, 9]  # the first of the second copy cannot be told


@pytest.mark.parametrize("strengths", [SHARP, FIRM, SOFT])
def test_heads_look_where_they_should_and_the_dead_write_zeros(strengths):
    circuit = induction_circuit(strengths)
    ids, (matcher,) = circuit.ids(), circuit.matchers
    with torch.no_grad():
        _, cache = circuit.model.run_with_cache(ids)
    first = cache["pattern", 0][:, circuit.previous[1]]
    second = cache["pattern", 1][:, matcher[1]]
    n = circuit.length
    assert first.diagonal(-1, 1, 2)[:, 1:].min() > 0.35  # the steepest slope alone: 0.39 at most
    told = [second[:, at, at - n + 1] for at in circuit.positions]
    assert torch.stack(told).min() > 0.5
    for layer, head in circuit.dead:
        written = cache["z", layer][:, :, head] @ circuit.model.blocks[layer].attn.W_O[head]
        assert (written == 0).all()
        assert cache["pattern", layer][:, head, -1].max() < 1  # busy, not off


def test_its_edges_are_enough_and_all_are_needed():
    circuit = induction_circuit(FIRM, copies=2)
    texts = circuit.ids(4), circuit.ids(4, seed=9)
    options = {"metric": "cross_entropy", "positions": circuit.positions, "progress": False}
    every = Graph.of(circuit.model).edges
    assert set(circuit.edges) < set(every)
    scores = evaluate_circuits(circuit.model, *texts, circuit.edges, **options).frame
    assert scores.faithfulness[0] == pytest.approx(1, abs=0.01)
    assert scores.completeness[0] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("options", [{"n_head": 2}, {"copies": 0}, {"copies": 9}, {"n_token": 2}])
def test_what_cannot_be_planted_is_refused(options):
    with pytest.raises(InputError, match="expected 4 or more heads"):
        induction_circuit(**options)
