"""The key-value cache: what past tokens left behind, with explicit positions and validity.

BLOOM's keys and values carry no position (ALiBi sits in the scores), so a cache can be cropped,
gathered, forked and thinned out; only `positions` decides the bias.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bloomlab.errors import CacheError, ShapeError

GROWTH = 256  # tokens by which a full buffer grows, at least


class _Buffer:
    """Room for keys and values of one layer; the first `used` columns are taken.

    Several caches may share a buffer. Only one whose own end is the buffer's end may append in
    place, so a fork that goes its own way copies and never overwrites the other.
    """

    def __init__(self, k: Tensor, v: Tensor, used: int) -> None:
        self.k, self.v, self.used = k, v, used

    def appended(self, k: Tensor, v: Tensor, length: int) -> "_Buffer":
        """A buffer whose columns up to `length` are this one's and which goes on with `k`, `v`."""
        end = length + k.shape[2]
        if k.requires_grad or self.k.requires_grad:  # autograd: no writing in place
            past = self.k[:, :, :length], self.v[:, :, :length]
            return _Buffer(torch.cat([past[0], k], 2), torch.cat([past[1], v], 2), end)
        room = self
        if self.used != length or self.k.shape[2] < end:
            capacity = end + max(end // 2, GROWTH)
            new_k, new_v = (
                t.new_empty((t.shape[0], t.shape[1], capacity, t.shape[3]))
                for t in (self.k, self.v)
            )
            new_k[:, :, :length], new_v[:, :, :length] = (
                self.k[:, :, :length],
                self.v[:, :, :length],
            )
            room = _Buffer(new_k, new_v, length)
        room.k[:, :, length:end], room.v[:, :, length:end] = k, v
        room.used = end
        return room


class KVCache:
    """Keys and values of every layer, with `positions` and `valid` of each token.

    A forward appends to the cache it is given (and hands the same object back), as in
    transformers; it does so at its end, so a forward that raises leaves the cache as it was.
    `fork`, `crop`, `gather`, `evict` and `to` return a new cache and leave this one alone.

    Attributes:
        positions: position of each token, the distance ALiBi counts; [batch, key], 0 for padding.
        valid: False where a token is padding or evicted and no query sees it; [batch, key].
        next_position: the position the next token will take; [batch].
    """

    positions: Int[Tensor, "batch key"]
    valid: Bool[Tensor, "batch key"]
    next_position: Int[Tensor, " batch"]

    def __init__(self) -> None:
        self.positions = torch.zeros(0, 0, dtype=torch.long)
        self.valid = torch.zeros(0, 0, dtype=torch.bool)
        self.next_position = torch.zeros(0, dtype=torch.long)
        self._layers: list[_Buffer] = []
        self._padded = False
        self._evicted = False

    def __len__(self) -> int:
        return self.positions.shape[1]

    def __repr__(self) -> str:
        rows, keys = self.positions.shape
        size = f"{rows} rows, {keys} tokens, {len(self._layers)} layers, {self.nbytes:,} bytes"
        return f"KVCache({size})"

    def get_seq_length(self) -> int:
        """Number of cached tokens, padding included (transformers' name for `len`)."""
        return len(self)

    @property
    def n_rows(self) -> int:
        """Number of sequences; 0 while the cache is empty."""
        return self.positions.shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of memory that keys and values take, spare room included."""
        tensors = {t.data_ptr(): t for layer in self._layers for t in (layer.k, layer.v)}
        rows = {p: len(t) if t.stride(0) else 1 for p, t in tensors.items()}  # a fork shares rows
        return sum(rows[p] * t[0].numel() * t.element_size() for p, t in tensors.items())

    def keys(self, layer: int) -> Float[Tensor, "batch head key d_head"]:
        """Keys of a layer; a view, so writing to it edits the cache."""
        return self._layer(layer).k[:, :, : len(self)]

    def values(self, layer: int) -> Float[Tensor, "batch head key d_head"]:
        """Values of a layer; a view, so writing to it edits the cache."""
        return self._layer(layer).v[:, :, : len(self)]

    def fork(self, n: int = 1) -> "KVCache":
        """N independent copies of every row, side by side: row i becomes rows i*n ... i*n + n-1.

        Nothing is copied for one row until the fork or this cache goes on.
        """
        if n < 1 or not self.n_rows:
            raise CacheError(f"fork({n}): expected at least one copy of a cache that holds tokens.")
        if n == 1:
            return self._with(self._layers, self.positions, self.valid, self.next_position)
        return self._mapped(
            lambda t: t.repeat_interleave(n, 0) if len(t) > 1 else t.expand(n, *t.shape[1:])
        )

    def crop(self, length: int) -> "KVCache":
        """The first `length` tokens (padding counted); a negative length drops from the end."""
        end = length if length >= 0 else len(self) + length
        if not 0 <= end <= len(self):
            raise CacheError(f"crop({length}): the cache holds {len(self)} tokens.")
        dropped = torch.where(self.valid, self.positions, self.next_position[:, None])[:, end:]
        following = torch.cat([dropped, self.next_position[:, None]], -1).amin(-1)
        return self._with(self._layers, self.positions[:, :end], self.valid[:, :end], following)

    def gather(self, rows: Any) -> "KVCache":
        """The given rows [row], in the given order; a row may come several times."""
        index = self._integers("gather", rows)
        if len(index) and not -self.n_rows <= int(index.min()) <= int(index.max()) < self.n_rows:
            raise CacheError(f"gather({rows}): the cache holds rows 0 to {self.n_rows - 1}.")
        return self._mapped(lambda t: t[index % self.n_rows])

    def evict(self, positions: Any, reindex: bool = False) -> "KVCache":
        """Without the tokens at the given positions [position], in every row.

        With `reindex` the rest moves together (positions count from 0 without gaps, StreamingLLM's
        way); without, distances stay what they were and the next token's position too.
        """
        gone = self._integers("evict", positions)
        end = int(self.next_position.max()) if self.n_rows else 0
        if len(gone) and not 0 <= int(gone.min()) <= int(gone.max()) < end:
            raise CacheError(f"evict({gone.tolist()}): positions run from 0 to {end - 1}.")
        valid = self.valid & ~torch.isin(self.positions, gone)
        columns = valid.any(0).nonzero()[:, 0]
        valid = valid[:, columns]
        kept, following = self.positions[:, columns] * valid, self.next_position
        if reindex:
            kept, following = (valid.cumsum(-1) - 1) * valid, valid.sum(-1)
        layers = [
            _Buffer(b.k[:, :, columns], b.v[:, :, columns], len(columns)) for b in self._layers
        ]
        thinned = self._with(layers, kept, valid, following)
        thinned._evicted = True
        return thinned

    def to(self, device: torch.device | str) -> "KVCache":
        """The cache on another device; without spare room."""
        return self._mapped(lambda t: t.to(device))

    def _integers(self, what: str, values: Any) -> Int[Tensor, " n"]:
        numbers = torch.as_tensor(values, device=self.positions.device)
        if numbers.numel() and (numbers.dtype == torch.bool or numbers.is_floating_point()):
            raise CacheError(
                f"{what} takes whole numbers, got {numbers.dtype}; for a mask pass mask.nonzero()."
            )
        return numbers.long().flatten()

    def _layer(self, layer: int) -> _Buffer:
        if not 0 <= layer < len(self._layers):
            raise CacheError(f"no layer {layer} in {self!r}.")
        return self._layers[layer]

    def _with(
        self, layers: list[_Buffer], positions: Tensor, valid: Tensor, following: Tensor
    ) -> "KVCache":
        new = KVCache()
        new._layers, new._padded = list(layers), self._padded
        new._evicted = self._evicted
        new.positions, new.valid, new.next_position = positions, valid, following
        return new

    def _mapped(self, change: Any) -> "KVCache":
        end = len(self)
        layers = [
            _Buffer(change(b.k[:, :, :end]), change(b.v[:, :, :end]), end) for b in self._layers
        ]
        # `used` is the end, but a view's room is full: the next append copies
        return self._with(
            layers, change(self.positions), change(self.valid), change(self.next_position)
        )


class Extension:
    """One forward's addition to a cache: sees old and new tokens, keeps them on `commit`.

    Args:
        cache: what the new tokens follow; unchanged until `commit`.
        valid: False where a new token is padding.
        past_visible: False for cached tokens that this forward may not see; None: all.
        padded: whether any entry of the two is False.

    Attributes:
        query_positions: position of each new token; [batch, query].
        key_positions: position of each old and new token; [batch, key].
        visible: False for tokens no query may see; [batch, key].
        padded: whether rows differ in positions or visibility.
    """

    def __init__(
        self,
        cache: KVCache,
        valid: Bool[Tensor, "batch query"],
        *,
        past_visible: Bool[Tensor, "batch key"] | None,
        padded: bool,
    ) -> None:
        if cache.n_rows not in (0, len(valid)):
            raise CacheError(
                f"the cache holds {cache.n_rows} rows, the input {len(valid)}; "
                "fork(n) or gather(rows) the cache to fit."
            )
        positions, past, following = cache.positions, cache.valid, cache.next_position
        if not cache.n_rows:
            past = valid[:, :0]
            positions, following = past.long(), valid.new_zeros(len(valid), dtype=torch.long)
        if past.device != valid.device:
            raise CacheError(
                f"the cache is on {past.device}, the input on {valid.device}; "
                "move it: past = past.to(device)."
            )
        self._cache, self._past, self._length = cache, list(cache._layers), len(cache)
        self._layers = list(cache._layers)
        self.padded = padded or cache._padded
        self.query_positions = (following[:, None] + valid.cumsum(-1) - 1) * valid
        self.key_positions = torch.cat([positions, self.query_positions], -1)
        self._valid = torch.cat([past, valid], -1)
        if past_visible is not None and bool((past_visible & ~past).any()):
            raise CacheError(
                "attention_mask shows cached tokens that were padding when they were cached; "
                "compute the cache again with the mask you mean."
            )
        seen = past if past_visible is None else past & past_visible
        self.visible = torch.cat([seen, valid], -1)
        self._next = following + valid.sum(-1)

    def update(
        self,
        layer: int,
        k: Float[Tensor, "batch head query d_head"],
        v: Float[Tensor, "batch head query d_head"],
    ) -> tuple[Float[Tensor, "batch head key d_head"], Float[Tensor, "batch head key d_head"]]:
        """All keys and values of a layer, past ones first."""
        if not self._length:  # contiguous: as views they would keep the queries alive too
            self._layers[layer:] = [_Buffer(k.contiguous(), v.contiguous(), k.shape[2])]
            return k, v
        if layer >= len(self._past):
            raise CacheError(f"the cache holds {len(self._past)} layers; the model has more.")
        past = self._past[layer]  # not `_layers`: backward may run a layer once more
        if past.k.dtype != k.dtype:
            raise CacheError(f"the cache holds {past.k.dtype}, the model computes in {k.dtype}.")
        if past.k.shape[1::2] != k.shape[1::2]:
            raise ShapeError(
                f"the cache's layer {layer} [head, d_head]",
                got=past.k.shape[1::2],
                expected=str(list(k.shape[1::2])),
                fix="It was filled by another model.",
            )
        end = self._length + k.shape[2]
        self._layers[layer] = grown = past.appended(k, v, self._length)
        return grown.k[:, :, :end], grown.v[:, :, :end]

    def commit(self, n_layer: int) -> None:
        """Make the new tokens part of the cache, after all `n_layer` layers were updated."""
        if len(self._layers) != n_layer:
            raise CacheError(f"the cache holds {len(self._layers)} layers, the model {n_layer}.")
        self._cache._layers, self._cache._padded = self._layers, self.padded
        self._cache.positions, self._cache.valid = self.key_positions, self._valid
        self._cache.next_position = self._next
