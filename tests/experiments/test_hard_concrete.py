"""Distributions of gates against Monte Carlo, quadrature, closed forms and finite differences."""

import pytest
import scipy.integrate
import torch

from bloomlab.experiments.hard_concrete import (
    HIGH,
    LOW,
    TEMPERATURE,
    hard_concrete,
    mean_gate,
    probability_open,
)
from bloomlab.experiments.head_subsets import gumbel, inclusion, soft_subset, top_subset

LOG_ALPHA = torch.tensor([-6.0, -2.4, -0.8, 0.0, 1.5, 5.0], dtype=torch.float64)


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_moments_of_hard_concrete_are_what_monte_carlo_finds():
    n = 400_000
    gates = hard_concrete(LOG_ALPHA, uniform(n, 6))
    assert gates.min() == 0
    assert gates.max() == 1
    for drawn, formula in (
        ((gates != 0).double(), probability_open(LOG_ALPHA)),
        (gates, mean_gate(LOG_ALPHA)),
    ):
        error = drawn.std(0) / n**0.5
        assert ((drawn.mean(0) - formula).abs() < 4 * error).all()
        assert error.max() < 1e-3


def test_the_mean_gate_is_the_integral_over_uniform_draws():
    def gate(u, log_alpha):
        return hard_concrete(log_alpha, torch.tensor(u, dtype=torch.float64)).item()

    for log_alpha, mean in zip(LOG_ALPHA[1:], mean_gate(LOG_ALPHA)[1:], strict=True):
        # where the gate leaves 0 and reaches 1
        ends = [
            torch.sigmoid(TEMPERATURE * torch.tensor((t - LOW) / (HIGH - t)).log() - log_alpha)
            for t in (0.0, 1.0)
        ]
        low, high = (end.item() for end in ends)
        inside = scipy.integrate.quad(gate, low, high, args=(log_alpha,), epsabs=1e-11)[0]
        assert inside + 1 - high == pytest.approx(mean.item(), abs=1e-7)


def test_gradients_equal_finite_differences():
    scores = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scores.requires_grad_()
    drawn = uniform(4, 2, 3, seed=2)
    functions = [
        lambda s: hard_concrete(s, drawn),
        probability_open,
        mean_gate,
        lambda s: soft_subset(s + gumbel(drawn), 3, temperature=0.7),
        lambda s: soft_subset(s + gumbel(drawn), 3, temperature=0.7, at_least_k_per_layer=1),
    ]
    for function in functions:
        assert torch.autograd.gradcheck(function, scores)


@pytest.mark.parametrize("temperature", [3.0, 1.0, 0.1, 0.001])
@pytest.mark.parametrize("at_least", [0, 1, 2])
@pytest.mark.parametrize("k", [6, 7, 18])
def test_soft_subsets_sum_to_k_and_harden_to_the_best(k, at_least, temperature):
    noisy = 3 * torch.randn(50, 3, 6, generator=torch.Generator().manual_seed(k))
    gates = soft_subset(noisy, k, temperature=temperature, at_least_k_per_layer=at_least)
    assert (gates.sum((1, 2)) - k).abs().max() < 1e-5 * k
    assert (gates.sum(2) > at_least - 1e-5).all()
    assert gates.min() >= 0
    best = top_subset(noisy, k, at_least_k_per_layer=at_least)
    assert (best.sum((1, 2)) == k).all()
    assert (best.sum(2) >= at_least).all()
    if not at_least:
        chosen = torch.zeros(50, 18).scatter(1, noisy.flatten(1).topk(k).indices, 1)
        assert torch.equal(best.flatten(1), chosen.bool())
    if temperature == 0.001 and k < 18:
        # a tie, even a near one, is broken softly
        clear = noisy.flatten(1).sort().values.diff().min(1).values > 0.02
        assert clear.sum() > 5
        assert (gates - best.float())[clear].abs().max() < 1e-3


def test_inclusion_is_what_drawing_without_replacement_gives():
    scores = torch.tensor([[0.5, -1.0, 2.0], [0.0, 1.0, -0.5]], dtype=torch.float64)
    p = scores.flatten().softmax(0)
    twice = torch.stack(
        [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(6) if j != i) for i in range(6)]
    )
    for k, exact in ((1, p), (2, twice)):
        found = inclusion(scores, k)
        assert found.sum().item() == pytest.approx(k)
        assert (found.flatten() - exact).abs().max() < 4 * (0.25 / 2000) ** 0.5
        assert torch.equal(found, inclusion(scores, k))
    one_each = inclusion(scores, 2, at_least_k_per_layer=1)
    assert (one_each - scores.softmax(1)).abs().max() < 4 * (0.25 / 2000) ** 0.5
