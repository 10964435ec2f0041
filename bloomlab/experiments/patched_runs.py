"""Runs of some examples with one place each taken from another run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.edits import Evaluations
from bloomlab.experiments.onward import Onward
from bloomlab.experiments.patch_cells import Cell
from bloomlab.experiments.patch_starts import NEEDS, PATCHED, STREAM_POINTS, Starts
from bloomlab.experiments.recorded import recorded
from bloomlab.experiments.resume import require_bare
from bloomlab.model.cache import KVCache


@dataclass(kw_only=True)
class PatchedRuns:
    """Runs of some examples, patched from a run of others.

    Args:
        model: a BLOOM with an unembedding, no hooks attached.
        base: what is run.
        source: what patches come from, [batch pos] like `base`.
        site: where.
        columns: whose streams are asked for.
        evaluations: counts.

    Attributes:
        stream: of the base at the asked columns, after the final norm.
        theirs: of the source.
    """

    model: Any
    base: Dataset
    source: Dataset
    site: str
    columns: Int[Tensor, " pos"]
    evaluations: Evaluations = field(default_factory=Evaluations)

    def __post_init__(self) -> None:
        require_bare(self.model)
        self.columns = self.columns.to(self.base.tokens.device)
        past, points = KVCache(), sorted({*STREAM_POINTS, *NEEDS[self.site]})
        base, last = recorded(self.model, self.base, points, past=past)
        taken = PATCHED[self.site]
        source, other = recorded(self.model, self.source, taken)
        self.stream, self.theirs = last[:, self.columns], other[:, self.columns]
        self.evaluations.layers += 2 * len(self.base) * self.model.config.n_layer
        self._go = Onward(
            model=self.model,
            data=self.base,
            columns=self.columns,
            past=past,
            evaluations=self.evaluations,
        )
        self._starts = Starts(
            go=self._go,
            site=self.site,
            base=dict(zip(points, base, strict=True)),
            source=dict(zip(taken, source, strict=True)),
        )

    @torch.no_grad()
    def run(self, cells: Sequence[Cell]) -> Float[Tensor, "row pos d_model"]:
        """Output of the final norm at the asked columns: all examples of each cell, one by one.

        Cells are of one layer.
        """
        since = min(cell.position or 0 for cell in cells)
        stream = self.stream.repeat(len(cells), 1, 1)
        late = self.columns >= since
        if bool(late.any()):
            found = self.model.ln_final(self._finished(cells, since))
            stream[:, late] = found.to(stream)
        return stream

    def _finished(self, cells: Sequence[Cell], since: int) -> Tensor:
        layer, at_mid, resid = self._starts.begin(cells, since)
        n_layer, asked = self.model.config.n_layer, self.columns[self.columns >= since] - since
        if at_mid:
            alone = layer == n_layer - 1
            resid = resid[:, asked] if alone else resid
            resid = self.model.blocks[layer].from_mid(resid, rounded=self._go.rounded)
            self.evaluations.mlps += len(resid)
            if alone:
                return resid
            layer += 1
        return self._go.from_pre(resid, layer, since=since)
