"""Directions in the stream, and edits along them: steering towards one, erasing one.

Contrastive activation addition: Rimsky et al. (2023, arXiv:2312.06681); erasing by projection:
Ravfogel et al. (2020, arXiv:2004.07667).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.sites import Point, find_points, last_layer
from bloomlab.interventions import Intervention, Spot, steer

POOLS = ("last", "mean")
ROWS = 16  # texts in a forward


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Directions(Framed):
    """A direction at each of some hook points; made by `mean_difference` or `probe_directions`.

    Attributes:
        vectors: by name of the hook, [d].
        points: the hook points.
    """

    vectors: dict[str, Float[Tensor, " d"]]
    points: dict[str, Point]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a direction: site, layer, hook, norm."""
        norms = [vector.norm().item() for vector in self.vectors.values()]
        points = [self.points[name] for name in self.vectors]
        columns = {"site": [p.site for p in points], "layer": [p.layer for p in points]}
        frame = pd.DataFrame({**columns, "hook": list(self.vectors), "norm": norms})
        return frame.astype({"layer": "Int64"})

    @property
    def unit(self) -> "Directions":
        """The same directions, of length one."""
        short = {name: vector / vector.norm() for name, vector in self.vectors.items()}
        return Directions(vectors=short, points=self.points)

    def hook(self, where: int | str) -> str:
        """The name of the hook at a layer, or of a name.

        Raises:
            UnknownNameError: there is no direction.
            InputError: there are several in this layer.
        """
        found = [name for name, point in self.points.items() if where in (name, point.layer)]
        if not found:
            raise UnknownNameError("direction", where, self.vectors)
        if len(found) > 1:
            raise InputError(f"layer {where} has directions at {', '.join(found)}. Name one.")
        return found[0]

    def at(self, where: int | str) -> Float[Tensor, " d"]:
        """The direction at a layer, or at a hook of this name; errors as `hook`."""
        return self.vectors[self.hook(where)]

    def steer(self, where: int | str, coefficient: Any = 1.0) -> Intervention:
        """`interventions.steer` along the direction at a layer or hook; errors as `hook`."""
        return steer(self.hook(where), self.at(where), coefficient=coefficient)

    def erase(self, where: int | str) -> Intervention:
        """`erase` the direction at a layer or hook; errors as `hook`."""
        return erase(self.hook(where), self.at(where))


@torch.no_grad()
def mean_difference(
    model: Any,
    positive: Any,
    negative: Any,
    *,
    sites: Any = "resid_pre",
    pool: str = "last",
    rows: int = ROWS,
    progress: bool = True,
) -> Directions:
    """Mean activation of positive texts less that of negative ones, at all sites at once.

    In float32 at least. A text counts once, however long.

    Args:
        model: a BLOOM of any class.
        positive: texts, ids [batch pos] or a dict with `attention_mask`.
        negative: the same; as many or not.
        sites: names of sites, each in all layers, or of hooks; see `find_points`.
        pool: the vector of a text: that of its "last" token (Rimsky et al.: of the answer's), or
            the "mean" over its attended tokens.
        rows: texts in a forward.
        progress: show a bar while it takes long.

    Raises:
        InputError: no texts, or a site with a vector for each head.
        UnknownNameError: a site that the model lacks, or another way to pool.
    """
    if pool not in POOLS:
        raise UnknownNameError("way to pool", pool, POOLS)
    points = find_points(model, sites)
    for point in points:
        if point.by_head:
            raise InputError(
                f"{point.name} has a vector for each head; a direction needs one for each token, "
                "such as at 'resid_pre', 'attn_out' or 'mlp_out'."
            )
    ours, theirs = (
        _means(model, dataset(model, texts), points, pool=pool, rows=rows, progress=progress)
        for texts in (positive, negative)
    )
    return Directions(
        vectors={name: ours[name] - theirs[name] for name in ours},
        points={point.name: point for point in points},
    )


