"""Subsets of exactly k heads: the best, a random one, and its relaxation with gradients.

Differentiable subset pruning (Li, Cotterell and Sachan, 2021, arXiv:2108.04657) on the Gumbel
top-k relaxation of Xie and Ermon (2019, arXiv:1901.10517).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

TINY = 1e-20  # share of a softmax below which nothing is left
DRAWS = 2000


def top_subset(
    scores: Float[Tensor, "*lead layer head"], k: int, *, at_least_k_per_layer: int = 0
) -> Bool[Tensor, "*lead layer head"]:
    """The best heads of each layer, then the best of all others; of equal ones the last."""
    raised = scores
    if at_least_k_per_layer:
        best = scores.argsort(dim=-1, stable=True)[..., -at_least_k_per_layer:]
        raised = scores.scatter(-1, best, torch.inf)
    kept = torch.zeros_like(raised, dtype=torch.bool).flatten(-2)
    order = raised.flatten(-2).argsort(dim=-1, stable=True)
    return kept.scatter(-1, order[..., order.shape[-1] - k :], True).view(scores.shape)


def soft_subset(
    scores: Float[Tensor, "*lead layer head"],
    k: int,
    *,
    temperature: float,
    at_least_k_per_layer: int = 0,
) -> Float[Tensor, "*lead layer head"]:
    """Gates from 0 on that sum to k, and to no less than asked in every layer.

    k softmaxes, one after the other, each over what those before left; near `temperature` 0 they
    are the subset of the k best. At higher ones a gate may exceed 1.
    """
    gates = torch.zeros_like(scores)
    for _ in range(at_least_k_per_layer):
        share = (scores / temperature).softmax(-1)
        gates = gates + share
        scores = scores + (1 - share).clamp(min=TINY).log()
    for _ in range(k - at_least_k_per_layer * scores.shape[-2]):
        share = (scores / temperature).flatten(-2).softmax(-1).view(scores.shape)
        gates = gates + share
        scores = scores + (1 - share).clamp(min=TINY).log()
    return gates


def gumbel(uniform: Float[Tensor, "*drawn"]) -> Float[Tensor, "*drawn"]:
    """Standard Gumbel draws from uniform ones in (0, 1)."""
    return -(-uniform.log()).log()


def inclusion(
    scores: Float[Tensor, "layer head"], k: int, *, at_least_k_per_layer: int = 0, seed: int = 0
) -> Float[Tensor, "layer head"]:
    """Share of random subsets that hold each head, by 2000 seeded draws; sums to k."""
    source = torch.Generator().manual_seed(seed)
    uniform = torch.rand(DRAWS, *scores.shape, generator=source, dtype=torch.float64)
    noisy = scores.double().cpu() + gumbel(uniform.clamp(min=TINY))
    drawn = top_subset(noisy, k, at_least_k_per_layer=at_least_k_per_layer)
    return drawn.double().mean(0).to(scores)


@dataclass(frozen=True, kw_only=True, slots=True)
class SubsetGates:
    """Gates that sum to k; scores are the heads' log-weights.

    Attributes:
        k: heads in the subset.
        at_least_k_per_layer: heads of each layer in it.
        temperatures: of the relaxation, at the beginning and at the end of the training.
    """

    start: ClassVar[float] = 0.0
    penalty: ClassVar[float] = 0.0
    k: int
    at_least_k_per_layer: int
    temperatures: tuple[float, float]

    def temperature(self, share: float) -> float:
        """At a share of the training, falling geometrically."""
        first, last = self.temperatures
        return first * (last / first) ** share

    def draw(
        self,
        scores: Float[Tensor, "layer head"],
        uniform: Float[Tensor, "batch layer head"],
        *,
        temperature: float,
    ) -> Float[Tensor, "batch layer head"]:
        """Gates of every example, that sum to k in each."""
        return soft_subset(
            scores + gumbel(uniform),
            self.k,
            temperature=temperature,
            at_least_k_per_layer=self.at_least_k_per_layer,
        )

    def n_open(self, scores: Float[Tensor, "layer head"]) -> Float[Tensor, ""]:
        """Number of heads that are on: k."""
        return scores.new_tensor(float(self.k))

    def probabilities(self, scores: Float[Tensor, "layer head"]) -> Float[Tensor, "layer head"]:
        """That a head is in a random subset."""
        return inclusion(scores, self.k, at_least_k_per_layer=self.at_least_k_per_layer)

    def means(self, scores: Float[Tensor, "layer head"]) -> Float[Tensor, "layer head"]:
        """Expected value of the gates: a head is in the subset, or not."""
        return self.probabilities(scores)

    def mask(self, scores: Float[Tensor, "layer head"]) -> Bool[Tensor, "layer head"]:
        """The best subset."""
        return top_subset(scores, self.k, at_least_k_per_layer=self.at_least_k_per_layer)
