"""A linear probe: classes read from vectors, fitted on some and chosen on others."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.analysis.estimators import EstimatorProblem, check_classifier
from bloomlab.analysis.logistic import LogisticProblem
from bloomlab.analysis.ridge import RidgeProblem
from bloomlab.errors import InputError, ShapeError, UnknownNameError

KINDS = ("logistic", "ridge", "linear")
STRENGTHS = {  # scikit-learn's C, from strong to weak penalty; alpha as a share of the examples
    "logistic": (1e-3, 1e-2, 1e-1, 1.0),
    "ridge": (1.0, 1e-1, 1e-2, 1e-3),
    "linear": (0.0,),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearProbe:
    """logits = weights ((h - mean) / scale) + bias.

    Attributes:
        weights: on standardised features.
        bias: of each class.
        mean: of the features it was fitted on.
        scale: their standard deviation; 1 where they are constant.
        strength: the chosen C (logistic) or alpha; NaN for a classifier of scikit-learn.
    """

    weights: Float[Tensor, "class d"]
    bias: Float[Tensor, " class"]
    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    strength: float

    def logits(self, stream: Float[Tensor, "*lead d"]) -> Float[Tensor, "*lead class"]:
        """What each class gets, in float32 at least; log-odds for a logistic probe.

        Raises:
            ShapeError: vectors of another width.
        """
        if stream.shape[-1] != len(self.mean):
            raise ShapeError("stream", got=stream.shape, expected=f"[..., {len(self.mean)}]")
        wide = stream.to(torch.promote_types(stream.dtype, torch.float32))
        scaled = (wide - self.mean.to(wide)) / self.scale.to(wide)
        return scaled @ self.weights.T.to(wide) + self.bias.to(wide)

    def gradient(self, label: int) -> Float[Tensor, " d"]:
        """How the logit of a class, less the mean of all, rises with the stream."""
        return (self.weights[label] - self.weights.mean(0)) / self.scale


def check_kind(kind: Any, strengths: Any = None) -> None:
    """Raise unless this is a kind of probe.

    Raises:
        UnknownNameError: a name that is none.
        InputError: no classifier of scikit-learn, strengths for one or for "linear", or strengths
            that are not above 0.
    """
    if not isinstance(kind, str):
        check_classifier(kind)
        if strengths is not None:
            raise InputError(f"{kind!r:.60} has parameters of its own: leave strengths out.")
    elif kind not in KINDS:
        raise UnknownNameError("kind of probe", kind, KINDS)
    elif kind == "linear" and strengths is not None:
        raise InputError("kind='linear' has no penalty: leave strengths out, or take 'ridge'.")
    elif strengths is not None and not all(strength > 0 for strength in strengths):
        raise InputError(f"strengths is {list(strengths)}, expected numbers above 0.")


class ProbeFitter:
    """Features of a train and a dev part, on which probes of several label sets are fitted.

    Args:
        train: what is fitted on.
        dev: what the strength is chosen on; may be empty if there is one strength.
        kind: "logistic", "ridge" (one-hot targets), "linear" (ridge without penalty), or a linear
            classifier of scikit-learn, which has a strength of its own.
        strengths: what C or alpha is chosen from; None: `STRENGTHS`, alpha times the examples.

    Raises:
        UnknownNameError: no such kind.
        InputError: nothing to choose one of several strengths on, no strength, or strengths for a
            classifier of scikit-learn.
    """

    def __init__(
        self,
        train: Float[Tensor, "example d"],
        dev: Float[Tensor, "other d"],
        *,
        kind: Any = "logistic",
        strengths: Sequence[int | float] | None = None,
    ) -> None:
        check_kind(kind, strengths)
        if not isinstance(kind, str):
            strengths = (math.nan,)
        unit = 1 if kind == "logistic" else len(train)
        chosen = [unit * s for s in STRENGTHS[kind]] if strengths is None else list(strengths)
        self.strengths: list[float] = chosen
        if not self.strengths or (len(self.strengths) > 1 and not len(dev)):
            raise InputError(
                f"there are {len(self.strengths)} strengths and {len(dev)} dev examples to choose "
                "on. Give more dev examples, or one strength."
            )
        wide = train.to(torch.promote_types(train.dtype, torch.float32))
        self.mean, spread = wide.double().mean(0), wide.double().std(0, correction=0)
        self.scale = torch.where(spread > 1e-7 * (1 + self.mean.abs()), spread, 1.0)
        self.dev = dev
        scaled = (wide - self.mean.to(wide)) / self.scale.to(wide)
        self.problem: LogisticProblem | RidgeProblem | EstimatorProblem
        if not isinstance(kind, str):
            self.problem = EstimatorProblem(scaled, kind)
        else:
            self.problem = LogisticProblem(scaled) if kind == "logistic" else RidgeProblem(scaled)

    def fit(
        self, train: Int[Tensor, " example"], dev: Int[Tensor, " other"], n_class: int
    ) -> LinearProbe:
        """The probe of the strength with the highest accuracy on dev; of equals the first.

        Strengths are tried in order until one is worse than the best before it.
        """
        return self.fit_each([(train, dev)], n_class)[0]

    def fit_each(
        self, labels: Sequence[tuple[Int[Tensor, " example"], Int[Tensor, " other"]]], n_class: int
    ) -> list[LinearProbe]:
        """`fit` for several sets of labels of train and dev, in about the time of one."""
        found: list[LinearProbe | None] = [None for _ in labels]
        most, worse = [-1 for _ in labels], [False for _ in labels]
        path = self._path(torch.stack([train for train, _ in labels]).long(), n_class)
        for strength, (weights, bias) in zip(self.strengths, path, strict=True):
            for i, (_, dev) in enumerate(labels):
                if worse[i]:
                    continue
                one = LinearProbe(
                    weights=weights[i].float(),
                    bias=bias[i].float(),
                    mean=self.mean.float(),
                    scale=self.scale.float(),
                    strength=float(strength),
                )
                right = int((one.logits(self.dev).argmax(-1) == dev).sum())
                if found[i] is None or right > most[i]:
                    found[i], most[i] = one, right
                worse[i] = right < most[i]
            if all(worse):
                break
        return [one for one in found if one is not None]

    def _path(
        self, labels: Int[Tensor, "set example"], n_class: int
    ) -> Iterator[tuple[Float[Tensor, "set class d"], Float[Tensor, "set class"]]]:
        """Weights and biases of every set for each strength."""
        if not isinstance(self.problem, RidgeProblem):
            yield from self.problem.fit(labels, n_class, self.strengths)
            return
        targets = torch.nn.functional.one_hot(labels, n_class).double()  # set example class
        side_by_side = targets.transpose(0, 1).flatten(1)
        for weights, bias in self.problem.fit(side_by_side, self.strengths):
            yield weights.unflatten(0, (len(labels), n_class)), bias.view(len(labels), n_class)
