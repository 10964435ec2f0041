"""Run: what one forward of a text under some edits left, as a view asks for it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import psutil
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bloomlab.errors import InputError
from bloomlab.printable import printable_tokens
from bloomlab.session.attention import Attention, columns_of
from bloomlab.session.edits import Edits

PER_LAYER = 24  # times d_model: what a layer needs at once for each token


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Run:
    """One text that the model read, whole, and what is left: the residual stream.

    Attributes:
        model: what ran.
        ids: what it read.
        edits: in force.
        resid: the stream before each layer, and after the last.
        means: of every head's output over the tokens, by layer.
        seconds: time of the forward, from the first edited layer on.
    """

    model: Any
    ids: Int[Tensor, "1 pos"]
    edits: Edits
    resid: list[Float[Tensor, "1 pos d_model"]]
    means: list[Float[Tensor, "_ d_head"]]
    seconds: float
    _tiles: dict[tuple[str, int, int], Any] = field(default_factory=dict)

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return len(self.resid) - 1

    @property
    def n_head(self) -> int:
        """Number of heads in a layer, pruned ones counted."""
        return self.model.config.n_head

    def __repr__(self) -> str:
        return f"Run({len(self)} tokens, {self.n_layer} x {self.n_head} heads, {self.edits!r})"

    def __len__(self) -> int:
        return self.ids.shape[1]

    @cached_property
    def tokens(self) -> list[str]:
        """Printable label of every token, not escaped."""
        return printable_tokens(self.model.tokenizer, self.ids[0].tolist())

    @cached_property
    def attention(self) -> Attention:
        """Rebuilds attention."""
        return Attention(model=self.model, ids=self.ids, resid=self.resid, edits=self.edits)

    def pattern(
        self, layer: int, head: int, queries: Any = None, *, quantity: str = "pattern"
    ) -> Float[np.ndarray, "query key"]:
        """Attention of one head; see `Attention.heads` for the quantities.

        Raises:
            InputError: no such layer, head or query, or a head that was pruned.
        """
        self.require(layer, head)
        return self.attention.heads(quantity, layer, [head], queries)[0].cpu().numpy()

    def patterns(
        self, layers: Sequence[int] | None = None, *, quantity: str = "pattern"
    ) -> Float[np.ndarray, "chosen head query key"]:
        """Attention of all heads of some layers (None: all); 0 for pruned heads."""
        chosen = list(range(self.n_layer)) if layers is None else list(layers)
        found = np.zeros((len(chosen), self.n_head, len(self), len(self)), dtype=np.float32)
        for place, layer in enumerate(chosen):
            self.require(layer)
            heads = list(self.model.blocks[layer].attn.heads)
            found[place, heads] = self.attention.heads(quantity, layer, heads).cpu().numpy()
        return found

    def scores(self, layer: int, head: int, query: int) -> list[Float[np.ndarray, " key"]]:
        """Content, bias (logits) and attention of one query over the keys it sees."""
        self.require(layer, head)
        if not 0 <= query < len(self):
            raise InputError(f"no query {query}: the text has tokens 0 to {len(self) - 1}.")
        parts = [part.cpu().numpy() for part in self.attention.scores(layer, head, query)]
        return [*parts, self.pattern(layer, head, [query])[0, : query + 1]]

    def tiles(
        self, layer: int, size: int = 64, *, quantity: str = "pattern"
    ) -> tuple[
        Float[np.ndarray, "head row column"],
        Float[np.ndarray, "head row"],
        Float[np.ndarray, "head stat"],
    ]:
        """Pooled attention of a layer's heads, made once; see `Attention.tiles`."""
        self.require(layer)
        if size < 1:
            raise InputError(f"tiles of {size} cells, expected 1 or more.")
        key = (quantity, layer, size)
        if key not in self._tiles:
            made = self.attention.tiles(quantity, layer, size)
            self._tiles[key] = tuple(one.numpy() for one in made)
        return self._tiles[key]

    @torch.no_grad()
    def logits(self, position: Any = -1) -> Float[Tensor, " vocab"]:
        """Logits of the token that follows one position, in float32 at least.

        Raises:
            InputError: no such position.
        """
        [column] = columns_of([position], len(self))
        last = self.model.ln_final(self.resid[-1][:, [column]])
        return self.model.unembed(last)[0, 0].float()

    def tiles_before(self, layer: int, edits: Edits) -> dict[tuple[str, int, int], Any]:
        """Tiles that a run which differs from `layer` on has in common with this one.

        Attention of that layer itself is among them, unless its slopes are edited.
        """
        alike = layer + int((edits.slopes[layer] == self.edits.slopes[layer]).all())
        return {key: value for key, value in self._tiles.items() if key[1] < alike}

    def last_rows(self) -> Float[Tensor, "layer head key"]:
        """Attention of the last token in every head; 0 for pruned heads."""
        rows = torch.zeros(self.n_layer, self.n_head, len(self))
        for layer, block in enumerate(self.model.blocks):
            heads = list(block.attn.heads)
            rows[layer, heads] = self.attention.heads("pattern", layer, heads, [-1])[:, 0].cpu()
        return rows

    def next_tokens(
        self, k: int = 8, position: int = -1
    ) -> tuple[list[str], Float[np.ndarray, " token"]]:
        """Labels and probabilities of the k likeliest next tokens."""
        best = self.logits(position).softmax(-1).topk(min(k, self.model.config.vocab_size))
        return self.labels(best.indices), best.values.cpu().numpy()

    def labels(self, ids: Any) -> list[str]:
        """Printable labels of unrelated ids."""
        return [printable_tokens(self.model.tokenizer, [int(i)])[0] for i in ids]

    def require(self, layer: int, head: int | None = None) -> None:
        """Raise InputError unless there is such a layer and head, and it was not pruned."""
        if not 0 <= layer < self.n_layer:
            raise InputError(f"no layer {layer}: the model has layers 0 to {self.n_layer - 1}.")
        if head is not None:
            if not 0 <= head < self.n_head:
                raise InputError(f"no head {head}: the model has heads 0 to {self.n_head - 1}.")
            self.model.blocks[layer].attn.index([head])


