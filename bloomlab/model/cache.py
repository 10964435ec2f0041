"""The key-value cache: what past tokens left behind, with explicit positions and validity.

BLOOM's keys and values carry no position (ALiBi sits in the scores), so a cache can be cropped,
gathered, forked, thinned out and spliced; only `positions` decides the bias.
"""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from bloomlab.errors import CacheError
from bloomlab.model import cache_files, hf_cache
from bloomlab.model.cache_edits import Part, check_alike, chosen, edited, whole_numbers
from bloomlab.model.cache_state import Held
from bloomlab.model.marks import Marks
from bloomlab.model.pieces import Pieces, cropped, gathered, joined, mapped
from bloomlab.model.thinning import thinned


class KVCache(Held):
    """Keys and values of every layer, with `positions` and `valid` of each token.

    A forward appends to the cache it is given (and hands the same object back), as in
    transformers; it does so at its end, so a forward that raises leaves the cache as it was.
    Every method returns a new cache and leaves this one alone; what caches have in common is
    stored once. A method that raises has changed nothing.

    Args:
        policy: which tokens stay after every forward, such as `SinkWindow(window=256)`; None keeps
            all. Caches made from this one have the same.

    Raises:
        CacheError: something that is no policy.
    """

    def fork(self, n: int = 1) -> "KVCache":
        """N independent copies of every row, side by side: row i becomes rows i*n ... i*n + n-1.

        Nothing is copied: what was cached so far stays stored once, also in forwards after. (Only
        `generate` and `stream` copy it, for up to 16 rows, where that is faster.)
        """
        if n < 1 or not self.n_rows:
            raise CacheError(f"fork({n}): expected at least one copy of a cache that holds tokens.")
        return self._marked(lambda t: t.repeat_interleave(n, 0), rows=self._rows * n)

    def crop(self, length: int) -> "KVCache":
        """The first `length` tokens (padding counted); a negative length drops from the end."""
        end = length if length >= 0 else len(self) + length
        if not 0 <= end <= len(self):
            raise CacheError(f"crop({length}): the cache holds {len(self)} tokens.")
        if not end:
            return KVCache(policy=self.policy)
        return self._changed(
            layers=[cropped(pieces, end) for pieces in self._layers],
            length=end,
            seen=self._seen - (len(self) - end),
            marks=self._marks and self._marks.first(end),
            received=None if self._received is None else self._received[:, :end],
        )

    def gather(self, rows: Any) -> "KVCache":
        """The given rows [row], in the given order; a row may come several times.

        Rows that share what is cached go on sharing it where each of its users gets as many.
        """
        index = whole_numbers("gather", rows, self.device)
        if not len(index):
            raise CacheError("gather([]): expected at least one row.")
        if not -self.n_rows <= int(index.min()) <= int(index.max()) < self.n_rows:
            raise CacheError(f"gather({rows}): the cache holds rows 0 to {self.n_rows - 1}.")
        index = index % self.n_rows
        layers = [gathered(pieces, index, self._rows) for pieces in self._layers]
        return self._marked(lambda t: t[index], layers=layers, rows=len(index))

    def evict(self, positions: Any, reindex: bool = False) -> "KVCache":
        """Without the tokens at the given positions [position], in every row.

        With `reindex` the rest moves together (positions count from 0 without gaps, StreamingLLM's
        way); without, distances stay what they were and the next token's position too. Rows that
        keep fewer tokens than others are filled up with padding.
        """
        gone = whole_numbers("evict", positions, self.device)
        marks = self.marks
        end = int(marks.following.max()) if self.n_rows else 0
        if len(gone) and not 0 <= int(gone.min()) <= int(gone.max()) < end:
            raise CacheError(f"evict({gone.tolist()}): positions run from 0 to {end - 1}.")
        return (
            self._thinned(~torch.isin(marks.positions, gone), reindex) if end else self._changed()
        )

    def replace(
        self,
        layer: int,
        *,
        k: Any = None,
        v: Any = None,
        rows: Any = None,
        heads: Any = None,
        columns: Any = None,
    ) -> "KVCache":
        """With other keys or values in one layer; everything else stays shared with this cache.

        Args:
            layer: which layer.
            k: new keys: a tensor that broadcasts to [row head column d_head] of the chosen part, a
                number, or a function of the old ones; None leaves them.
            v: the same for values.
            rows: indices or a slice; None: all. To edit rows alike and keep them stored once,
                leave it and pass values without a row axis.
            heads: the same for heads.
            columns: the same for tokens, padding counted; not positions.

        Raises:
            CacheError: indices out of range, another dtype or device, NaN, nothing to replace.
            ShapeError: values that do not fit the chosen part.
        """
        pieces = self._layer(layer)
        if k is None and v is None:
            raise CacheError("replace: nothing to replace; pass k=, v= or both.")
        part = self._part(pieces, rows, heads, columns)
        layers = list(self._layers)
        layers[layer] = edited(pieces, self._rows, part=part, k=k, v=v)
        return self._changed(layers=layers)

    def splice(
        self,
        other: "KVCache",
        *,
        columns: Any,
        layers: Any = None,
        heads: Any = None,
        rows: Any = None,
        what: Any = ("k", "v"),
    ) -> "KVCache":
        """With the same columns taken from another run's cache; indices as in `replace`.

        Keys and values carry no position: each token keeps the position it has here.

        Args:
            other: a cache of the same model, with as many rows or one.
            columns: which tokens, padding counted.
            layers: which layers; None: all.
            heads: which heads; None: all.
            rows: which rows; None: all.
            what: "k", "v" or both.

        Raises:
            CacheError: another model, dtype, device or number of rows; indices out of range; a
                token that is padding in the other cache.
        """
        if not isinstance(other, KVCache):
            raise CacheError(f"splice takes a bl.KVCache, got {type(other).__name__}.")
        for cache in (self, other):
            cache._layer(0)
        check_alike(self._layers, other._layers, what)
        if other.n_rows not in (1, self.n_rows):
            raise CacheError(f"splice: {other.n_rows} rows, expected 1 or {self.n_rows}.")
        part = self._part(self._layers[0], rows, None, columns)
        chosen("columns", part.columns, len(other), self.device)  # the other may be shorter
        hidden = ~other.valid[:, part.columns] & self.valid[:, part.columns]
        if bool(hidden.any()):
            raise CacheError("splice: some of the columns are padding in the other cache.")
        new = list(self._layers)
        for layer in chosen("layers", layers, len(new), torch.device("cpu")).tolist():
            part = self._part(new[layer], rows, heads, columns)  # pruned layers differ in heads
            theirs = part if other.n_rows == self.n_rows else part._replace(rows=None)
            k, v = joined(other._layers[layer], other.n_rows)
            values = {"k": theirs.of(k) if "k" in what else None}
            values["v"] = theirs.of(v) if "v" in what else None
            new[layer] = edited(new[layer], self._rows, part=part, **values)
        return self._changed(layers=new)

    def to(self, device: torch.device | str) -> "KVCache":
        """The cache on another device; without spare room."""
        layers = [mapped(pieces, lambda t: t.to(device)) for pieces in self._layers]
        return self._marked(lambda t: t.to(device), layers=layers)

    def save(self, path: str | Path) -> None:
        """Write everything to one safetensors file; what rows share is written once.

        Raises:
            CheckpointError: the file cannot be written.
            CacheError: a policy of your own, which a file cannot hold.
        """
        cache_files.write(path, self)

    @staticmethod
    def load(path: str | Path, device: torch.device | str | None = None) -> "KVCache":
        """The cache that `save` wrote, on the CPU or another device.

        Raises:
            CheckpointError: no such file, or one that is truncated, foreign or inconsistent.
        """
        fields = cache_files.read(path, device="cpu" if device is None else device)
        cache = KVCache(policy=fields.pop("policy"))
        return cache._changed(**fields)

    def to_hf(self) -> Any:
        """A copy as transformers' DynamicCache; pass it on with `valid` as attention mask.

        Raises:
            CacheError: positions with gaps, which transformers cannot express.
        """
        return hf_cache.exported(self)

    @staticmethod
    def from_hf(cache: Any, attention_mask: Any = None) -> "KVCache":
        """A copy of what transformers' cache holds; without a mask nothing is padding.

        Args:
            cache: a DynamicCache, or another whose layers are plain DynamicLayers.
            attention_mask: [batch key], 0 for padding; only the cached columns count.

        Raises:
            CacheError: another kind of cache.
            ShapeError: a mask that does not fit it.
        """
        lent = KVCache.lent(cache, attention_mask)
        return lent._changed(layers=[mapped(pieces, torch.clone) for pieces in lent._layers])

    @staticmethod
    def lent(cache: Any, attention_mask: Any = None) -> "KVCache":
        """A view of transformers' cache for one forward, which grows that cache too."""
        return KVCache()._changed(**hf_cache.imported(cache, attention_mask), lender=cache)

    def _grow(
        self,
        layers: list[Pieces],
        *,
        rows: int,
        new: int,
        marks: Marks | None,
        received: Tensor | None = None,
    ) -> None:
        """Take over what a forward appended, and drop what the policy does not keep."""
        fields = {"layers": layers, "rows": rows, "marks": marks, "received": received}
        fields |= {"length": self._length + new, "seen": self._seen + new}
        if self.policy is None and self._lender is None:
            vars(self).update({f"_{name}": value for name, value in fields.items()})
            return
        grown = self._changed(**fields)
        keep = self.policy and self.policy.kept(grown.valid, received)
        if self.policy and keep is not None:
            if not isinstance(keep, Tensor) or keep.dtype != torch.bool:
                raise CacheError(f"the policy {self.policy!r} keeps {keep!r}, expected booleans.")
            if keep.shape != grown.valid.shape:
                raise CacheError(
                    f"the policy {self.policy!r} keeps {list(keep.shape)}, expected "
                    f"{list(grown.valid.shape)}: [batch key]."
                )
            grown = grown._thinned(keep, self.policy.reindex)
        if self._lender is not None:
            hf_cache.give_back(self._lender, [joined(pieces, rows) for pieces in layers])
        vars(self).update(vars(grown) | {"_lender": self._lender})

    def _thinned(self, keep: Bool[Tensor, "batch key"], reindex: bool) -> "KVCache":
        valid = self.valid
        dropped = bool((valid & ~keep).any())
        if not dropped:
            return self._changed(marks=Marks.counted(valid)) if reindex else self._changed()
        layers, kept = thinned(self._layers, valid & keep)
        present = kept.present.expand(self._rows, -1)
        marks = Marks(kept.of(self.positions), present, self.next_position)
        return self._changed(
            layers=layers,
            length=present.shape[1],
            marks=Marks.counted(present) if reindex else marks,
            received=None if self._received is None else kept.of(self._received),
            evicted=True,
        )

    def _part(self, pieces: Pieces, rows: Any, heads: Any, columns: Any) -> Part:
        device, n_head = self.device, pieces[0].k.shape[1]
        return Part(
            None if rows is None else chosen("rows", rows, self._rows, device),
            chosen("heads", heads, n_head, device),
            chosen("columns", columns, len(self), device),
        )
