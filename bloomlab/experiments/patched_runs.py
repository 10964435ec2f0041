"""Runs of some examples with one place each taken from another run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.edits import Evaluations
from bloomlab.experiments.onward import Onward, given
from bloomlab.experiments.patch_cells import Cell
from bloomlab.experiments.patch_starts import NEEDS, Starts
from bloomlab.experiments.resume import require_bare
from bloomlab.model.cache import KVCache


@torch.no_grad()
def recorded(
    model: Any,
    data: Dataset,
    points: Sequence[str],
    *,
    embedded: Float[Tensor, "batch pos d_model"] | None = None,
    past: KVCache | None = None,
) -> tuple[dict[str, Tensor], Float[Tensor, "batch pos d_model"]]:
    """Values of a run at hook points of every layer, and the output of the final norm.

    Args:
        model: a BLOOM.
        data: the examples.
        points: such as "attn.hook_z".
        embedded: the stream before the first layer, in the place of the tokens' own.
        past: filled with the run's keys and values.
    """
    kept: dict[str, Tensor] = {}

    def keeping(name: str) -> Callable[..., None]:
        def keep(value: Tensor, hook: Any) -> None:
            kept[name] = value

        keep.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
        return keep

    names = [f"blocks.{i}.{point}" for i in range(model.config.n_layer) for point in points]
    with model.hooks(fwd_hooks=[(name, keeping(name)) for name in names]):
        back = model.backbone(
            data.tokens if embedded is None else embedded,
            start_at_layer=None if embedded is None else 0,
            attention_mask=given(data.mask),
            past_key_values=past,
            use_cache=past is not None,
        )
    return kept, back.last


@dataclass(kw_only=True)
class PatchedRuns:
    """Runs of some examples, patched from a run of others.

    Args:
        model: a BLOOM with an unembedding, no hooks attached.
        base: what is run.
        source: what patches come from, [batch pos] like `base`.
        site: where.
        columns: whose streams are asked for.
        window: layers that are patched together, from a cell's layer on.
        embedded: in the place of the base's embedded tokens.
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
    embedded: Float[Tensor, "batch pos d_model"] | None = None
    evaluations: Evaluations = field(default_factory=Evaluations)

    def __post_init__(self) -> None:
        require_bare(self.model)
        self.columns = self.columns.to(self.base.tokens.device)
        ours, theirs = NEEDS[self.site]
        always = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
        past = KVCache()
        base, last = recorded(
            self.model, self.base, [*always, *ours], embedded=self.embedded, past=past
        )
        source, other = recorded(self.model, self.source, theirs)
        self.stream, self.theirs = last[:, self.columns], other[:, self.columns]
        self.evaluations.layers += 2 * len(self.base) * self.model.config.n_layer
        self._go = Onward(
            model=self.model,
            data=self.base,
            columns=self.columns,
            past=past,
            evaluations=self.evaluations,
        )
        self._starts = Starts(go=self._go, site=self.site, base=base, source=source)

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
        later = range(cells[0].layer + 1, min(cells[0].layer + self.window, n_layer))
        hooks = [self._hook(i, cells, since) for i in later]
        return self._go.from_pre(
            resid, layer, since=since, hooks=hooks, last=n_layer - 1 not in later
        )

    def _hook(self, layer: int, cells: Sequence[Cell], since: int) -> tuple[str, Any]:
        """Patches the same place of a later layer of the window."""
        [point] = NEEDS[self.site][1]
        name = f"blocks.{layer}.{point}"
        source = self._starts.source[name]

        def edit(value: Tensor, hook: Any) -> Tensor:
            runs = value.view(len(cells), -1, *value.shape[1:])
            for i, cell in enumerate(cells):
                heads = () if cell.head is None else (cell.head,)
                old = slice(None) if cell.position is None else cell.position - since
                new = slice(since, None) if cell.position is None else cell.position
                runs[(i, slice(None), old, *heads)] = source[(slice(None), new, *heads)]
            return value

        return name, edit
