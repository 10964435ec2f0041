"""What steering does to a metric, for every layer and strength.

Effects are metric(steered) - metric(clean). What lies before the steered layer is computed once,
and strengths are batched as rows; the result equals one whole forward each (tested).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import InputError, NumericalError, ShapeError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.metrics import Metric, Target
from bloomlab.experiments.sites import Point, find_points
from bloomlab.experiments.steering import Directions

ROWS = 32  # rows in a forward


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SteeringSweep(Framed):
    """Effects of steering, for every example; made by `steering_sweep`.

    Attributes:
        points: where was steered.
        coefficients: strengths.
        effects: metric(steered) - metric(clean).
        clean: the metric of the clean run.
        metric: its name.
    """

    points: tuple[Point, ...]
    coefficients: tuple[float, ...]
    effects: Float[Tensor, "place coefficient example"]
    clean: Float[Tensor, " example"]
    metric: str

    @property
    def stderr(self) -> Float[Tensor, "place coefficient"]:
        """Standard error of each mean effect; NaN for a single example."""
        n = self.effects.shape[-1]
        return self.effects.std(-1) / n**0.5 if n > 1 else self.effects[..., 0] * torch.nan

    @property
    def frame(self) -> pd.DataFrame:
        """One row a place and strength: site, layer, coefficient, effect, stderr."""
        places = [(point.site, point.layer) for point in self.points for _ in self.coefficients]
        frame = pd.DataFrame(places, columns=["site", "layer"])
        return frame.assign(
            coefficient=list(self.coefficients) * len(self.points),
            effect=self.effects.mean(-1).flatten().tolist(),
            stderr=self.stderr.flatten().tolist(),
        )


@torch.no_grad()
def steering_sweep(
    model: Any,
    texts: Any,
    directions: Any,
    coefficients: Sequence[int | float],
    metric: Any = "cross_entropy",
    *,
    positions: Any = None,
    answers: Any = None,
    attention_mask: Any = None,
    rows: int = ROWS,
    progress: bool = True,
) -> SteeringSweep:
    """Effect of adding coefficient x direction at every token, one place and strength at a time.

    Args:
        model: a BLOOM with an unembedding; hooks that are attached stay in force.
        texts: texts, ids [batch pos] or a dict with `attention_mask`; a row is an example.
        directions: `Directions`, or vectors [d] by layer (for the stream that enters it) or hook.
        coefficients: strengths; 0 and below are allowed.
        metric: a name or a function, see `Metric`.
        positions: columns whose logits the metric sees: None all, -1 the last, or several.
        answers: token ids [batch], or [batch 2] for "logit_difference".
        attention_mask: [batch pos], 0 for padding.
        rows: rows in a forward.
        progress: show a bar while it takes long.

    Returns:
        A `SteeringSweep`; its `frame` has the columns site, layer, coefficient, effect, stderr.

    Raises:
        InputError: no coefficients or directions, one outside the layers or at a site of heads, a
            metric that returns something else than a number an example.
        UnknownNameError: no such metric or hook.
        ShapeError: a direction of another width.
        NumericalError: a metric that is NaN or infinite; names place and strength.
    """
    strengths = [float(one) for one in coefficients]
    if not strengths:
        raise InputError("no coefficients. Give at least one, such as [-2, -1, 1, 2].")
    places = _places(model, directions)
    data, measured = (
        dataset(model, texts, attention_mask),
        Metric(metric, positions=positions, answers=answers),
    )
    targets = measured.targets(data)
    effects, clean = [], []
    for start, part in data.chunks(rows, progress=progress):
        some = slice(start, start + len(part))
        judge = _Judge(model, measured, part, None if targets is None else targets.rows(some, 1))
        clean.append(judge.clean)
        found = [
            torch.cat(
                [
                    judge.steered(point, vector, strengths[i : i + max(1, rows // len(part))])
                    for i in range(0, len(strengths), max(1, rows // len(part)))
                ]
            )
            for point, vector in places
        ]
        effects.append(torch.stack(found) - judge.clean)
    whole = torch.cat(effects, -1).cpu()
    points = tuple(point for point, _ in places)
    if not bool(whole.isfinite().all()):
        place, strength, example = (~whole.isfinite()).nonzero()[0].tolist()
        raise NumericalError(
            f"metric {measured.name!r} is not finite for example {example}, steered at "
            f"{points[place].name} by {strengths[strength]}: try smaller coefficients."
        )
    return SteeringSweep(
        points=points,
        coefficients=tuple(strengths),
        effects=whole,
        clean=torch.cat(clean).cpu(),
        metric=measured.name,
    )


class _Judge:
    """Measures steered runs of some examples; the streams of the clean run are kept."""

    def __init__(self, model: Any, metric: Metric, data: Dataset, target: Target | None) -> None:
        self.model, self.metric, self.data, self.target = model, metric, data, target
        self.columns = metric.columns(data.tokens.shape[1]).to(data.tokens.device)
        self.before: dict[int, Tensor] = {}
        hooks = [
            (f"blocks.{layer}.hook_resid_pre", self._keep(layer))
            for layer in range(model.config.n_layer)
        ]
        with model.hooks(fwd_hooks=hooks):
            stream = self._stream(data.tokens, start=None, n_run=1)
        self.log_p = None
        if metric.needs_clean:
            logits = model.unembed(stream)
            wide = torch.promote_types(logits.dtype, torch.float32)
            self.log_p = logits.to(wide).log_softmax(-1)
        self.clean = self._values(stream, 1)[0]

    def steered(
        self, point: Point, vector: Float[Tensor, " d"], strengths: Sequence[float]
    ) -> Float[Tensor, "coefficient example"]:
        """The metric under each strength."""
        assert point.layer is not None
        n, n_run = len(self.data), len(strengths)
        by = torch.tensor(strengths, dtype=torch.float64, device=vector.device)

        def add(value: Tensor, hook: Any) -> Tensor:
            moved = by.repeat_interleave(n)[:, None, None] * vector.double()
            return value + moved.to(value)

        resid = self.before[point.layer].repeat(n_run, 1, 1)
        with self.model.hooks(fwd_hooks=[(point.name, add)]):
            stream = self._stream(resid, start=point.layer, n_run=n_run)
        return self._values(stream, n_run)

    def _stream(self, given: Tensor, *, start: int | None, n_run: int) -> Tensor:
        mask = self.data.mask
        stream = self.model.backbone(
            given,
            start_at_layer=start,
            attention_mask=None if mask is None else mask.long().repeat(n_run, 1),
            use_cache=False,
        ).last
        return stream[:, self.columns]

    def _values(self, stream: Tensor, n_run: int) -> Tensor:
        values = self.metric.values(
            stream,
            self.model.unembed,
            target=None if self.target is None else self.target.rows(slice(None), n_run),
            tokens=self.data.tokens.repeat(n_run, 1),
            clean=None if self.log_p is None else self.log_p.repeat(n_run, 1, 1),
        )
        return values.view(n_run, -1)

    def _keep(self, layer: int) -> Any:
        def keep(value: Tensor, hook: Any) -> None:
            self.before[layer] = value

        keep.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
        return keep


def _places(model: Any, directions: Any) -> list[tuple[Point, Tensor]]:
    given = directions.vectors if isinstance(directions, Directions) else directions
    if not isinstance(given, Mapping) or not given:
        raise InputError(
            f"the directions are {given!r:.60}, expected Directions, or vectors by layer or hook."
        )
    found = []
    for where, vector in given.items():
        name = where if isinstance(where, str) else f"blocks.{where}.hook_resid_pre"
        points = find_points(model, name)
        if len(points) > 1 or points[0].layer is None or points[0].by_head:
            raise InputError(f"{name!r}: expected one hook in a layer, with a vector a token.")
        width = model.blocks[points[0].layer].mlp.W_in.shape[
            points[0].site in ("mlp_pre", "mlp_post")
        ]
        if not isinstance(vector, Tensor) or vector.shape != (width,):
            got = vector.shape if isinstance(vector, Tensor) else ()
            raise ShapeError(f"the direction at {name}", got=got, expected=f"[{width}]")
        found.append((points[0], vector))
    return found
