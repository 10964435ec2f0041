"""What an ablated head writes instead of what it would: zero, a mean, another's, the best."""

from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.edits import Edit, Edits, by_layer
from bloomlab.experiments.optimal_constants import Optimal
from bloomlab.experiments.resume import CleanRun

KINDS = ("mean", "optimal", "resample", "zero")


@runtime_checkable
class Replacement(Protocol):
    """Makes the edits of one run."""

    def edits(self, heads: Any, clean: CleanRun, examples: slice) -> Edits:
        """Edits that ablate these heads in the examples of a clean run."""
        ...


@dataclass(frozen=True)
class Zero:
    """Nothing."""

    def edits(self, heads: Any, clean: CleanRun, examples: slice) -> Edits:
        """No values: the heads are silent."""
        return {layer: Edit(heads=some) for layer, some in by_layer(heads).items()}


@dataclass(frozen=True)
class Constant:
    """The same in every example: [layer pos head d_head]; pos 1: at every column."""

    values: Float[Tensor, "layer pos head d_head"]

    def edits(self, heads: Any, clean: CleanRun, examples: slice) -> Edits:
        """The values of these heads, for all examples."""
        return {
            layer: Edit(heads=some, values=self.values[layer][None, :, list(some)])
            for layer, some in by_layer(heads).items()
        }


@dataclass(frozen=True)
class Resampled:
    """What the head wrote in another example, the donor, at the same place among its tokens."""

    z: Float[Tensor, "layer example pos head d_head"]

    def edits(self, heads: Any, clean: CleanRun, examples: slice) -> Edits:
        """The donors' values of these heads."""
        return {
            layer: Edit(heads=some, values=self.z[layer, examples][:, :, list(some)])
            for layer, some in by_layer(heads).items()
        }


@dataclass(frozen=True)
class AtColumns:
    """A replacement at some columns only; elsewhere the head writes what it would."""

    inner: Replacement
    columns: list[int]

    def edits(self, heads: Any, clean: CleanRun, examples: slice) -> Edits:
        """The inner edits, at the columns."""
        found = self.inner.edits(heads, clean, examples)
        return {layer: replace(edit, columns=tuple(self.columns)) for layer, edit in found.items()}


def replacement(
    sweep: Any,
    kind: str,
    data: Dataset,
    *,
    reference: Dataset | None,
    per_position: bool,
    columns: list[int] | None,
    seed: int,
) -> Replacement:
    """What stands in an ablated head's place.

    Args:
        sweep: runs the reference.
        kind: one of `KINDS`.
        data: the examples that will be ablated.
        reference: where means and donors come from; None: the examples.
        per_position: a mean for each column.
        columns: where heads are ablated; None: everywhere.
        seed: of the donors.

    Raises:
        InputError: a reference or per_position where it means nothing, or that does not fit.
    """
    if reference is not None and kind not in ("mean", "resample"):
        raise InputError(f"kind {kind!r} takes no reference.")
    if per_position and kind != "mean":
        raise InputError(f"per_position belongs to kind 'mean', not {kind!r}.")
    given = data if reference is None else reference
    if kind == "zero":
        made: Replacement = Zero()
    elif kind == "mean":
        made = Constant(mean_z(sweep, given, per_position=per_position))
        n_pos = data.tokens.shape[1]
        if per_position and made.values.shape[1] < n_pos:
            raise InputError(
                f"the reference has {made.values.shape[1]} columns, the examples {n_pos}: a mean "
                "for each position needs as many."
            )
        if per_position:
            made = Constant(made.values[:, :n_pos])
    elif kind == "resample":
        made = Resampled(donors(sweep, data, given, seed=seed))
    else:
        made = Optimal(sweep, data, mean_z(sweep, data), columns)
    return made if columns is None else AtColumns(made, columns)


@torch.no_grad()
def mean_z(
    sweep: Any, data: Dataset, *, per_position: bool = False
) -> Float[Tensor, "layer pos head d_head"]:
    """Mean of every head's z over attended tokens: of all, or of each column (pos 1 or as many)."""
    totals: list[Tensor] = []
    count = torch.zeros((), dtype=torch.float64)
    for _, part in data.chunks(16):
        clean = sweep.clean(part)
        seen = part.attended[:, :, None, None]
        wide = torch.promote_types(sweep.model.dtype, torch.float32)
        sums = [
            (clean.z(layer).to(wide) * seen).sum((0,) if per_position else (0, 1))
            for layer in range(sweep.model.config.n_layer)
        ]
        totals = sums if not totals else [a + b for a, b in zip(totals, sums, strict=True)]
        count = count + (seen.sum(0)[:, 0, 0] if per_position else seen.sum()).double().cpu()
    stacked = torch.stack(totals)
    n = count.to(stacked).clamp(min=1)
    return stacked / n[None, :, None, None] if per_position else (stacked / n)[:, None]


@torch.no_grad()
def donors(
    sweep: Any, data: Dataset, reference: Dataset, *, seed: int
) -> Float[Tensor, "layer example pos head d_head"]:
    """Every head's z of another example, drawn for each, at the same place among its tokens.

    A donor that is shorter is read again from its start.
    """
    source = torch.Generator().manual_seed(seed)
    n, m = len(data), len(reference)
    if reference is data:
        if n == 1:
            raise InputError(
                "resampling needs another example; give several, or a reference to draw from."
            )
        chosen = (torch.arange(n) + torch.randint(1, n, (n,), generator=source)) % n
    else:
        chosen = torch.randint(0, m, (n,), generator=source)
    z: list[Tensor] = []
    for _, part in reference.chunks(16):
        clean = sweep.clean(part)
        layers = range(sweep.model.config.n_layer)
        z.append(torch.stack([clean.z(layer) for layer in layers]))
    whole = torch.cat(z, 1)
    place = whole.device
    theirs = [row.nonzero()[:, 0] for row in reference.attended]
    own = (data.attended.long().cumsum(-1) - 1).clamp(min=0)
    at = torch.stack(
        [theirs[d][own[i] % len(theirs[d])] for i, d in enumerate(chosen.tolist())]
    ).to(place)
    return whole[:, chosen.to(place)[:, None], at]
