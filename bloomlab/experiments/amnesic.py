"""What a language model loses with a concept: amnesic probing (Elazar et al., 2021, 2006.00995)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.analysis.erasure import Eraser, random_eraser
from bloomlab.analysis.intervals import bootstrap_mean
from bloomlab.errors import InputError, ShapeError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.metrics import Metric
from bloomlab.experiments.resume import require_bare
from bloomlab.experiments.sites import Point, find_points
from bloomlab.experiments.sweep import rows_that_fit

FAR = 1_000_003  # between the draws of two seeds
METRICS = ("cross_entropy", "accuracy")

Erasures = list[tuple[Point, Eraser]]  # of one run


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Amnesia(Framed):
    """What erasing did to the next-token predictions, text by text.

    Attributes:
        hooks: the erased hooks of each case.
        layers: the layer of each case; None outside the layers or for several hooks together.
        ranks: number of directions lost in each case.
        clean: of the model as it is; the metrics are `METRICS`, in nats per token and as a share
            of tokens.
        erased: with the concept erased.
        control: with random directions erased instead.
        level: of the intervals of `frame`.
    """

    hooks: tuple[str, ...]
    layers: tuple[int | None, ...]
    ranks: tuple[int, ...]
    clean: Float[Tensor, "metric text"]
    erased: Float[Tensor, "case metric text"]
    control: Float[Tensor, "case draw metric text"]
    level: float

    @property
    def frame(self) -> pd.DataFrame:
        """One row a case and metric, means over texts; low and high are bootstrap intervals.

        `effect`: erased less clean. `control`: random less clean, mean over draws too, and
        `control_spread`, the standard deviation of the draws' means. `beyond`: effect less
        control, which is due to the concept and not to the number of directions.
        """
        effect = self.erased - self.clean
        control = (self.control - self.clean[None, None]).mean(1)
        spread = self.control.mean(-1).std(1, correction=0)
        columns: dict[str, Any] = {}
        for name, values in (
            ("effect", effect),
            ("control", control),
            ("beyond", effect - control),
        ):
            low, high = bootstrap_mean(values, self.level)
            ends = {name: values.mean(-1), f"{name}_low": low, f"{name}_high": high}
            columns |= {key: value.flatten().tolist() for key, value in ends.items()}
        columns["control_spread"] = spread.flatten().tolist()
        places = zip(self.hooks, self.layers, self.ranks, strict=True)
        named = [(*place, metric) for place in places for metric in METRICS]
        found = pd.DataFrame(named, columns=["hook", "layer", "rank", "metric"])
        found["clean"] = self.clean.mean(-1).tolist() * len(self.hooks)
        return found.assign(**columns)


@torch.no_grad()
def amnesic_effect(
    model: Any,
    texts: Any,
    erasers: Mapping[str, Eraser],
    attention_mask: Any = None,
    *,
    together: bool = False,
    controls: int = 5,
    seed: int = 0,
    rows: int | None = None,
    level: float = 0.95,
    progress: bool = True,
) -> Amnesia:
    """Cross-entropy and next-token accuracy with a concept erased at hooks, beside a control.

    An eraser acts on every token; runs resume at its layer. The control erases as many random
    directions, drawn `controls` times, about the same mean. A text gives the same numbers alone
    and in any padded batch.

    Args:
        model: a BLOOM with a language-model head.
        texts: texts, ids [batch pos] or a dict with `attention_mask`; best not those that the
            erasers were fitted on.
        erasers: hook name -> eraser of its vectors, or of all its heads' side by side; such as
            `{point.name: leace(seen[point.name], given.labels) for point in seen.points}` of
            what `label_examples` gives and `collect` sees of it.
        attention_mask: [batch pos], 0 for padding.
        together: all in one run, as one case, instead of each alone.
        controls: number of random draws.
        seed: of the first draw.
        rows: texts in a forward; None: by free memory.
        level: of the intervals in `.frame`.
        progress: show a bar while it takes long.

    Raises:
        InputError: no erasers, a name that stands for several hooks, no data, a text of one token,
            controls or rows below 1, hooks that are attached.
        UnknownNameError: a hook that the model lacks.
        ShapeError: an eraser of the wrong width.
        UnsupportedError: heads of the model were pruned.
    """
    require_bare(model)
    for name, number in (("controls", controls), ("rows", rows)):
        if number is not None and number < 1:
            raise InputError(f"{name} is {number}, expected 1 or more.")
    data = dataset(model, texts, attention_mask)
    if not isinstance(erasers, Mapping):
        raise InputError(f"erasers is {erasers!r:.60}, expected {{hook name: eraser}}.")
    every = [(_point(model, name), eraser) for name, eraser in erasers.items()]
    if not every:
        raise InputError("there are no erasers. Give one for each hook: {hook name: eraser}.")
    cases = [every] if together else [[one] for one in every]
    metrics = [Metric(name) for name in METRICS]
    clean, runs = [], []
    size = rows or rows_that_fit(model, data)
    for _, part in data.chunks(size, progress=progress):
        one = _Part(model, part, metrics, cases)
        clean.append(one.clean)
        runs.append(
            torch.stack(
                [one.values(some) for case in cases for some in _runs(case, controls, seed)]
            )
        )
    values = torch.cat(runs, -1).unflatten(0, (len(cases), controls + 1))
    return Amnesia(
        hooks=tuple(" + ".join(point.name for point, _ in case) for case in cases),
        layers=tuple(case[0][0].layer if len(case) == 1 else None for case in cases),
        ranks=tuple(sum(eraser.rank for _, eraser in case) for case in cases),
        clean=torch.cat(clean, -1),
        erased=values[:, 0],
        control=values[:, 1:],
        level=level,
    )


class _Part:
    """Some texts: their clean run, and runs that resume from it with something erased."""

    def __init__(
        self, model: Any, data: Dataset, metrics: list[Metric], cases: list[Erasures]
    ) -> None:
        self.model, self.data, self.metrics = model, data, metrics
        self.targets = [metric.targets(data) for metric in metrics]
        self.before: dict[int, Tensor] = {}
        starts = {start for case in cases if (start := _first(case)) is not None}
        hooks = [
            (f"blocks.{layer}.hook_resid_pre", _keeping(layer, self.before)) for layer in starts
        ]
        self.clean = self._measured(data.tokens, hooks)

    def values(self, erasures: Erasures) -> Float[Tensor, "metric text"]:
        """The metrics with something erased."""
        start = _first(erasures)
        begun = self.data.tokens if start is None else self.before[start]
        hooks = [(point.name, _erasing(point, eraser)) for point, eraser in erasures]
        return self._measured(begun, hooks, start)

    def _measured(
        self, begun: Tensor, hooks: list[Any], start: int | None = None
    ) -> Float[Tensor, "metric text"]:
        mask = None if self.data.mask is None else self.data.mask.long()
        with self.model.hooks(fwd_hooks=hooks):
            last = self.model.backbone(
                begun, attention_mask=mask, use_cache=False, start_at_layer=start
            ).last
            found = [
                metric.values(last, self.model.unembed, target=target, tokens=self.data.tokens)
                for metric, target in zip(self.metrics, self.targets, strict=True)
            ]
        return torch.stack(found).double().cpu()


def _runs(case: Erasures, controls: int, seed: int) -> list[Erasures]:
    """What is erased in each run of a case: the concept, then random directions."""
    drawn = [
        [
            (point, random_eraser(eraser, seed=seed * FAR + draw * len(case) + number))
            for number, (point, eraser) in enumerate(case)
        ]
        for draw in range(controls)
    ]
    return [case, *drawn]


def _first(case: Erasures) -> int | None:
    """The layer at which a run may resume; None: it starts at the tokens."""
    layers = [point.layer for point, _ in case]
    return None if None in layers else min(layer for layer in layers if layer is not None)


def _point(model: Any, name: str) -> Point:
    found = find_points(model, name)
    if len(found) > 1:
        raise InputError(
            f"{name!r} stands for {len(found)} hooks, {found[0].name!r} and others. Give an eraser "
            "for each: {hook name: eraser}."
        )
    return found[0]


def _keeping(layer: int, kept: dict[int, Tensor]) -> Callable[..., None]:
    def keep(value: Tensor, hook: Any) -> None:
        kept[layer] = value

    keep.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
    return keep


def _erasing(point: Point, eraser: Eraser) -> Callable[..., Tensor]:
    width = len(eraser.mean)

    def erase(value: Tensor, hook: Any) -> Tensor:
        flat = value.flatten(2)
        if flat.shape[-1] != width:
            raise ShapeError(
                f"the eraser of {point.name!r}",
                got=eraser.weights.shape,
                expected=f"[{flat.shape[-1]}, {flat.shape[-1]}], as the vectors there",
            )
        return eraser(flat).view_as(value)

    return erase
