"""Language neurons by the entropy of their activation over languages (LAPE).

Tang et al. (2024, arXiv:2402.16438). A neuron's probability is the share of a language's tokens at
which it is active; its entropy over languages is low if it is active in few of them.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bloomlab.errors import InputError, ShapeError


def activation_entropy(
    probability: Float[Tensor, "language layer neuron"],
) -> Float[Tensor, "layer neuron"]:
    """Entropy of each neuron's probabilities, made to sum to 1 over languages, in nats.

    0: active in one language; log(languages): equally in all. NaN for a neuron that never is.

    Raises:
        ShapeError: axes other than language, layer and neuron.
        InputError: numbers that are no probabilities.
    """
    _check(probability)
    share = probability / probability.sum(0)
    return torch.xlogy(share, share).sum(0).neg().clamp(min=0)


def select_language_neurons(
    probability: Float[Tensor, "language layer neuron"],
    *,
    top: float = 0.01,
    bar: float = 0.95,
) -> Bool[Tensor, "language layer neuron"]:
    """Which neurons are which language's, as in the authors' code.

    The share `top` of all neurons with the lowest entropy, among those with some probability above
    the quantile `bar` of all probabilities; each belongs to every language in which its probability
    is above that. Fewer, if not so many pass the bar; of equal entropies the first neurons.

    Args:
        probability: of activation.
        top: share of all neurons to choose.
        bar: quantile of all probabilities, of every language and neuron.

    Raises:
        ShapeError: axes other than language, layer and neuron.
        InputError: one language alone, numbers that are no probabilities, shares outside 0 ... 1 or
            that come to no neuron.
    """
    entropy = activation_entropy(probability)
    if len(probability) < 2:
        raise InputError("language neurons need at least two languages to tell apart; got one.")
    for name, value in (("top", top), ("bar", bar)):
        if not 0 < value < 1:
            raise InputError(f"{name} is {value!r}, expected a share between 0 and 1.")
    above = probability > _quantile(probability, bar)
    rank = torch.where(above.any(0), entropy, math.inf).flatten()
    if not (n := round(len(rank) * top)):
        raise InputError(f"top={top} of {len(rank)} neurons is none; raise it.")
    lowest = rank.argsort(stable=True)[:n]
    chosen = torch.zeros_like(rank, dtype=torch.bool)
    chosen[lowest] = rank[lowest].isfinite()
    return above & chosen.view(entropy.shape)


def _quantile(values: Tensor, share: float) -> Tensor:
    """The value that a share of all are not above: one of them, as in the authors' code."""
    flat = values.flatten()
    return flat.kthvalue(max(1, round(len(flat) * share))).values


def _check(probability: Tensor) -> None:
    if probability.ndim != 3 or not probability.numel():
        raise ShapeError(
            "probability", got=probability.shape, expected="[language layer neuron], not empty"
        )
    if not bool(((probability >= 0) & (probability <= 1)).all()):
        raise InputError("activation probabilities lie between 0 and 1; these do not.")
