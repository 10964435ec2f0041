"""The sweep over layers and strengths equals one whole forward each."""

import pytest
import torch
from torch.nn import functional as F

from bloomlab import interventions as iv
from bloomlab.errors import InputError, NumericalError, ShapeError, UnknownNameError
from bloomlab.experiments.steering import mean_difference
from bloomlab.experiments.steering_sweep import steering_sweep
from tests.tiny import pair, tokens

D = 48
COEFFICIENTS = [-2, 0, 0.5, 3]


def padded(side):
    ids, mask = tokens(5, 7), torch.ones(5, 7, dtype=torch.long)
    for row, n in ((1, 3), (4, 1)):
        hidden = slice(0, n) if side == "left" else slice(7 - n, 7)
        mask[row, hidden], ids[row, hidden] = 0, 3
    return ids, mask


def loss(logits, ids, mask):
    values = []
    for row in range(len(ids)):
        seen = mask[row].nonzero()[:, 0]
        values.append(F.cross_entropy(logits[row, seen[:-1]], ids[row, seen[1:]]))
    return torch.stack(values)


def last_probability(logits, tokens):
    return logits[:, -1].softmax(-1)[:, 7]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rows", [3, 32])
def test_the_sweep_equals_whole_forwards(side, rows):
    _, model = pair(dtype=torch.float64)
    ids, mask = padded(side)
    found = mean_difference(
        model, tokens(3, 4, seed=2), tokens(2, 5, seed=3), sites=["resid_pre", "resid_mid"]
    )
    given = {"input_ids": ids, "attention_mask": mask}
    sweep = steering_sweep(model, given, found, COEFFICIENTS, rows=rows)
    divergence = steering_sweep(model, given, found, COEFFICIENTS, "kl", rows=rows)
    frame = sweep.frame
    assert len(frame) == 4 * len(COEFFICIENTS)
    clean = model(ids, attention_mask=mask).logits
    place = 0
    for point in ("resid_pre", "resid_mid"):
        for layer in range(2):
            name = f"blocks.{layer}.hook_{point}"
            for strength in COEFFICIENTS:
                edit = iv.steer(name, found.vectors[name], coefficient=strength)
                logits = model.run_with_hooks(ids, attention_mask=mask, fwd_hooks=[edit])
                effect = loss(logits, ids, mask) - loss(clean, ids, mask)
                row = frame.iloc[place]
                assert (row.site, row.layer, row.coefficient) == (point, layer, strength)
                assert row.effect == pytest.approx(effect.mean().item(), abs=1e-10)
                assert row.stderr == pytest.approx(effect.std().item() / 5**0.5, abs=1e-10)
                p, q = clean.log_softmax(-1), logits.log_softmax(-1)
                kl = (p.exp() * (p - q)).sum(-1)
                kl = torch.stack([kl[i, mask[i].bool()].mean() for i in range(5)])
                assert divergence.frame.effect[place] == pytest.approx(kl.mean().item(), abs=1e-10)
                place += 1
    assert frame[frame.coefficient == 0].effect.abs().max() < 1e-12
    assert frame[frame.coefficient != 0].effect.abs().min() > 1e-6


def test_vectors_by_layer_functions_and_answers():
    _, model = pair(dtype=torch.float64)
    ids = tokens(3, 6)
    vector = torch.randn(D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide = torch.randn(4 * D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    clean = model(ids).logits
    vectors = {1: vector, "blocks.0.mlp.hook_post": wide}
    found = steering_sweep(model, ids, vectors, [1.5], last_probability)
    answers = torch.tensor([[5, 6], [7, 8], [9, 4]])
    gap = steering_sweep(
        model, ids, vectors, [1.5], "logit_difference", positions=-1, answers=answers
    )
    for place, (where, added) in enumerate(vectors.items()):
        edit = iv.steer(where, added, coefficient=1.5)
        logits = model.run_with_hooks(ids, fwd_hooks=[edit])
        effect = last_probability(logits, ids) - last_probability(clean, ids)
        assert (found.effects[place, 0] - effect).abs().max() < 1e-12
        moved = (logits - clean)[:, -1].gather(-1, answers)
        assert (gap.effects[place, 0] - (moved[:, 0] - moved[:, 1])).abs().max() < 1e-10
    assert found.metric == "last_probability"
    single = steering_sweep(model, ids[:1], vectors, [1, 2])
    assert single.stderr.isnan().all()


def test_steering_the_demo_to_its_own_mean_difference_raises_that_texts_likelihood(demo):
    """Steered towards French, French continuations get likelier than when steered away."""
    english = ["The house is very old.", "We are going to the market.", "It was a long day."]
    french = ["La maison est très vieille.", "Nous allons au marché.", "La journée était longue."]
    found = mean_difference(demo, french, english, pool="mean")
    sweep = steering_sweep(demo, ["Le chat est dans le jardin."], {3: found.at(3)}, [-1, 1])
    away, towards = sweep.frame.effect
    assert towards < away


def test_bad_sweeps_are_refused():
    _, model = pair()
    ids, vector = tokens(2, 4), torch.ones(D)
    with pytest.raises(InputError, match="no coefficients"):
        steering_sweep(model, ids, {0: vector}, [])
    with pytest.raises(InputError, match="expected Directions"):
        steering_sweep(model, ids, vector, [1])
    with pytest.raises(UnknownNameError, match=r"blocks\.2"):
        steering_sweep(model, ids, {2: vector}, [1])
    with pytest.raises(InputError, match="one hook in a layer"):
        steering_sweep(model, ids, {"hook_embed": vector}, [1])
    with pytest.raises(InputError, match="one hook in a layer"):
        steering_sweep(model, ids, {"blocks.0.attn.hook_z": torch.ones(8)}, [1])
    with pytest.raises(ShapeError, match=r"\[48\]"):
        steering_sweep(model, ids, {0: torch.ones(D + 1)}, [1])
    with pytest.raises(NumericalError, match=r"hook_resid_pre by 1e\+400|by inf|coefficients"):
        steering_sweep(model, ids, {0: vector}, [float("inf")])
    with pytest.raises(UnknownNameError, match="metric"):
        steering_sweep(model, ids, {0: vector}, [1], "losses")
