"""Where a patched run begins to differ, and the stream it goes on with.

A patch of queries, keys, values, scores or patterns changes what heads read (z), and so what the
layer writes; a patch of what a head or a layer writes changes the stream. So no layer is computed
again to patch inside it: only the patched heads' attention is.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from bloomlab.experiments.onward import Onward
from bloomlab.experiments.patch_cells import GRID, HEAD, STREAM, Cell
from bloomlab.model.fused import fused_attention, rounded_attention
from bloomlab.model.scores import attention_pattern

STREAM_POINTS = ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")
PATCHED = {  # a site's hook points, whose values come from the other run
    **{site: (f"hook_{site}",) for site in STREAM},
    **{site: (f"attn.hook_{site}",) for site in (*HEAD, *GRID)},
    "kv": ("attn.hook_k", "attn.hook_v"),
}
_READ = ("attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z")
NEEDS = {  # what is asked of the run that is patched, beside its stream
    **PATCHED,
    **{site: _READ for site in ("q", "k", "v", "kv")},
    **{site: (*PATCHED[site], "attn.hook_v", "attn.hook_z") for site in GRID},
}


@dataclass(frozen=True, kw_only=True)
class Starts:
    """Begins patched runs.

    Args:
        go: goes on with them.
        site: what is patched.
        base: of the run that is patched, by hook point and layer.
        source: of the run that patches come from.
    """

    go: Onward
    site: str
    base: Mapping[str, Mapping[int, Tensor]]
    source: Mapping[str, Mapping[int, Tensor]]

    def begin(
        self, cells: Sequence[Cell], since: int
    ) -> tuple[int, bool, Float[Tensor, "row query d_model"]]:
        """A layer, whether to go on at its MLP, and the stream there from column `since` on.

        All cells are of one layer; rows are all examples of the first, then of the second.
        """
        layer = cells[0].layer
        if self.site.startswith("resid"):
            after = self.site == "resid_post"
            point = "resid_mid" if self.site == "resid_mid" else "resid_pre"
            stream = self._stream(layer + after, point, len(cells), since)
            new = self.source[f"hook_{self.site}"][layer]
            for i, cell in enumerate(cells):
                columns = _columns(cell)
                stream[i, :, _shifted(columns, since)] = new[:, columns]
            return layer + after, point == "resid_mid", stream.flatten(0, 1)
        at_mid = self.site != "mlp_out"
        place = (layer, "resid_mid") if at_mid else (layer + 1, "resid_pre")
        stream = self._stream(*place, len(cells), since)
        written = self._written(layer, cells, since)
        wide = torch.promote_types(stream.dtype, torch.float32)
        return place[0], at_mid, (stream.to(wide) + written).to(stream.dtype).flatten(0, 1)

    def _stream(self, layer: int, point: str, n_run: int, since: int) -> Tensor:
        """The unpatched stream, once for every run."""
        if layer == self.go.model.config.n_layer:
            layer, point = layer - 1, "resid_post"
        return self.base[f"hook_{point}"][layer][:, since:].expand(n_run, -1, -1, -1).clone()

    def _written(self, layer: int, cells: Sequence[Cell], since: int) -> Tensor:
        """What patches add to the stream: [run example pos d_model]."""
        if self.site in ("attn_out", "mlp_out"):
            name = f"hook_{self.site}"
            change = self.source[name][layer] - self.base[name][layer]
            written = change.new_zeros(len(cells), *change.shape)
            for i, cell in enumerate(cells):
                written[i, :, _columns(cell)] = change[:, _columns(cell)]
            return written[:, :, since:]
        attn = self.go.model.blocks[layer].attn
        before = self._base(layer, "z")
        wide = torch.promote_types(before.dtype, torch.float32)
        if self.site == "kv":
            change = self._attended_again(layer, cells, None).to(wide) - before.to(wide)
            return einsum(change[:, :, since:], attn.W_O.to(wide), "r b t h d, h d m -> r b t m")
        written = torch.empty(
            len(cells), len(before), before.shape[1] - since, attn.W_O.shape[-1],
            dtype=wide, device=before.device,
        )  # fmt: skip
        by_head: dict[int, list[int]] = defaultdict(list)
        for i, cell in enumerate(cells):
            assert cell.head is not None
            by_head[cell.head].append(i)
        for head, places in by_head.items():
            new = self._new_z(layer, head, [cells[i] for i in places])
            change = new.to(wide) - before[:, :, head].to(wide)
            written[places] = change[:, :, since:] @ attn.W_O[head].to(wide)
        return written

    def _new_z(self, layer: int, head: int, cells: Sequence[Cell]) -> Tensor:
        """What a head reads in each run: [run example pos d_head]."""
        if self.site in ("q", "k", "v"):
            return self._attended_again(layer, cells, head)
        if self.site == "z":
            return self._with_patches(self._base(layer, "z"), self._source(layer, "z"), cells, head)
        old, new = (grids(layer, self.site)[:, head] for grids in (self._base, self._source))
        grid = old.expand(len(cells), *old.shape).clone()
        for i, cell in enumerate(cells):
            where = (slice(None), _columns(cell), slice(None) if cell.key is None else cell.key)
            grid[i][where] = new[where]
        v = self._base(layer, "v")[:, :, head]
        return (grid if self.site == "pattern" else attention_pattern(grid, v.dtype)) @ v

    def _attended_again(self, layer: int, cells: Sequence[Cell], head: int | None) -> Tensor:
        """Z with other queries, keys or values: [run example pos (head) d_head]."""
        attn = self.go.model.blocks[layer].attn
        parts = []
        for part in ("q", "k", "v"):
            old = self._base(layer, part)
            new = self._source(layer, part) if part in self.site else old
            mixed = self._with_patches(old, new, cells, head)
            mixed = mixed if head is None else mixed.unsqueeze(-2)
            parts.append(rearrange(mixed, "r b t h d -> (r b) h t d"))
        bias = self.go.bias(len(parts[0]))
        slopes = attn.slopes if head is None else attn.slopes[[head]]
        attend = rounded_attention if bias.rounded else fused_attention
        z = attend(*parts, bias=bias, slopes=slopes)
        z = rearrange(z, "(r b) h t d -> r b t h d", r=len(cells))
        return z if head is None else z[:, :, :, 0]

    def _with_patches(self, old: Tensor, new: Tensor, cells: Sequence[Cell], head: Any) -> Tensor:
        """Values of every run: the base's but for the cell's columns."""
        old, new = (t if head is None else t[:, :, head] for t in (old, new))
        mixed = old.expand(len(cells), *old.shape).clone()
        for i, cell in enumerate(cells):
            mixed[i][:, _columns(cell)] = new[:, _columns(cell)]
        return mixed

    def _base(self, layer: int, part: str) -> Tensor:
        return self.base[f"attn.hook_{part}"][layer]

    def _source(self, layer: int, part: str) -> Tensor:
        return self.source[f"attn.hook_{part}"][layer]


def _columns(cell: Cell) -> slice:
    if cell.position is None:
        return slice(None)
    return slice(cell.position, cell.position + 1)


def _shifted(columns: slice, since: int) -> slice:
    """The same columns where the first is `since`."""
    if columns.start is None:
        return columns
    return slice(columns.start - since, columns.stop - since)
