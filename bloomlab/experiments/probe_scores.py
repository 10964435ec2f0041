"""Scores of predicted labels: accuracy, macro F1, selectivity, with intervals over texts."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.analysis.probes import resampled_interval, selectivity


@dataclass(frozen=True, kw_only=True)
class Tested:
    """What probes are tested against.

    Attributes:
        labels: the true classes of the test examples.
        control: their control labels; None for labels of texts.
        text: the text of each, counted from 0.
        n_class: number of classes.
        majority: accuracy of always saying the commonest class of the train texts.
        embedding: accuracy of the same kind of probe on the token embeddings.
    """

    labels: Int[Tensor, " example"]
    control: Int[Tensor, " example"] | None
    text: Int[Tensor, " example"]
    n_class: int
    majority: float
    embedding: float

    def accuracy(self, predicted: Int[Tensor, " example"]) -> float:
        """Share of the examples that are right."""
        return float((predicted == self.labels).double().mean())

    def scores(
        self,
        predicted: Int[Tensor, " example"],
        control: Int[Tensor, " example"] | None,
        random: Int[Tensor, " example"],
        *,
        level: float,
        draws: int,
        seed: int,
    ) -> dict[str, float]:
        """A row of `Probes.frame`: scores, intervals and baselines."""
        options = {"level": level, "draws": draws, "seed": seed}
        right = (predicted == self.labels).double()
        ones = torch.ones_like(right)
        low, high = resampled_interval(self._sums(right, ones), _ratio, **options)
        counts = self._confusion(predicted)
        f1_low, f1_high = resampled_interval(counts, _macro_f1, **options)
        row = {"accuracy": float(right.mean()), "low": low, "high": high}
        row |= {"f1": float(_macro_f1(counts.sum(0)[None])), "f1_low": f1_low, "f1_high": f1_high}
        row |= {"majority": self.majority, "embedding": self.embedding}
        row["random"] = self.accuracy(random)
        names = ("control_accuracy", "selectivity", "selectivity_low", "selectivity_high")
        if control is None or self.control is None:
            return row | dict.fromkeys(names, math.nan)
        known = (control == self.control).double()
        low, high = resampled_interval(self._sums(right - known, ones), _ratio, **options)
        by_heart = float(known.mean())
        values = (by_heart, selectivity(row["accuracy"], by_heart), low, high)
        return row | dict(zip(names, values, strict=True))

    def _sums(self, *values: Tensor) -> Float[Tensor, "text part"]:
        stacked = torch.stack(values, 1)
        sums = stacked.new_zeros(int(self.text[-1]) + 1, len(values))
        return sums.index_add_(0, self.text, stacked)

    def _confusion(self, predicted: Tensor) -> Float[Tensor, "text part"]:
        """Of each text and class: true positives, predicted, and there."""
        one_hot = torch.nn.functional.one_hot
        said, true = one_hot(predicted, self.n_class), one_hot(self.labels, self.n_class)
        return self._sums(*torch.cat([said * true, said, true], 1).double().unbind(1))


def _ratio(sums: Tensor) -> Tensor:
    return sums[:, 0] / sums[:, 1]


def _macro_f1(sums: Tensor) -> Tensor:
    """Mean of F1 over the classes that are there; 0 for one that is never predicted right."""
    right, said, true = sums.chunk(3, 1)
    f1 = 2 * right / (said + true).clamp(min=1)
    return torch.where(true > 0, f1, 0.0).sum(1) / (true > 0).sum(1)
