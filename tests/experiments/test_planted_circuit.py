"""A circuit written by hand is found, whatever its size; wrong methods miss it or see too much."""

import pytest
import torch
from torch.nn import functional as F

from bloomlab.experiments import ablate_heads, head_importance, prune_curve, prune_order
from bloomlab.model.alibi import alibi_slopes
from bloomlab.model.prune import prune_heads
from tests.experiments.naive import logits_of, z_edited, zeroed
from tests.planted import FIRM, SHARP, SOFT, induction_circuit

SIZES = [(16, 8, 1), (24, 8, 1), (16, 4, 1), (12, 12, 1), (16, 8, 2)]  # tokens, heads, copies


@pytest.mark.parametrize("strengths", [SHARP, FIRM, SOFT])
@pytest.mark.parametrize(("n_token", "n_head", "copies"), SIZES)
def test_dead_heads_are_zero_to_the_last_bit(n_token, n_head, copies, strengths):
    circuit = induction_circuit(strengths, n_token=n_token, n_head=n_head, copies=copies)
    found = ablate_heads(circuit.model, circuit.ids(), positions=circuit.positions)
    nothing = [run for run, (head,) in enumerate(found.sets) if head in circuit.dead]
    assert (found.effects[nothing] == 0).all()
    assert found.matrix[circuit.previous] > 0.5
    if copies == 1:
        top = found.matrix.flatten().topk(2).indices.sort().values.tolist()
        assert [divmod(i, n_head) for i in top] == circuit.alive


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_circuit_copies_and_needs_both_heads(dtype):
    circuit = induction_circuit(SHARP, n_token=24, dtype=dtype)
    ids = circuit.ids()
    assert circuit.accuracy(circuit.model(ids).logits, ids) == 1
    assert circuit.accuracy(circuit.hf(ids).logits, ids) == 1
    for head in circuit.alive:
        mask = torch.ones(2, 8, dtype=dtype)
        mask[head] = 0
        assert circuit.accuracy(circuit.model(ids, head_mask=mask).logits, ids) < 0.3
    pruned = prune_heads(circuit.model, circuit.dead)
    assert torch.equal(pruned(ids).logits.argmax(-1), circuit.model(ids).logits.argmax(-1))
    assert circuit.accuracy(pruned.to_hf()(ids).logits, ids) == 1


@pytest.mark.slow
def test_of_two_copies_each_looks_spare_and_only_searching_again_sees_the_second():
    circuit = induction_circuit(SHARP, copies=2)
    task = {"positions": circuit.positions, "progress": False}
    ids = circuit.ids()
    single = ablate_heads(circuit.model, ids, **task).matrix
    together = ablate_heads(circuit.model, ids, heads=[list(circuit.matchers)], **task)
    for head in circuit.matchers:
        assert single[head].abs() < 0.05
    assert together.effects.mean() > 1
    one_shot = prune_order(circuit.model, ids, **task)
    again = prune_order(circuit.model, ids, search="greedy", **task)
    curve = prune_curve(
        circuit.model, ids, {"once": one_shot, "again": again}, kept=[2], n_random=20, **task
    )
    values = curve.frame.groupby("ranking").value.mean()
    assert values["again"] < values["random"] - 1
    assert curve.keep("again", 2)[circuit.previous]


def test_gradients_rank_a_soft_circuit_and_miss_a_sharp_one():
    for strengths, agrees in ((SOFT, True), (SHARP, False)):
        circuit = induction_circuit(strengths)
        task = {"positions": circuit.positions}
        exact = head_importance(circuit.model, circuit.ids(), "exact", **task).matrix
        slope = head_importance(circuit.model, circuit.ids(), "signed", **task).matrix
        for head in circuit.alive:
            assert (slope[head] > 0.1 * exact[head]) == agrees
        ranked = slope.flatten().topk(2).indices.sort().values.tolist()
        assert ([divmod(i, 8) for i in ranked] == circuit.alive) or not agrees


@pytest.mark.slow
def test_paths_recover_what_gradients_miss():
    circuit = induction_circuit(SHARP)
    task = {"positions": circuit.positions}
    ids = circuit.ids(1)
    exact = head_importance(circuit.model, ids, "exact", **task).matrix
    path = head_importance(circuit.model, ids, "ig_single", steps=32, **task).matrix
    top = path.flatten().topk(2).indices.sort().values.tolist()
    assert [divmod(i, 8) for i in top] == circuit.alive
    worst = max((path[head] / exact[head] - 1).abs().item() for head in circuit.alive)
    assert worst < 0.15


def test_cutting_channels_of_the_output_is_no_ablation_of_a_head():
    """What nnsight's recipe does: slice the output projection's result as if it were z."""
    circuit = induction_circuit(SHARP)
    ids, width = circuit.ids(), circuit.n_token
    dead, clean = circuit.dead[3], logits_of(circuit.hf, ids)

    def cut(module, arguments, output):
        output = output.clone()
        output[..., dead[1] * width : (dead[1] + 1) * width] = 0
        return output

    dense = circuit.hf.transformer.h[dead[0]].self_attention.dense
    handle = dense.register_forward_hook(cut)
    wrong = []
    for channel in range(8):
        dead = (0, channel)
        wrong.append((logits_of(circuit.hf, ids) - clean).abs().max().item())
    handle.remove()
    assert max(wrong) > 0.1  # channels that a head of another number writes
    right = [
        (logits_of(circuit.hf, ids, None, zeroed([head])) - clean).abs().max().item()
        for head in circuit.dead
    ]
    assert right == [0.0] * len(circuit.dead)


def test_kept_heads_need_the_slopes_they_had():
    """What LLM-Pruner does: slopes of a model that has as many heads as are left."""
    circuit = induction_circuit(SHARP)
    ids = circuit.ids()
    gone = [(layer, head) for layer, head in circuit.dead if head in (1, 2, 3, 4, 5, 6)]
    pruned = prune_heads(circuit.model, gone)
    assert circuit.accuracy(pruned(ids).logits, ids) == 1
    mask = torch.ones(2, 8, dtype=torch.float64)
    for head in gone:
        mask[head] = 0
    masked = circuit.model(ids, head_mask=mask).logits
    torch.testing.assert_close(pruned(ids).logits, masked, rtol=0, atol=1e-9)
    shallow = pruned.blocks[0].attn.slopes
    assert shallow.tolist() == [0.5, 2.0**-8]
    shallow.copy_(alibi_slopes(2))
    assert (pruned(ids).logits - masked).abs().max() > 1


def test_the_effect_is_that_of_transformers_with_z_silenced():
    circuit = induction_circuit(FIRM)
    ids, columns = circuit.ids(), circuit.positions

    def loss(edits):
        with z_edited(circuit.hf, edits), torch.no_grad():
            logits = circuit.hf(ids).logits[:, columns]
        target = ids[:, [i + 1 for i in columns]]
        return F.cross_entropy(logits.mT, target, reduction="none").mean(-1)

    found = ablate_heads(circuit.model, ids, positions=columns)
    for run, (head,) in enumerate(found.sets):
        if head in circuit.alive:
            expected = loss(zeroed([head])) - loss({})
            torch.testing.assert_close(found.effects[run], expected, rtol=1e-4, atol=1e-5)
