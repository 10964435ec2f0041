"""Scores of heads: put together from examples, made comparable, held against an exact sweep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy import stats
from torch import Tensor

from bloomlab.errors import InputError, ShapeError

NORMS = (None, "global", "layer")
ABSOLUTE = ("atp_star", "batch_abs", "example_abs", "fisher", "token_abs")
FORWARD_ONLY = ("attention_confidence", "output_norm")


class Agreement(NamedTuple):
    """Rank correlation of two scores: -1 opposite, 1 the same order; NaN if one is constant."""

    spearman: float
    kendall: float
    heads: int


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much each head seems to matter; a larger score is a more important head.

    Attributes:
        kind: how it was measured; see `head_importance`.
        norm: how layers were made comparable.
        matrix: the score.
        examples: what was aggregated: of the signed kinds the predicted harm of silencing the head,
            in the metric's unit; of "token_abs" and "atp_star" an absolute value; of
            "attention_confidence" and "output_norm" their value.
        metric: name of the metric.
        sign: 1 where harm is a rise of the metric (a loss), -1 where it is a fall.
        alive: False for heads that are masked; they score 0.
        residual: of "ig_joint", for each example, the sum of all effects less the exact effect of
            silencing all heads; of "ig_single", for each head, less its exact effect (the mean over
            examples); in the metric's unit. None of other kinds.
        interactions: of "fisher", E[g g^T] between any two heads.
    """

    kind: str
    norm: str | None
    matrix: Float[Tensor, "layer head"]
    examples: Float[Tensor, "example layer head"]
    metric: str
    sign: int
    alive: Bool[Tensor, "layer head"]
    residual: Float[Tensor, "*what"] | None = None
    interactions: Float[Tensor, "layer head layer head"] | None = None

    @property
    def approximate(self) -> bool:
        """Whether a score only estimates what ablation costs; `against` says how well."""
        return self.kind != "exact"

    @property
    def frame(self) -> pd.DataFrame:
        """One row a head: layer, head, score."""
        n_layer, n_head = self.matrix.shape
        return pd.DataFrame(
            {
                "layer": [layer for layer in range(n_layer) for _ in range(n_head)],
                "head": list(range(n_head)) * n_layer,
                "score": self.matrix.flatten().tolist(),
            }
        )

    def against(self, exact: Any) -> Agreement:
        """Rank correlation with an exact sweep: an `Ablation`, or an `Importance`.

        Effects are turned into harm; scores that are never negative are compared with its absolute
        value. Heads that are masked, or that the sweep left out, do not count.

        Raises:
            InputError: fewer than two heads in common.
            ShapeError: a sweep of a model of another shape.
        """
        theirs = exact.matrix.double().cpu()
        if theirs.shape != self.matrix.shape:
            raise ShapeError("exact", got=theirs.shape, expected=f"{list(self.matrix.shape)}")
        if not isinstance(exact, Importance):
            theirs = self.sign * theirs
        if self.kind in (*ABSOLUTE, *FORWARD_ONLY):
            theirs = theirs.abs()
        both = self.alive & theirs.isfinite() & self.matrix.isfinite()
        n = int(both.sum())
        if n < 2:
            raise InputError(f"{n} heads have both scores, expected at least 2 to rank.")
        a, b = self.matrix.double()[both], theirs[both]
        if bool((a == a[0]).all() | (b == b[0]).all()):
            return Agreement(float("nan"), float("nan"), n)
        spearman: Any = stats.spearmanr(a.numpy(), b.numpy())
        kendall: Any = stats.kendalltau(a.numpy(), b.numpy())
        return Agreement(float(spearman.statistic), float(kendall.statistic), n)


def aggregated(
    kind: str, batches: Sequence[Float[Tensor, "_ layer head"]]
) -> Float[Tensor, "layer head"]:
    """One score a head from those of each batch's examples."""
    whole = torch.cat(list(batches))
    if kind == "batch_abs":
        weights = [len(batch) / len(whole) for batch in batches]
        parts = [w * batch.mean(0).abs() for w, batch in zip(weights, batches, strict=True)]
        return torch.stack(parts).sum(0)
    if kind == "example_abs":
        return whole.abs().mean(0)
    return (whole**2).mean(0) if kind == "fisher" else whole.mean(0)


def normalised(
    matrix: Float[Tensor, "layer head"], norm: str | None, alive: Bool[Tensor, "layer head"]
) -> Float[Tensor, "layer head"]:
    """Scores by the norm of their layer, or stretched to 0..1; masked heads are 0 and do not count.

    "layer" divides by the layer's L2 norm over heads that are not masked (Michel et al., 2019); a
    layer of zeros stays one. "global" maps the least to 0 and the greatest to 1, which no other run
    can be compared with.
    """
    matrix = matrix.masked_fill(~alive, 0)
    if norm == "layer":
        length = matrix.norm(dim=1, keepdim=True)
        return torch.where(length > 0, matrix / length.where(length > 0, 1.0), matrix)
    if norm == "global" and bool(alive.any()):
        low, high = matrix[alive].min(), matrix[alive].max()
        spread = high - low if high > low else torch.ones_like(high)
        return ((matrix - low) / spread).masked_fill(~alive, 0)
    return matrix