def probe_directions(probes: Any, label: Any, *, site: str | None = None) -> Directions:
    """Where a label's logit, less the mean of all, rises, at every layer of fitted probes.

    Args:
        probes: as `probe` gives them, at a site without heads.
        label: one of their classes.
        site: which of their sites; None: all.

    Raises:
        UnknownNameError: no such label or site.
        InputError: probes of single heads.
    """
    wanted = [point for point in probes.points if site in (None, point.site, point.name)]
    if not wanted:
        raise UnknownNameError("probed site", site, {point.site for point in probes.points})
    for point in wanted:
        if point.by_head:
            raise InputError(f"the probes at {point.name} are of single heads.")
    vectors = {
        point.name: probes.direction(point.layer, label, site=point.site) for point in wanted
    }
    return Directions(vectors=vectors, points={point.name: point for point in wanted})


def erase(where: Any, direction: Any) -> Intervention:
    """What the stream holds along a direction, or in the span of several, taken out of it.

    x - (x.u) u for each u of an orthonormal basis of the directions: projected on their
    complement. To erase from step t of a generation on: `.when(lambda step, column: step >= t)`.

    Args:
        where: a layer, for the stream that enters it (`hook_resid_pre`), or a hook name.
        direction: [d] or [direction d], of any length; none zero or in the span of others.

    Raises:
        InputError: something else, or directions that are zero or depend on each other.
        ShapeError: when it acts: of another width than the hook's last axis.
    """
    if not isinstance(direction, Tensor) or direction.ndim not in (1, 2) or not len(direction):
        got = tuple(direction.shape) if isinstance(direction, Tensor) else repr(direction)
        raise InputError(f"the direction is {got:.60}, expected a tensor [d] or [direction d].")
    basis = _basis(direction if direction.ndim == 2 else direction[None])
    # `steer` checks the place; only the edit differs
    name = steer(where, basis[0]).name
    return Intervention(name=name, edit=partial(_erased, basis=basis))


def _basis(directions: Float[Tensor, "direction d"]) -> Float[Tensor, "direction d"]:
    """An orthonormal basis, in float64."""
    lengths = directions.double().norm(dim=-1, keepdim=True)
    fine = bool(lengths.isfinite().all()) and bool((lengths > 0).all())
    if fine and len(directions) <= directions.shape[1]:
        basis, r = torch.linalg.qr((directions.double() / lengths).mT)
        if bool((r.diagonal().abs() > 1e-6).all()):
            return basis.mT
    raise InputError(
        f"the {len(directions)} directions are zero, not finite or depend on each other: they span "
        "less. Leave the others out."
    )


def _erased(old: Tensor, spot: Spot, *, basis: Tensor) -> Tensor:
    if basis.shape[-1] != old.shape[-1]:
        raise ShapeError(
            f"the direction to erase at {spot.name}",
            got=basis.shape,
            expected=f"[direction {old.shape[-1]}]",
        )
    wide = old.to(torch.promote_types(old.dtype, torch.float32))
    u = basis.to(wide)
    return (wide - (wide @ u.mT) @ u).to(old)


def _means(
    model: Any, data: Dataset, points: list[Point], *, pool: str, rows: int, progress: bool
) -> dict[str, Tensor]:
    """Mean over texts of their vectors, at every point."""
    sums: Mapping[str, Tensor] = {}
    for _, part in data.chunks(rows, progress=progress):
        taken: dict[str, Tensor] = {}
        hooks = [(point.name, _pooled(part.attended, pool, taken)) for point in points]
        mask = None if part.mask is None else part.mask.long()
        with model.hooks(fwd_hooks=hooks):
            model.backbone(
                part.tokens,
                attention_mask=mask,
                use_cache=False,
                stop_at_layer=last_layer(model, points),
            )
        sums = {name: sums.get(name, 0) + some.sum(0) for name, some in taken.items()}
    return {point.name: sums[point.name] / len(data) for point in points}


def _pooled(
    attended: Bool[Tensor, "batch pos"], pool: str, into: dict[str, Tensor]
) -> Callable[[Tensor, Any], None]:
    last = attended.shape[1] - 1 - attended.flip(-1).int().argmax(-1)
    row = torch.arange(len(attended), device=attended.device)

    def read(value: Tensor, hook: Any) -> None:
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        if pool == "last":
            into[hook.name] = wide[row, last]
        else:
            kept = torch.where(attended[:, :, None], wide, 0)
            into[hook.name] = kept.sum(1) / attended.sum(-1, keepdim=True)

    read.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
    return read
