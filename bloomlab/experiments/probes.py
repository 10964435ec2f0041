"""Fitted probes: their scores beside the baselines, and what they read from other activations."""

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.analysis.linear_probe import LinearProbe
from bloomlab.analysis.probes import OnlineCode
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.probe_scores import Tested
from bloomlab.experiments.sites import Point

Key = tuple[str, int | None, int | None]  # site, layer, head


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A probe and how it did on the test texts.

    Attributes:
        probe: weights, bias, mean and scale.
        predicted: number of the class of each test example.
        control: the same of a probe fitted on control labels; None for labels of texts.
        random: the same of a probe on a model with random weights.
        code: of the train examples, if it was asked for.
    """

    probe: LinearProbe
    predicted: Int[Tensor, " example"]
    control: Int[Tensor, " example"] | None
    random: Int[Tensor, " example"]
    code: OnlineCode | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Probes(Framed):
    """Probes at every layer (and head) of the asked sites; made by `probe`.

    Attributes:
        classes: names of the labels; a probe's class axis has this order.
        points: the hook points.
        fitted: by site, layer and head; None where there is no such axis.
        tested: the true labels of the test examples, and the baselines.
        split: numbers of the texts of "train", "dev" and "test".
        unit: "token", "span" or "text": what has a label.
        kind: "logistic", "ridge", "linear", or what a classifier of scikit-learn calls itself.
        pool: what the vector of several tokens was.
    """

    classes: tuple[Any, ...]
    points: list[Point]
    fitted: dict[Key, Fitted]
    tested: Tested
    split: dict[str, Int[Tensor, " _"]]
    unit: str
    kind: str
    pool: str

    @property
    def frame(self) -> pd.DataFrame:
        """One row a probe, scores on the test texts; intervals of 95%, see `intervals`."""
        return self.intervals()

    def intervals(self, level: float = 0.95, *, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
        """One row a probe; intervals are of the bootstrap over test texts.

        Columns: site, layer, head; accuracy, low, high; f1 (macro, over the classes that the test
        texts have), f1_low, f1_high; the accuracies of baselines: majority (the commonest class of
        the train texts), embedding (the same probe on the token embeddings), random (the same
        probe, site and layer, on random weights), control_accuracy (the same probe on control
        labels, NaN for labels of texts); selectivity, selectivity_low, selectivity_high; strength
        (the chosen C or alpha); bits and compression of the online code, if it was asked for.
        """
        rows = []
        for (site, layer, head), one in self.fitted.items():
            row: dict[str, Any] = {"site": site, "layer": layer, "head": head}
            row |= self.tested.scores(
                one.predicted, one.control, one.random, level=level, draws=draws, seed=seed
            )
            row["strength"] = one.probe.strength
            if one.code is not None:
                row |= {"bits": one.code.bits, "compression": one.code.compression}
            rows.append(row)
        return pd.DataFrame(rows).astype({"layer": "Int64", "head": "Int64"})

    def one(
        self, layer: int | None = None, *, site: str | None = None, head: int | None = None
    ) -> LinearProbe:
        """The probe at a layer (and head) of a site.

        Args:
            layer: None for a site outside the layers.
            site: None, if all probes are of one.
            head: its number in the unpruned model; None, if the site has no heads.

        Raises:
            InputError: no site named where there are several.
            UnknownNameError: no such probe.
        """
        key = self._site(site), layer, head
        if key not in self.fitted:
            known = [_name(*one) for one in self.fitted]
            raise UnknownNameError("probe", _name(*key), known)
        return self.fitted[key].probe

    def read(
        self,
        stream: Float[Tensor, "*lead d"],
        layer: int | None = None,
        *,
        site: str | None = None,
        head: int | None = None,
    ) -> Float[Tensor, "*lead class"]:
        """Logits of each class for new activations; of a logistic probe log-odds, up to a constant.

        Raises:
            ShapeError: vectors of another width.
            InputError, UnknownNameError: as `one`.
        """
        return self.one(layer, site=site, head=head).logits(stream)

    def direction(
        self,
        layer: int | None,
        label: Any,
        *,
        site: str | None = None,
        head: int | None = None,
    ) -> Float[Tensor, " d"]:
        """Where in the stream a label's logit, less the mean of all, rises; not of length one.

        Raises:
            UnknownNameError: no such label or probe.
        """
        if label not in self.classes:
            raise UnknownNameError("label", label, map(str, self.classes))
        return self.one(layer, site=site, head=head).gradient(self.classes.index(label))

    @property
    def weights(self) -> Float[Tensor, "layer *head class d"]:
        """Of all layers (and heads) of the one site, on standardised features.

        NaN for heads that a pruned model lacks.

        Raises:
            InputError: several sites, or layers that differ in width; take them one by one.
        """
        return self._stacked("weights")

    @property
    def bias(self) -> Float[Tensor, "layer *head class"]:
        """Biases, as `weights`."""
        return self._stacked("bias")

    @property
    def mean(self) -> Float[Tensor, "layer *head d"]:
        """Means of the features, as `weights`."""
        return self._stacked("mean")

    @property
    def scale(self) -> Float[Tensor, "layer *head d"]:
        """Standard deviations of the features, as `weights`."""
        return self._stacked("scale")

    def _site(self, site: str | None) -> str:
        known = list(dict.fromkeys(site for site, _, _ in self.fitted))
        if site is None and len(known) > 1:
            raise InputError(f"there are probes at the sites {known}. Say which by site=....")
        return known[0] if site is None else site

    def _stacked(self, field: str) -> Tensor:
        site = self._site(None)
        some = {key[1:]: getattr(one.probe, field) for key, one in self.fitted.items()}
        if len({value.shape for value in some.values()}) > 1:
            raise InputError(
                f"layers of {site!r} differ in width. Take them one by one: one(layer)."
            )
        layers = sorted({layer for layer, _ in some}, key=lambda layer: layer or 0)
        heads = sorted({head for _, head in some if head is not None})
        if not heads:
            return torch.stack([some[layer, None] for layer in layers])
        lost = torch.full_like(next(iter(some.values())), math.nan)
        return torch.stack(
            [
                torch.stack([some.get((layer, head), lost) for head in range(heads[-1] + 1)])
                for layer in layers
            ]
        )


def _name(site: str, layer: int | None, head: int | None) -> str:
    parts = [
        site,
        "" if layer is None else f"layer {layer}",
        "" if head is None else f"head {head}",
    ]
    return ", ".join(part for part in parts if part)
