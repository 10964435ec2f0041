"""Concept erasure: maps after which labels can no longer be read linearly.

LEACE (Belrose et al., 2023, arXiv:2306.03819); iterative nullspace projection (INLP; Ravfogel et
al., 2020, arXiv:2004.07667) and its control, random directions (Elazar et al., 2021,
arXiv:2006.00995).
"""

# pyright: standard
# torch.linalg comes without types

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.analysis.logistic import LogisticProblem
from bloomlab.errors import InputError, ShapeError

CORRELATED = 1e-10  # singular value of the whitened cross-covariance that counts as one
RELATIVE = 1e-6  # singular value of a probe's weights, of the largest, that counts as a direction


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Eraser:
    """r(x) = weights (x - mean) + mean: what is erased is set to what it is on average.

    Attributes:
        weights: the projection, float64.
        mean: the point that stays where it is, float64.
        rank: number of directions that are lost.
    """

    weights: Float[Tensor, "d d"]
    mean: Float[Tensor, " d"]
    rank: int

    @property
    def bias(self) -> Float[Tensor, " d"]:
        """So that r(x) = weights x + bias."""
        return self.mean - self.weights @ self.mean

    def __call__(self, x: Float[Tensor, "*lead width"]) -> Float[Tensor, "*lead width"]:
        """Vectors without the concept, in their own dtype; computed in float32 at least.

        Raises:
            ShapeError: vectors of another width.
        """
        if x.shape[-1] != len(self.mean):
            raise ShapeError("x", got=x.shape, expected=f"[... {len(self.mean)}]")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        erased = torch.eye(len(self.mean), dtype=torch.float64) - self.weights.cpu()
        removed = (wide - self.mean.to(wide)) @ erased.T.to(wide)
        return (wide - removed).to(x.dtype)


def leace(x: Float[Tensor, "example d"], labels: Any) -> Eraser:
    """The smallest change, in mean square, after which no linear probe knows the labels.

    r(x) = x - W^+ P W (x - mean), with W the whitening of x and P the projection onto the range of
    W Sigma_xz. On the examples that it was fitted on, the erased vectors and the labels (one-hot)
    have no covariance, so the best linear probe is the majority class. Computed in float64, in the
    eigenbasis of the covariance, without directions in which nothing varies.

    Args:
        x: vectors.
        labels: class of each, a tensor [example] of any whole numbers.

    Raises:
        InputError: fewer than two classes or vectors that are not finite.
        ShapeError: another number of labels than of vectors.
    """
    wide, classes, n_class = _checked(x, labels)
    mean = wide.mean(0)
    centred = wide - mean
    values, basis = torch.linalg.eigh(centred.T @ centred / len(wide))
    kept = values > values[-1] * len(values) * torch.finfo(torch.float64).eps
    basis, spread = basis[:, kept], values[kept].sqrt()
    concept = torch.nn.functional.one_hot(classes, n_class)[:, 1:].double()  # one is implied
    between = centred.T @ (concept - concept.mean(0)) / len(wide)
    directions, size, _ = torch.linalg.svd((basis / spread).T @ between, full_matrices=False)
    directions = directions[:, size > CORRELATED]
    lost = (basis * spread @ directions) @ (basis / spread @ directions).T
    eye = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
    return Eraser(weights=eye - lost, mean=mean, rank=directions.shape[1])


def inlp(
    x: Float[Tensor, "example d"],
    labels: Any,
    n_iter: int,
    *,
    strength: float = 1.0,
) -> Eraser:
    """Projects out the weights of a logistic probe, of one fitted on what is left, and so on.

    Each of `n_iter` probes costs classes - 1 directions. Vectors keep their mean along what is
    projected out (the paper sets it to 0, which no probe with a bias can tell).

    Args:
        x: vectors.
        labels: class of each, a tensor [example] of any whole numbers.
        n_iter: number of probes; it ends earlier when no direction is left.
        strength: C of the probes, as in scikit-learn, on vectors whose standard deviation is one.

    Raises:
        InputError: fewer than two classes, vectors that are not finite, or n_iter below 1.
        ShapeError: another number of labels than of vectors.
    """
    if n_iter < 1:
        raise InputError(f"n_iter is {n_iter}, expected 1 or more probes.")
    wide, classes, n_class = _checked(x, labels)
    mean, d = wide.mean(0), wide.shape[1]
    spread = wide.std(0).clamp(min=torch.finfo(torch.float64).tiny)
    directions = wide.new_zeros(d, 0)
    for _ in range(n_iter):
        left = wide - mean
        left = left - left @ directions @ directions.T
        problem = LogisticProblem(left / spread)
        weights, _ = next(problem.fit(classes, n_class, [strength]))
        rows = weights.to(wide) / spread
        rows = rows - rows @ directions @ directions.T
        _, size, basis = torch.linalg.svd(rows, full_matrices=False)
        new = basis[size > RELATIVE * size[0]][: d - directions.shape[1]]
        directions = torch.linalg.qr(torch.cat([directions, new.T], 1))[0]
        if directions.shape[1] == d:
            break
    return _projecting_out(directions, mean)


def random_eraser(like: Eraser, *, seed: int = 0) -> Eraser:
    """The control of an eraser: as many directions, drawn at random, evenly; the same mean.

    Args:
        like: what it is the control of.
        seed: of the draw.
    """
    source = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(like.mean), like.rank, generator=source, dtype=torch.float64)
    return _projecting_out(torch.linalg.qr(drawn)[0].to(like.mean.device), like.mean)


def _projecting_out(directions: Float[Tensor, "d rank"], mean: Float[Tensor, " d"]) -> Eraser:
    """The orthogonal projection along orthonormal directions."""
    d, rank = directions.shape
    eye = torch.eye(d, dtype=directions.dtype, device=directions.device)
    return Eraser(weights=eye - directions @ directions.T, mean=mean, rank=rank)


def _checked(
    x: Float[Tensor, "example d"], labels: Any
) -> tuple[Float[Tensor, "example d"], Int[Tensor, " example"], int]:
    """Vectors in float64, classes from 0, and their number."""
    if not isinstance(labels, Tensor) or labels.ndim != 1:
        raise InputError(
            f"labels are {labels!r:.60}, expected a tensor of one whole number for each vector, "
            "such as the `labels` of label_examples."
        )
    if len(labels) != len(x):
        raise ShapeError("labels", got=labels.shape, expected=f"[{len(x)}], one for each vector")
    if not bool(x.isfinite().all()):
        raise InputError("some vectors are NaN or infinite; expected finite numbers.")
    kinds, classes = torch.unique(labels.to(x.device), return_inverse=True)
    if len(kinds) < 2:
        raise InputError(f"labels are of {len(kinds)} classes, expected 2 or more.")
    return x.double(), classes, len(kinds)
