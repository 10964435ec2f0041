"""An order in which heads are removed, and the heads that stay when some are gone."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from bloomlab.errors import InputError, NumericalError, ShapeError
from bloomlab.experiments.heads import Head, head_sets


@dataclass(frozen=True, kw_only=True)
class HeadOrder:
    """Heads in the order of their removal, the first to go first.

    Attributes:
        heads: (layer, head) pairs.
        scores: how much each seemed to matter when it was chosen.
        metrics: the model's metric once the head is gone too; NaN where it was not measured.
        protected: heads that are never removed, sorted.
        shape: number of layers, and of heads in a layer.
        clean: the metric with every head; NaN where it was not measured.
    """

    heads: tuple[Head, ...]
    scores: tuple[float, ...]
    metrics: tuple[float, ...]
    protected: tuple[Head, ...]
    shape: tuple[int, int]
    clean: float = float("nan")

    @property
    def frame(self) -> pd.DataFrame:
        """One row a removed head: rank (0 goes first), layer, head, score, metric."""
        return pd.DataFrame(
            {
                "rank": range(len(self.heads)),
                "layer": [layer for layer, _ in self.heads],
                "head": [head for _, head in self.heads],
                "score": self.scores,
                "metric": self.metrics,
            }
        )

    def keep(self, k: Any) -> Bool[Tensor, "layer head"]:
        """True for the `k` heads that stay; every such mask holds those of smaller `k`.

        Raises:
            InputError: more heads than there are, or fewer than those that are never removed.
        """
        low, high = len(self.protected), len(self.protected) + len(self.heads)
        if isinstance(k, bool) or not hasattr(k, "__index__") or not low <= k <= high:
            why = f" ({low} heads are never removed, to leave some in every layer)" if low else ""
            raise InputError(f"k is {k!r}, expected {low} to {high} heads that stay{why}.")
        mask = torch.zeros(self.shape, dtype=torch.bool)
        for head in (*self.protected, *self.heads[high - k :]):
            mask[head] = True
        return mask


def one_shot_order(scores: Any, *, at_least_k_per_layer: Any = 0) -> HeadOrder:
    """Heads by rising score; equal ones by layer, then head.

    Args:
        scores: [layer head], larger for a head that matters more.
        at_least_k_per_layer: heads that every layer keeps, its best ones.

    Raises:
        ShapeError: scores that are no matrix.
        NumericalError: a score that is NaN or infinite; names the head.
        InputError: layers have fewer heads than they should keep.
    """
    matrix = torch.as_tensor(scores)
    if matrix.ndim != 2:
        raise ShapeError("scores", got=matrix.shape, expected="[layer head]")
    n_layer, n_head = matrix.shape
    check_at_least(at_least_k_per_layer, n_head)
    every = every_head(n_layer, n_head)
    found = finite_scores(matrix, every)
    order = weakest_first(found, at_least_k_per_layer)
    return HeadOrder(
        heads=tuple(order),
        scores=tuple(found[head] for head in order),
        metrics=(float("nan"),) * len(order),
        protected=tuple(sorted(set(every) - set(order))),
        shape=(n_layer, n_head),
    )


def listed_order(model: Any, heads: Any) -> HeadOrder:
    """(layer, head) pairs in the order of their removal; heads that are left out stay for good.

    Raises:
        InputError: no such heads, one twice, or something else.
    """
    n_layer, n_head = model.config.n_layer, model.config.n_head
    if isinstance(heads, Tensor):
        raise ShapeError("a ranking", got=heads.shape, expected=f"[{n_layer} {n_head}]")
    listed = [one for several in head_sets(model, heads) for one in several]
    if len(set(listed)) < len(listed):
        twice = next(head for head, n in Counter(listed).items() if n > 1)
        raise InputError(f"L{twice[0]}H{twice[1]} is in the ranking twice.")
    blank = (float("nan"),) * len(listed)
    return HeadOrder(
        heads=tuple(listed),
        scores=blank,
        metrics=blank,
        protected=tuple(sorted(set(every_head(n_layer, n_head)) - set(listed))),
        shape=(n_layer, n_head),
    )


def weakest_first(scores: Mapping[Head, float], at_least: int = 0) -> list[Head]:
    """Heads by rising score, without those that a layer needs to keep `at_least` of its own."""
    left, order = Counter(layer for layer, _ in scores), []
    for head in sorted(scores, key=lambda head: (scores[head], head)):
        if left[head[0]] > at_least:
            left[head[0]] -= 1
            order.append(head)
    return order


def removable(heads: Collection[Head], at_least: int) -> list[Head]:
    """Heads of layers that have more than `at_least`, sorted."""
    left = Counter(layer for layer, _ in heads)
    return sorted(head for head in heads if left[head[0]] > at_least)


def finite_scores(matrix: Any, heads: Sequence[Head]) -> dict[Head, float]:
    """The entries of some heads.

    Raises:
        NumericalError: one is NaN or infinite; names the head.
    """
    values = torch.as_tensor(matrix).detach().double().cpu()
    found = {head: values[head].item() for head in heads}
    for (layer, head), score in found.items():
        if not abs(score) < float("inf"):
            raise NumericalError(
                f"the score of L{layer}H{head} is {score}, expected a number. Check the scorer, or "
                "leave out the example that breaks it."
            )
    return found


def every_head(n_layer: int, n_head: int) -> list[Head]:
    """All heads, sorted."""
    return [(layer, head) for layer in range(n_layer) for head in range(n_head)]


def check_at_least(at_least: Any, n_head: int) -> None:
    """Raise unless every layer of so many heads can keep so many.

    Raises:
        InputError: no whole number from 0 to `n_head`.
    """
    whole = hasattr(at_least, "__index__") and not isinstance(at_least, bool)
    if not (whole and 0 <= at_least <= n_head):
        raise InputError(
            f"at_least_k_per_layer is {at_least!r}, expected 0 to {n_head}: the heads of a layer."
        )
