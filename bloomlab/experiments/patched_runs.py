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
        window: layers around a cell's that are patched with it, ceil(window / 2) from its own on
            and the others before it; more than one of "attn_out" or "mlp_out" alone.
        embedded: what layer 0 of the base reads; None: its tokens' embeddings.
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
    window: int = 1
    embedded: Float[Tensor, "batch column d_model"] | None = None
    evaluations: Evaluations = field(default_factory=Evaluations)

    def __post_init__(self) -> None:
        require_bare(self.model)
        self.columns = self.columns.to(self.base.tokens.device)
        past, points = KVCache(), sorted({*STREAM_POINTS, *NEEDS[self.site]})
        base, last = recorded(self.model, self.base, points, past=past, embedded=self.embedded)
        taken = PATCHED[self.site]
        source, other = recorded(self.model, self.source, taken)
        self._theirs = dict(zip(taken, source, strict=True))
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
            source=self._theirs,
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
        layer, n_layer = cells[0].layer, self.model.config.n_layer
        first = max(0, layer - self.window // 2)
        later = range(first + 1, min(n_layer, layer - (-self.window // 2)))
        layer, at_mid, resid = self._starts.begin([c._replace(layer=first) for c in cells], since)
        asked = self.columns[self.columns >= since] - since
        if at_mid:
            alone = layer == n_layer - 1
            resid = resid[:, asked] if alone else resid
            resid = self.model.blocks[layer].from_mid(resid, rounded=self._go.rounded)
            self.evaluations.mlps += len(resid)
            if alone:
                return resid
            layer += 1
        hooks = [self._restoring(one, cells, since) for one in later]
        whole = n_layer - 1 in later  # a hook there needs all of it
        return self._go.from_pre(resid, layer, since=since, hooks=hooks, last=not whole)

    def _restoring(self, layer: int, cells: Sequence[Cell], since: int) -> tuple[str, Any]:
        """A hook that puts the source's values at every cell's column of a later layer."""
        source = self._theirs[f"hook_{self.site}"][layer]

        def restore(value: Tensor, hook: Any) -> Tensor:
            value = value.unflatten(0, (len(cells), -1)).clone()
            for i, cell in enumerate(cells):
                at = slice(None) if cell.position is None else [cell.position - since]
                value[i, :, at] = source[:, since:][:, at]
            return value.flatten(0, 1)

        return f"blocks.{layer}.hook_{self.site}", restore
