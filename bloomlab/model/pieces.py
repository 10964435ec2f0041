"""How a cache stores one layer: pieces of columns, each of which several caches may share.

A piece with fewer rows than the cache stands for several rows each: 384 forks of a prompt are one
row of the prompt and 384 rows of what came after.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

GROWTH = 256  # tokens by which a full room grows, at least
MOST_PIECES = 4  # beyond, the last piece is copied instead of adding one more


class Room:
    """Space for keys and values; the first `used` columns are taken.

    Several pieces may lie in a room. Only one that ends where the room's content ends may go on in
    place, so nobody overwrites another's columns.
    """

    def __init__(self, k: Tensor, v: Tensor, used: int) -> None:
        self.k, self.v, self.used = k, v, used

    def grown_to(self, end: int) -> "Piece":
        """All columns up to `end`, which somebody wrote."""
        self.used = end
        return Piece(self, end)


class Piece(NamedTuple):
    """The first `length` columns of a room."""

    room: Room
    length: int

    @property
    def rows(self) -> int:
        """Rows that are stored."""
        return self.room.k.shape[0]

    @property
    def k(self) -> Float[Tensor, "row head column d_head"]:
        """Keys; a view."""
        return self.room.k[:, :, : self.length]

    @property
    def v(self) -> Float[Tensor, "row head column d_head"]:
        """Values; a view."""
        return self.room.v[:, :, : self.length]


Pieces = tuple[Piece, ...]


def whole(k: Tensor, v: Tensor) -> Piece:
    """A piece that is just these keys and values [row head column d_head]."""
    return Piece(Room(k, v, k.shape[2]), k.shape[2])


def appended(
    pieces: Pieces,
    k: Float[Tensor, "row head column d_head"],
    v: Float[Tensor, "row head column d_head"],
) -> Pieces:
    """The pieces followed by new columns of every row; in place where that harms nobody."""
    if not pieces:
        return (whole(k.contiguous(), v.contiguous()),)  # views would keep the queries alive too
    *before, last = pieces
    adds = len(pieces) < MOST_PIECES  # a piece of its own for the new columns
    grads = any(t.requires_grad for t in (k, v, last.room.k, last.room.v))
    if grads or torch.is_grad_enabled():  # no writing in place: autograd may have saved the room
        if last.rows != len(k) and adds:
            return (*pieces, whole(k, v))
        old_k, old_v = joined((last,), len(k))
        return (*before, whole(torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)))
    goes_on = last.rows == len(k) and last.room.used == last.length
    if not goes_on and adds:
        before, last, goes_on = pieces, Piece(_room(k.shape[2], k), 0), True
    end, room = last.length + k.shape[2], last.room
    frozen = room.k.is_inference() and not torch.is_inference_mode_enabled()
    if not goes_on or room.k.shape[2] < end or frozen:
        room = _room(end, k)
        room.k[:, :, : last.length], room.v[:, :, : last.length] = joined((last,), len(k))
    room.k[:, :, last.length : end], room.v[:, :, last.length : end] = k, v
    room.used = end
    return (*before, Piece(room, end))


def joined(pieces: Pieces, n_row: int) -> tuple[Tensor, Tensor]:
    """Keys and values of all rows [row head column d_head]; views where one piece has them."""
    ks, vs = (
        [t if len(t) == n_row else t.repeat_interleave(n_row // len(t), 0) for t in parts]
        for parts in ([p.k for p in pieces], [p.v for p in pieces])
    )
    return (ks[0], vs[0]) if len(pieces) == 1 else (torch.cat(ks, 2), torch.cat(vs, 2))


def cropped(pieces: Pieces, length: int) -> Pieces:
    """The first `length` columns; nothing is copied."""
    kept = []
    for one in pieces:
        if length > 0:
            kept.append(Piece(one.room, min(one.length, length)))
        length -= one.length
    return tuple(kept)


def gathered(pieces: Pieces, rows: Int[Tensor, " chosen"], n_row: int) -> Pieces:
    """The chosen rows; a piece whose rows stay together in order is shared, one row stored once."""
    kept = []
    for one in pieces:
        stored = rows // (n_row // one.rows)
        if len(rows) and bool((stored == stored[0]).all()):
            row = stored[:1]  # a copy: a view would keep the other rows' memory
            kept.append(one if one.rows == 1 else whole(one.k[row], one.v[row]))
            continue
        share, left = divmod(len(rows), one.rows)
        every = torch.arange(one.rows, device=rows.device).repeat_interleave(max(share, 1))
        if not left and torch.equal(stored, every):
            kept.append(one)
        else:
            kept.append(whole(one.k[stored], one.v[stored]))
    return tuple(kept)


def mapped(pieces: Pieces, change: Callable[[Tensor], Tensor]) -> Pieces:
    """The pieces with their keys and values changed alike, without spare room."""
    return tuple(whole(change(one.k), change(one.v)) for one in pieces)


def reserved(pieces: Pieces, n_row: int, columns: int) -> Room:
    """A room of one piece that nobody else goes on in, with space for so many more columns."""
    length = sum(one.length for one in pieces)
    last = pieces[-1]
    free = last.rows == n_row and last.room.used == length == last.length
    if free and last.room.k.shape[2] >= length + columns:
        return last.room
    k = last.k.new_empty(n_row, last.k.shape[1], length + columns, last.k.shape[3])
    room = Room(k, torch.empty_like(k), length)
    start = 0
    for one in pieces:
        end = start + one.length
        room.k[:, :, start:end], room.v[:, :, start:end] = joined((one,), n_row)
        start = end
    return room


def stored_bytes(layers: Iterable[Pieces]) -> int:
    """Bytes of memory behind the keys and values, spare room included, shared rooms once."""
    parts = (t for pieces in layers for one in pieces for t in (one.room.k, one.room.v))
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in parts}
    return sum(storages.values())


def _room(columns: int, like: Tensor) -> Room:
    """Space for so many columns and for growth, less of it the more rows there are."""
    growth = max(columns // 2, GROWTH // len(like), 1)
    shape = (*like.shape[:2], columns + growth, like.shape[3])
    return Room(like.new_empty(shape), like.new_empty(shape), 0)