@torch.no_grad()
def run_text(model: Any, ids: Int[Tensor, "1 pos"], edits: Edits, clean: Run | None = None) -> Run:
    """A run of a text; of a clean one, what lies before the first edited layer is taken.

    Raises:
        InputError: the text needs more memory than there is.
    """
    _require_memory(model, ids.shape[1])
    n_layer, means = len(model.blocks), dict[int, Tensor]()
    kept = [block.attn.heads for block in model.blocks]
    start = 0 if clean is None else edits.first_difference(clean.edits)
    begun, resid = time.perf_counter(), dict[int, Tensor]()
    if clean is not None and start == n_layer:
        return clean

    def keep(value: Tensor, hook: Any) -> None:
        layer = int(hook.name.split(".")[1])
        if hook.name.endswith("hook_z"):
            means[layer] = value[0].mean(0)
        else:
            resid[layer + hook.name.endswith("resid_post")] = value

    keep.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(start, n_layer)]
    names.append(f"blocks.{n_layer - 1}.hook_resid_post")
    if clean is None:
        names += [f"blocks.{layer}.attn.hook_z" for layer in range(n_layer)]
    edited = edits.interventions(kept, [] if clean is None else clean.means)
    with model.hooks(fwd_hooks=[*edited, *((name, keep) for name in names)]):
        model.backbone(
            ids if clean is None else clean.resid[start],
            start_at_layer=None if clean is None else start,
            use_cache=False,
        )
    if ids.is_cuda:
        torch.cuda.synchronize()  # the time is the forward's, not that of asking for it
    streams = [] if clean is None else clean.resid[:start]
    tiles = {} if clean is None else clean.tiles_before(start, edits)
    return Run(
        model=model,
        ids=ids,
        edits=edits,
        resid=[*streams, *(resid[layer] for layer in range(start, n_layer + 1))],
        means=[means[layer] for layer in range(n_layer)] if clean is None else clean.means,
        seconds=time.perf_counter() - begun,
        _tiles=tiles,
    )


def difference_tiles(
    edited: Run, clean: Run, layer: int, size: int
) -> tuple[
    Float[np.ndarray, "head row column"],
    Float[np.ndarray, "head row"],
    Float[np.ndarray, "head stat"],
]:
    """As `Run.tiles`, of one run's patterns minus another's; the farthest from 0 of each cell.

    The first column keeps key 0: a difference has no sink to hide. What heads look at is of the
    edited run.
    """
    _, _, stats = edited.tiles(layer, size)
    size = min(size, len(edited))
    tiles = torch.zeros(edited.n_head, size, size)
    for head in edited.model.blocks[layer].attn.heads:
        pair = (run.attention.heads("pattern", layer, [head]) for run in (edited, clean))
        change = next(pair) - next(pair)
        high, low = (F.adaptive_max_pool2d(one[None], size)[0, 0] for one in (change, -change))
        tiles[head] = torch.where(high >= low, high, -low).cpu()
    return tiles.numpy(), tiles[:, :, 0].numpy(), stats


def _require_memory(model: Any, n_pos: int) -> None:
    """Raise unless the stream of a text, and what a layer needs at once, fits."""
    config, width = model.config, model.embed.weight.element_size()
    needed = n_pos * config.hidden_size * width * (2 * (config.n_layer + 1) + PER_LAYER)
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"{n_pos} tokens are too many: the stream of {config.n_layer + 1} layers x {n_pos} "
            f"tokens x {config.hidden_size} numbers, twice, and a layer's own take "
            f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free. Take a shorter text."
        )
