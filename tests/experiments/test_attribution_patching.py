"""Attribution patching and paths, against brute force and the planted circuit."""

import pytest
import torch

from bloomlab.experiments.head_importance import head_importance
from tests.experiments.naive import cross_entropy
from tests.planted import SHARP, induction_circuit
from tests.tiny import pair, tokens

IDS, OTHER = tokens(3, 7), tokens(3, 7, seed=5)
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1] * 7])
OTHER_BATCH = {"input_ids": OTHER, "attention_mask": MASK}


def slopes_by(model, name):
    """The loss's derivative by an activation, by hand."""
    kept = {}

    def hook(value, hook):
        kept["at"] = value.detach().requires_grad_()
        return kept["at"]

    with model.hooks(fwd_hooks=[(name, hook)]):
        loss = cross_entropy(model(IDS, attention_mask=MASK).logits, IDS, MASK).sum()
    (slope,) = torch.autograd.grad(loss, [kept["at"]])
    return slope


def test_qk_fix_equals_a_pattern_computed_again():
    _, ours = pair(dtype=torch.float64)
    with torch.no_grad():
        _, clean = ours.run_with_cache(IDS, attention_mask=MASK)
        _, other = ours.run_with_cache(OTHER, attention_mask=MASK)
    for node in ("q", "k"):
        got = head_importance(
            ours, IDS, "atp_qk_fix", node=node, baseline=OTHER_BATCH, attention_mask=MASK
        )
        for layer in range(2):
            point = f"blocks.{layer}.attn.hook_{node}"
            with torch.no_grad(), ours.hooks(fwd_hooks=[(point, lambda v, hook: other[hook.name])]):
                new = ours.run_with_cache(
                    IDS, attention_mask=MASK, names_filter=f"blocks.{layer}.attn.hook_pattern"
                )[1]["pattern", layer]
            slope = slopes_by(ours, f"blocks.{layer}.attn.hook_pattern")
            expected = ((new - clean["pattern", layer]) * slope).sum((2, 3))
            assert (got.examples[:, layer] - expected).abs().max() < 1e-10 * expected.abs().max()


def test_plain_patching_is_change_times_slope():
    _, ours = pair(dtype=torch.float64)
    with torch.no_grad():
        _, clean = ours.run_with_cache(IDS, attention_mask=MASK)
        _, other = ours.run_with_cache(OTHER, attention_mask=MASK)
    for node in ("z", "v", "q"):
        options = {"node": node, "attention_mask": MASK}
        corrupted = head_importance(ours, IDS, "atp", baseline=OTHER_BATCH, **options)
        mean = head_importance(ours, IDS, "atp", baseline="mean", **options)
        for layer in range(2):
            slope = slopes_by(ours, f"blocks.{layer}.attn.hook_{node}")
            old = clean[node, layer]
            for got, new in (
                (corrupted, other[node, layer]),
                (mean, old[MASK.bool()].mean(0)[None, None]),
            ):
                expected = ((new - old) * slope).sum((1, 3))
                error = (got.examples[:, layer] - expected).abs().max()
                assert error < 1e-10 * expected.abs().max()


def test_graddrop_holds_one_layers_writes_constant_at_a_time():
    _, ours = pair(dtype=torch.float64, n_layer=3)
    with torch.no_grad():
        _, clean = ours.run_with_cache(IDS, attention_mask=MASK)
    got = head_importance(ours, IDS, "atp_star", attention_mask=MASK)
    total = torch.zeros(3, 3, 6, dtype=torch.float64)
    for dropped in range(3):
        points = [f"blocks.{dropped}.hook_{name}" for name in ("attn_out", "mlp_out")]
        with ours.hooks(fwd_hooks=[(point, lambda v, hook: v.detach()) for point in points]):
            for layer in range(3):
                if layer != dropped:
                    slope = slopes_by(ours, f"blocks.{layer}.attn.hook_z")
                    total[:, layer] += (clean["z", layer] * slope).sum((1, 3)).abs()
    assert (got.examples - total / 2).abs().max() < 1e-10 * total.max()


@pytest.mark.slow
def test_paths_are_complete():
    _, ours = pair(dtype=torch.float64)
    exact = head_importance(ours, IDS, "exact", attention_mask=MASK)
    single = [
        head_importance(ours, IDS, "ig_single", attention_mask=MASK, steps=n) for n in (4, 16)
    ]
    assert torch.allclose(single[1].matrix - single[1].residual, exact.matrix)
    assert single[1].residual.abs().max() < single[0].residual.abs().max() / 4
    joint = head_importance(ours, IDS, "ig_joint", attention_mask=MASK, steps=24)
    with torch.no_grad():
        on, off = (
            cross_entropy(
                ours(IDS, attention_mask=MASK, head_mask=torch.full((2, 6), g)).logits, IDS, MASK
            )
            for g in (1.0, 0.0)
        )
    assert torch.allclose(joint.examples.sum((1, 2)) - joint.residual, off - on)
    assert joint.residual.abs().max() < 1e-2 * (off - on).abs().max()


@pytest.mark.slow
def test_gradients_miss_a_sharp_circuit_that_paths_find():
    circuit = induction_circuit(SHARP)
    task = {"positions": circuit.positions}
    ids = circuit.ids(2)
    exact = head_importance(circuit.model, ids, "exact", **task)
    path = head_importance(circuit.model, ids, "ig_single", steps=16, **task)
    for head in circuit.alive:
        assert exact.matrix[head] > 1
        for kind in ("example_abs", "taylor2"):
            assert head_importance(circuit.model, ids, kind, **task).matrix[head] < 1e-3
        assert abs(path.matrix[head] / exact.matrix[head] - 1) < 0.3
    for head in circuit.dead:
        assert exact.matrix[head] == path.matrix[head] == 0


def test_qk_fix_sees_through_a_saturated_softmax():
    circuit = induction_circuit(SHARP)
    ids, (head,) = circuit.ids(2), circuit.matchers
    task = {"positions": circuit.positions, "node": "k"}
    plain, fixed = (
        abs(head_importance(circuit.model, ids, kind, **task).matrix[head])
        for kind in ("atp", "atp_qk_fix")
    )
    assert fixed > 100 * plain


def test_static_scores_equal_their_definitions():
    _, ours = pair(dtype=torch.float64)
    ids = IDS.clone()
    ids[2, 4] = ours.config.eos_token_id
    with torch.no_grad():
        _, cache = ours.run_with_cache(ids, attention_mask=MASK)
    sure = head_importance(ours, ids, "attention_confidence", attention_mask=MASK)
    loud = head_importance(ours, ids, "output_norm", attention_mask=MASK)
    for x in range(3):
        columns = MASK[x].nonzero()[:, 0].tolist()
        for layer, head in ((0, 0), (1, 5)):
            pattern = cache["pattern", layer][x, head]
            keys = [j for j in range(7) if ids[x, j] != ours.config.eos_token_id]
            each = [pattern[i, keys].max() for i in columns[1:] if i in keys]
            assert torch.isclose(sure.examples[x, layer, head], sum(each) / len(each))
            written = cache["z", layer][x, columns, head] @ ours.blocks[layer].attn.W_O[head]
            assert torch.isclose(loud.examples[x, layer, head], written.norm(dim=-1).mean())
