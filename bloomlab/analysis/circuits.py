"""What heads do to tokens, by their weights: eigenvalues, copying and extreme tokens.

Nonzero eigenvalues of A B are those of B A: those of a [vocab vocab] circuit through a head are
found in a [d_head d_head] matrix, by way of a Gram matrix [d_model d_model] that all heads of a
layer share. Circuits and scores: Elhage et al. (2021), A Mathematical Framework for Transformer
Circuits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor


def ov_eigenvalues(
    W_V: Float[Tensor, "head d_model d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    gram: Float[Tensor, "d_model d_model"],
) -> Complex[Tensor, "head d_head"]:
    """Nonzero eigenvalues of each head's X W_V W_O U [vocab vocab]: those of W_O (U X) W_V.

    Args:
        W_V: value weights.
        W_O: output weights.
        gram: U X, of what a layer reads for each token, X [vocab d_model], and what makes logits
            of its writes, U [d_model vocab].
    """
    return _eigenvalues(W_O @ gram @ W_V)


def qk_eigenvalues(
    W_Q: Float[Tensor, "head d_model d_head"],
    W_K: Float[Tensor, "head d_model d_head"],
    gram: Float[Tensor, "d_model d_model"],
) -> Complex[Tensor, "head d_head"]:
    """Nonzero eigenvalues of each head's X W_Q W_K^T X^T [vocab vocab]; `gram` is X^T X."""
    return _eigenvalues(W_K.mT @ gram @ W_Q)


def copying_score(eigenvalues: Complex[Tensor, "head d_head"]) -> Float[Tensor, " head"]:
    """Sum of eigenvalues over the sum of their sizes: -1 ... 1.

    1: tokens promote themselves (OV), or look for themselves (QK); -1: the contrary; about 0:
    neither. NaN for a head that does nothing.
    """
    return eigenvalues.real.sum(-1) / eigenvalues.abs().sum(-1)


def random_composition(d_model: int) -> float:
    """Composition score that two heads get by chance: d_model^(-1/2).

    Root mean square of ||A R B|| / (||A|| ||B||) over all rotations R, whatever A and B are.
    """
    return d_model**-0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Extremes:
    """The tokens with the highest and lowest values, best first.

    Attributes:
        highest: ids of the k highest.
        high: their values.
        lowest: ids of the k lowest.
        low: their values.
    """

    highest: Int[Tensor, "row k"]
    high: Float[Tensor, "row k"]
    lowest: Int[Tensor, "row k"]
    low: Float[Tensor, "row k"]


def extremes(
    writes: Float[Tensor, "row d_model"],
    read_out: Callable[[Tensor], Tensor],
    k: int,
    *,
    at_once: int,
) -> Extremes:
    """The k tokens that each row promotes and suppresses most; on the CPU.

    Args:
        writes: what is written to the stream.
        read_out: makes values [row vocab] of it.
        k: at most the vocabulary.
        at_once: rows whose values are in memory.
    """
    found: list[tuple[Tensor, ...]] = []
    for first in range(0, len(writes), at_once):
        values = read_out(writes[first : first + at_once])
        high, low = values.topk(k, -1), values.topk(k, -1, largest=False)
        found.append((high.indices, high.values, low.indices, low.values))
    highest, high, lowest, low = (torch.cat(one).cpu() for one in zip(*found, strict=True))
    return Extremes(highest=highest, high=high, lowest=lowest, low=low)


def _eigenvalues(matrices: Tensor) -> Tensor:
    return cast(Tensor, torch.linalg.eigvals(matrices))  # pyright: ignore[reportUnknownMemberType]  # no stub
