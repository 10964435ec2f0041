"""A decode step captured as a CUDA graph: one launch a token instead of hundreds."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.model.cache import KVCache
from bloomlab.model.hooks import is_hooked
from bloomlab.model.lean import LeanDecoder

WORTHWHILE = 16  # steps that pay for recording one


def worth_capturing(lean: LeanDecoder, steps: int) -> bool:
    """Whether so many steps run on a GPU with nothing attached."""
    free = not any(map(is_hooked, lean.model.hook_dict.values()))
    return lean.cache.device.type == "cuda" and steps >= WORTHWHILE and free


def static_step(
    lean: LeanDecoder, ids: Int[Tensor, " batch"], column: Int[Tensor, " one"]
) -> Float[Tensor, "batch vocab"]:
    """`LeanDecoder.step` with every shape fixed: the column is data, later columns are masked."""
    later = torch.arange(lean.capacity, device=ids.device) > column
    biases = [table.masked_fill(later, torch.finfo(table.dtype).min) for table in lean.tables]
    return lean.step(ids, column, biases)


class GraphedDecoder:
    """A LeanDecoder on a GPU whose step is recorded once and replayed for every token.

    The work of a step is small, so launching its kernels one by one would take longer than they
    run. Nothing waits for the host.
    """

    def __init__(self, lean: LeanDecoder) -> None:
        self._lean, self._points = lean, list(lean.model.hook_dict.values())
        device = lean.cache.device
        self._ids = torch.zeros(lean.rows, dtype=torch.long, device=device)
        self._column = torch.full((1,), len(lean.cache), device=device)
        lean.clear_ahead()
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):  # kernels choose their workspaces before the capture
            for _ in range(3):
                static_step(lean, self._ids, self._column)
        torch.cuda.current_stream(device).wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._logits = static_step(lean, self._ids, self._column)

    def holds(self, cache: KVCache) -> bool:
        """As `LeanDecoder.holds`."""
        return self._lean.holds(cache)

    def is_current(self) -> bool:
        """As `LeanDecoder.is_current`; a replay calls no hook at all."""
        return self._lean.is_current() and not any(map(is_hooked, self._points))

    def reorder(self, rows: Int[Tensor, " batch"], *, since: int) -> None:
        """As `LeanDecoder.reorder`: a replay reads the same rooms."""
        self._lean.reorder(rows, since=since)

    def advance(self, ids: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
        """Logits after one more token a row, which the cache then holds."""
        self._ids.copy_(ids)
        self._column.fill_(len(self._lean.cache))
        self._graph.replay()
        self._lean.keep()
        return self._logits.clone()
