"""What a key-value cache holds: pieces of keys and values, and where their tokens stand."""

import copy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bloomlab.errors import CacheError
from bloomlab.model.marks import Marks
from bloomlab.model.pieces import Pieces, Room, joined, reserved, stored_bytes
from bloomlab.model.policies import Policy, check_policy


class Held:
    """Keys and values of every layer, to read, with `positions` and `valid` of each token."""

    def __init__(self, *, policy: Any = None) -> None:
        check_policy(policy)
        self.policy: Policy | None = policy
        self._rows, self._length, self._seen = 0, 0, 0
        self._layers: list[Pieces] = []
        self._marks: Marks | None = None  # None: every row is 0, 1, 2, ... without padding
        self._received: Tensor | None = None  # batch key; attention, if the policy asks for it
        self._evicted = False
        self._lender: Any = None  # transformers' cache that this one stands for in one forward

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
    def seen(self) -> int:
        """Number of tokens a row was given so far, padding and evicted ones counted.

        `crop` takes away what it drops.
        """
        return self._seen

    @property
    def positions(self) -> Int[Tensor, "batch key"]:
        """Position of each token, the distance ALiBi counts; 0 for padding."""
        return self.marks.positions

    @property
    def valid(self) -> Bool[Tensor, "batch key"]:
        """False where a token is padding and no query sees it."""
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
    def has_lender(self) -> bool:
        """Whether this cache stands for one of transformers', which grows with it."""
        return self._lender is not None

    @property
    def n_copies(self) -> int:
        """How many rows share what is stored once, at most."""
        return max((self._rows // one.rows for one in self._layers[0]), default=1) if self else 1

    @property
    def has_padding(self) -> bool:
        """Whether rows differ, or some token is padding, or positions have gaps."""
        return self._marks is not None

    @property
    def has_evicted(self) -> bool:
        """Whether tokens were dropped, so that columns do not count all that was seen."""
        return self._evicted

    @property
    def device(self) -> torch.device:
        """Where keys and values are; the CPU while the cache is empty."""
        held = [one.k.device for pieces in self._layers[:1] for one in pieces[:1]]
        if not held and self._marks is not None:  # every token was evicted
            held = [self._marks.valid.device]
        return held[0] if held else torch.device("cpu")

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

    def _layer(self, layer: int) -> Pieces:
        if not 0 <= layer < len(self._layers) or not self._layers[layer]:
            raise CacheError(f"no layer {layer} in {self!r}.")
        return self._layers[layer]

    def _changed(self, **fields: Any) -> Any:
        """A cache that differs in some fields; everything else is shared."""
        other = copy.copy(self)
        other._layers, other._lender = list(self._layers), None
        vars(other).update({f"_{name}": value for name, value in fields.items()})
        return other

    def _marked(self, change: Any, **fields: Any) -> Any:
        """The same, with all that is said about each row changed alike."""
        return self._changed(
            marks=self._marks and self._marks.of(change),
            received=None if self._received is None else change(self._received),
            **fields,
        )
