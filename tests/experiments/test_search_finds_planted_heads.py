"""Searches and learned masks keep L0H0 and L1H7, the planted circuit's heads."""

import pytest
import torch

from bloomlab.experiments.head_gates import learn_gates
from bloomlab.experiments.head_search import prune_order
from tests.planted import FIRM, SHARP, induction_circuit


def kept(mask):
    return [tuple(head) for head in mask.nonzero().tolist()]


@pytest.mark.parametrize("strengths", [SHARP, FIRM])
@pytest.mark.parametrize("search", ["one_shot", "iterative", "greedy"])
def test_dead_heads_go_first_by_number_and_score_nothing(search, strengths):
    circuit = induction_circuit(strengths)
    model, ids, task = circuit.model, circuit.ids(), {"positions": circuit.positions}
    order = prune_order(model, ids, search=search, **task)
    assert list(order.heads[:14]) == circuit.dead
    assert order.scores[:14] == (0.0,) * 14
    assert min(order.scores[14:]) > 0.3
    assert kept(order.keep(2)) == [(0, 0), (1, 7)]
    if search != "one_shot":
        assert order.metrics[13] == order.clean
        assert order.metrics[15] > order.clean + 1
    spared = prune_order(model, ids, search=search, at_least_k_per_layer=2, progress=False, **task)
    assert kept(spared.keep(4)) == [(0, 0), (0, 7), (1, 6), (1, 7)]


@pytest.mark.parametrize(
    "options", [{"penalty": 0.05}, {"method": "subset", "k": 2}], ids=["concrete", "subset"]
)
def test_learned_masks_select_the_planted_heads(options):
    circuit = induction_circuit(FIRM, dtype=torch.float32)
    model, ids, task = circuit.model, circuit.ids(), {"positions": circuit.positions}
    got = learn_gates(model, ids, steps=70, rows=8, **task, **options)
    assert kept(got.mask) == kept(got.order.keep(2)) == [(0, 0), (1, 7)]
    assert got.probabilities[got.mask].min() > 0.9
    assert got.probabilities[~got.mask].max() < 0.3
    assert torch.equal(got.order.keep(2), prune_order(model, ids, **task).keep(2))
    whole = model(ids, return_type="logits")[:, circuit.positions].flatten(0, 1)
    target = ids[:, [i + 1 for i in circuit.positions]].flatten()
    clean = torch.nn.functional.cross_entropy(whole, target).item()
    assert got.history.metric.iloc[-20:].median() < clean + 0.1


def test_one_of_two_copies_is_enough():
    circuit = induction_circuit(FIRM, copies=2, dtype=torch.float32)
    model, ids, task = circuit.model, circuit.ids(), {"positions": circuit.positions}
    greedy = prune_order(model, ids, search="greedy", **task)
    learned = learn_gates(model, ids, "subset", k=2, steps=70, rows=8, **task)
    for mask in (greedy.keep(2), learned.mask):
        first, second = kept(mask)
        assert first == (0, 0)
        assert second in [(1, 6), (1, 7)]
