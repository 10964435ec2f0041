"""The key-value cache: what past tokens left behind, with explicit positions and validity.

BLOOM's keys and values carry no position (ALiBi sits in the scores), so a cache can be cropped,
gathered, forked and thinned out; only `positions` decides the bias.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bloomlab.errors import CacheError
from bloomlab.model.pieces import (
    Pieces,
    Room,
    chosen_columns,
    cropped,
    gathered,
    joined,
    mapped,
    reserved,
    stored_bytes,
)


class Marks(NamedTuple):
    """Where each token stands, for caches whose rows differ or have gaps."""

    positions: Int[Tensor, "batch key"]  # 0 for padding
    valid: Bool[Tensor, "batch key"]
    following: Int[Tensor, " batch"]  # position of the next token

    @staticmethod
    def of_rows(rows: int, length: int, device: Any) -> "Marks":
        """Rows without padding or gaps; views of one row."""
        positions = torch.arange(length, device=device).expand(rows, -1)
        valid = torch.ones(1, length, dtype=torch.bool, device=device).expand(rows, -1)
        return Marks(positions, valid, torch.full((rows,), length, device=device))

    def followed_by(self, valid: Bool[Tensor, "batch new"]) -> "Marks":
        """The same with new tokens, some of which may be padding."""
        new = (self.following[:, None] + valid.cumsum(-1) - 1) * valid
        return Marks(
            torch.cat([self.positions, new], -1),
            torch.cat([self.valid, valid], -1),
            self.following + valid.sum(-1),
        )

    def first(self, length: int) -> "Marks":
        """The first tokens; the next one takes the position of the first that is dropped."""
        dropped = torch.where(self.valid, self.positions, self.following[:, None])[:, length:]
        following = torch.cat([dropped, self.following[:, None]], -1).amin(-1)
        return Marks(self.positions[:, :length], self.valid[:, :length], following)

    def of(self, change: Any) -> "Marks":
        """Positions, validity and next position changed alike."""
        return Marks(*(change(tensor) for tensor in self))


class KVCache:
    """Keys and values of every layer, with `positions` and `valid` of each token.

    A forward appends to the cache it is given (and hands the same object back), as in
    transformers; it does so at its end, so a forward that raises leaves the cache as it was.
    `fork`, `crop`, `gather`, `evict` and `to` return a new cache and leave this one alone; what
    caches have in common is stored once.
    """

    def __init__(self) -> None:
        self._rows, self._length = 0, 0
        self._layers: list[Pieces] = []
        self._marks: Marks | None = None  # None: every row is 0, 1, 2, ... without padding
        self._evicted = False

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        size = f"{self.n_rows} rows, {len(self)} tokens, {len(self._layers)} layers"
        return f"KVCache({size}, {self.nbytes:,} bytes)"

    @property
    def n_rows(self) -> int:
        """Number of sequences; 0 while the cache is empty."""
        return self._rows

    @property
    def positions(self) -> Int[Tensor, "batch key"]:
        """Position of each token, the distance ALiBi counts; 0 for padding."""
        return self.marks.positions

    @property
    def valid(self) -> Bool[Tensor, "batch key"]:
        """False where a token is padding or evicted and no query sees it."""
        return self.marks.valid

    @property
    def next_position(self) -> Int[Tensor, " batch"]:
        """The position the next token will take."""
        return self.marks.following

    @property
    def marks(self) -> Marks:
        """`positions`, `valid` and `next_position` together."""
        return self._marks or Marks.of_rows(self._rows, self._length, self.device)

    @property
    def n_copies(self) -> int:
        """How many rows share what is stored once, at most."""
        return max((self._rows // one.rows for one in self._layers[0]), default=1) if self else 1

    @property
    def has_padding(self) -> bool:
        """Whether rows differ, or some token is padding, or positions have gaps."""
        return self._marks is not None

    @property
    def device(self) -> torch.device:
        """Where keys and values are; the CPU while the cache is empty."""
        return self._layers[0][0].k.device if self._layers else torch.device("cpu")

    @property
    def nbytes(self) -> int:
        """Bytes of memory that keys and values take, spare room included."""
        return stored_bytes(self._layers)

    def get_seq_length(self) -> int:
        """Number of cached tokens, padding included (transformers' name for `len`)."""
        return len(self)

    def keys(self, layer: int) -> Float[Tensor, "batch head key d_head"]:
        """Keys of a layer, to read; to change them use `replace`."""
        return joined(self._layer(layer), self._rows)[0]

    def values(self, layer: int) -> Float[Tensor, "batch head key d_head"]:
        """Values of a layer, to read; to change them use `replace`."""
        return joined(self._layer(layer), self._rows)[1]

    def fork(self, n: int = 1) -> "KVCache":
        """N independent copies of every row, side by side: row i becomes rows i*n ... i*n + n-1.

        Nothing is copied, now or later: what was cached so far stays stored once.
        """
        if n < 1 or not self.n_rows:
            raise CacheError(f"fork({n}): expected at least one copy of a cache that holds tokens.")
        marks = self._marks and self._marks.of(lambda t: t.repeat_interleave(n, 0))
        return self._with(self._layers, rows=self._rows * n, marks=marks)

    def crop(self, length: int) -> "KVCache":
        """The first `length` tokens (padding counted); a negative length drops from the end."""
        end = length if length >= 0 else len(self) + length
        if not 0 <= end <= len(self):
            raise CacheError(f"crop({length}): the cache holds {len(self)} tokens.")
        if not end:
            return KVCache()
        layers = [cropped(pieces, end) for pieces in self._layers]
        return self._with(layers, length=end, marks=self._marks and self._marks.first(end))

    def gather(self, rows: Any) -> "KVCache":
        """The given rows [row], in the given order; a row may come several times."""
        index = self._integers("gather", rows)
        if len(index) and not -self.n_rows <= int(index.min()) <= int(index.max()) < self.n_rows:
            raise CacheError(f"gather({rows}): the cache holds rows 0 to {self.n_rows - 1}.")
        index = index % self.n_rows
        layers = [gathered(pieces, index, self._rows) for pieces in self._layers]
        marks = self._marks and self._marks.of(lambda t: t[index])
        return self._with(layers, rows=len(index), marks=marks)

    def evict(self, positions: Any, reindex: bool = False) -> "KVCache":
        """Without the tokens at the given positions [position], in every row.

        With `reindex` the rest moves together (positions count from 0 without gaps, StreamingLLM's
        way); without, distances stay what they were and the next token's position too.
        """
        gone = self._integers("evict", positions)
        marks = self.marks
        end = int(marks.following.max()) if self.n_rows else 0
        if len(gone) and not 0 <= int(gone.min()) <= int(gone.max()) < end:
            raise CacheError(f"evict({gone.tolist()}): positions run from 0 to {end - 1}.")
        valid = marks.valid & ~torch.isin(marks.positions, gone)
        columns = valid.any(0).nonzero()[:, 0]
        valid = valid[:, columns]
        kept, following = marks.positions[:, columns] * valid, marks.following
        if reindex:
            kept, following = (valid.cumsum(-1) - 1) * valid, valid.sum(-1)
        layers = [chosen_columns(pieces, columns) for pieces in self._layers]
        thinned = self._with(layers, length=len(columns), marks=Marks(kept, valid, following))
        thinned._evicted = True
        return thinned

    def to(self, device: torch.device | str) -> "KVCache":
        """The cache on another device; without spare room."""
        layers = [mapped(pieces, lambda t: t.to(device)) for pieces in self._layers]
        return self._with(layers, marks=self._marks and self._marks.of(lambda t: t.to(device)))

    def reserve(self, columns: int) -> list[Room]:
        """Make room for so many more tokens, so that no step copies; the room of every layer."""
        rooms = [reserved(pieces, self._rows, columns) for pieces in self._layers]
        self._layers = [(room.grown_to(len(self)),) for room in rooms]
        return rooms

    def fills(self, rooms: list[Room]) -> bool:
        """Whether these rooms hold this cache, and nobody went on in them otherwise."""
        return len(rooms) == len(self._layers) and all(
            len(pieces) == 1 and pieces[0].room is room and room.used == len(self)
            for pieces, room in zip(self._layers, rooms, strict=True)
        )

    def _grow(self, layers: list[Pieces], *, rows: int, new: int, marks: Marks | None) -> None:
        self._layers, self._rows, self._marks = layers, rows, marks
        self._length += new

    def _integers(self, what: str, values: Any) -> Int[Tensor, " n"]:
        numbers = torch.as_tensor(values, device=self.device)
        if numbers.numel() and (numbers.dtype == torch.bool or numbers.is_floating_point()):
            raise CacheError(
                f"{what} takes whole numbers, got {numbers.dtype}; for a mask pass mask.nonzero()."
            )
        return numbers.long().flatten()

    def _layer(self, layer: int) -> Pieces:
        if not 0 <= layer < len(self._layers):
            raise CacheError(f"no layer {layer} in {self!r}.")
        return self._layers[layer]

    def _with(
        self,
        layers: list[Pieces],
        *,
        rows: int | None = None,
        length: int | None = None,
        marks: Marks | None,
    ) -> "KVCache":
        new = KVCache()
        new._layers, new._marks, new._evicted = list(layers), marks, self._evicted
        new._rows = self._rows if rows is None else rows
        new._length = self._length if length is None else length
        return new
