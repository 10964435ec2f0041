"""The best constant of an ablated head."""

import pytest
import torch

from bloomlab.errors import InputError
from bloomlab.experiments import ablate_heads
from tests.planted import linear_model
from tests.tiny import pair, tokens

IDS = tokens(3, 7)
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1] * 7])


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["cross_entropy", "kl", "probability"])
def test_it_harms_less_than_the_mean_and_the_same_every_time(metric):
    _, ours = pair(dtype=torch.float64)
    heads = [[(0, 1)], [(1, 2)], [(0, 1), (1, 3)]]
    task = {"metric": metric, "heads": heads, "attention_mask": MASK}
    sign = -1 if metric == "probability" else 1
    mean, best, again = (
        ablate_heads(ours, IDS, kind=kind, **task).effects
        for kind in ("mean", "optimal", "optimal")
    )
    assert (sign * best.mean(-1) < sign * mean.mean(-1)).all()
    assert (best == again).all()
    assert all(p.grad is None for p in ours.parameters())


def test_it_solves_least_squares_in_a_linear_regime():
    model = linear_model()
    ids = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        goal, cache = model.run_with_cache(ids, return_type="logits")

    weight = torch.tensor([1.0, 2.0, 5.0, 0.5], dtype=torch.float64)

    def distance(logits, tokens):
        return weight * ((logits - goal) ** 2).sum((1, 2))

    head = (2, 3)  # of the last layer: it writes straight to the logits
    got = ablate_heads(model, ids, distance, "optimal", heads=[head], rows=99)
    z = cache["z", 2][:, :, 3].flatten(0, 1)
    # of a weighted squared distance the best constant is the weighted mean, not the mean
    each = weight.repeat_interleave(6)[:, None] / weight.sum() / 6
    gone = (z - (each * z).sum(0)) @ _slopes(model)
    expected = (weight.repeat_interleave(6)[:, None] * gone**2).sum().item() / 4
    assert got.effects.mean().item() == pytest.approx(expected, rel=1e-8)


def _slopes(model):
    """How the logits change with z of L2H3: the final norm only scales, after centring."""
    out = model.W_O[2, 3].detach()
    base = model.unembed(model.ln_final(torch.zeros(1, 1, out.shape[1], dtype=out.dtype)))
    return (model.unembed(model.ln_final(out[None])) - base)[0].detach()


def test_accuracy_has_no_best_constant():
    _, ours = pair()
    with pytest.raises(InputError, match="no gradient"):
        ablate_heads(ours, IDS, "accuracy", "optimal")
