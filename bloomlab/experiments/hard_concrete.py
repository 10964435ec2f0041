"""Hard concrete gates: random numbers in [0, 1] that are often exactly 0 or 1, with gradients.

Louizos, Welling and Kingma, 2018, arXiv:1712.01312; temperature as Voita et al., 2019,
arXiv:1905.09418. A logistic draw around `log_alpha`, squeezed by a sigmoid, is stretched to
[LOW, HIGH] and cut to [0, 1].
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bloomlab.experiments.head_subsets import top_subset

TEMPERATURE = 0.33
LOW, HIGH = -0.1, 1.1
NODES = 64  # of the quadrature; the integrand is smooth, so that its error is below 1e-12


def hard_concrete(
    log_alpha: Float[Tensor, "*lead"], uniform: Float[Tensor, "*drawn"]
) -> Float[Tensor, "*drawn"]:
    """Gates in [0, 1], from uniform draws in (0, 1) of that shape or broadcasting to it."""
    logistic = uniform.log() - (-uniform).log1p()
    squeezed = torch.sigmoid((logistic + log_alpha) / TEMPERATURE)
    return (squeezed * (HIGH - LOW) + LOW).clamp(0, 1)


def probability_open(log_alpha: Float[Tensor, "*lead"]) -> Float[Tensor, "*lead"]:
    """Probability that a gate is not 0; their sum is the expected L0 norm."""
    return torch.sigmoid(log_alpha - TEMPERATURE * math.log(-LOW / HIGH))


def mean_gate(log_alpha: Float[Tensor, "*lead"]) -> Float[Tensor, "*lead"]:
    """Expected value of a gate: the integral of P(gate > t) over t in [0, 1]."""
    places, weights = np.polynomial.legendre.leggauss(NODES)
    at = torch.as_tensor((places + 1) / 2).to(log_alpha)
    above = torch.sigmoid(log_alpha[..., None] - TEMPERATURE * ((at - LOW) / (HIGH - at)).log())
    return above @ torch.as_tensor(weights / 2).to(log_alpha)


@dataclass(frozen=True, kw_only=True, slots=True)
class HardConcreteGates:
    """A hard concrete gate for every head; scores are their `log_alpha`.

    Attributes:
        penalty: cost of an open head.
        k: heads in the mask; None: those that are open more often than not.
        at_least_k_per_layer: heads of each layer in the mask.
    """

    start: ClassVar[float] = 2.0  # open with probability 0.94: training begins near the whole model
    penalty: float
    k: int | None
    at_least_k_per_layer: int

    def temperature(self, share: float) -> float:
        """The same at every share of the training."""
        return TEMPERATURE

    def draw(
        self,
        scores: Float[Tensor, "layer head"],
        uniform: Float[Tensor, "batch layer head"],
        *,
        temperature: float,
    ) -> Float[Tensor, "batch layer head"]:
        """Gates of every example."""
        return hard_concrete(scores, uniform)

    def n_open(self, scores: Float[Tensor, "layer head"]) -> Float[Tensor, ""]:
        """Expected number of open heads."""
        return probability_open(scores).sum()

    def probabilities(self, scores: Float[Tensor, "layer head"]) -> Float[Tensor, "layer head"]:
        """That a gate is not 0."""
        return probability_open(scores)

    def means(self, scores: Float[Tensor, "layer head"]) -> Float[Tensor, "layer head"]:
        """Expected value of the gates."""
        return mean_gate(scores)

    def mask(self, scores: Float[Tensor, "layer head"]) -> Bool[Tensor, "layer head"]:
        """The heads that stay."""
        at_least = self.at_least_k_per_layer
        if self.k is not None:
            return top_subset(scores, self.k, at_least_k_per_layer=at_least)
        needed = top_subset(scores, at_least * len(scores), at_least_k_per_layer=at_least)
        return (probability_open(scores) > 0.5) | needed
