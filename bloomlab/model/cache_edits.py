"""Editing what a cache holds: some rows, heads and columns of one layer's keys or values."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.errors import CacheError, ShapeError
from bloomlab.model.pieces import Pieces, joined, whole


class Part(NamedTuple):
    """Which entries of a layer; `rows` None: all of them."""

    rows: Int[Tensor, " row"] | None
    heads: Int[Tensor, " head"]
    columns: Int[Tensor, " column"]

    def of(self, all_rows: Float[Tensor, "batch head key d_head"]) -> Tensor:
        """A copy of these entries [row head column d_head]."""
        rows = all_rows if self.rows is None else all_rows[self.rows]
        return rows[:, self.heads][:, :, self.columns]


def whole_numbers(what: str, values: Any, device: torch.device) -> Int[Tensor, " n"]:
    """One or several whole numbers as a list of them; masks and fractions are refused."""
    try:
        numbers = torch.as_tensor(values, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CacheError(f"{what} takes whole numbers, got {values!r}.") from error
    if numbers.numel() and (numbers.dtype == torch.bool or numbers.is_floating_point()):
        raise CacheError(
            f"{what} takes whole numbers, got {numbers.dtype}; for a mask pass mask.nonzero()."
        )
    return numbers.long().flatten()


def chosen(what: str, values: Any, size: int, device: torch.device) -> Int[Tensor, " n"]:
    """Indices below `size`, each once; a slice, negative numbers and None (all) are allowed."""
    if values is None or isinstance(values, slice):
        return torch.arange(size, device=device)[values or slice(None)]
    index = whole_numbers(what, values, device)
    if len(index) and not -size <= int(index.min()) <= int(index.max()) < size:
        raise CacheError(f"{what}={index.tolist()}: the cache holds {what} 0 to {size - 1}.")
    index = index % size
    if len(index.unique()) != len(index):
        raise CacheError(f"{what}={index.tolist()}: each may be given once.")
    return index


def edited(pieces: Pieces, n_row: int, *, part: Part, k: Any, v: Any) -> Pieces:
    """The pieces with other keys or values in one part; pieces outside it are shared.

    A piece that stands for several rows is stored once still, unless rows come to differ.
    """
    like, sizes = pieces[0].k, (part.heads, part.columns)
    shape = [n_row if part.rows is None else len(part.rows), *map(len, sizes), like.shape[3]]
    values = []
    for index, (name, value) in enumerate((("k", k), ("v", v))):
        given = value(part.of(joined(pieces, n_row)[index])) if callable(value) else value
        values.append(None if value is None else _checked(name, given, like, shape))
    new, start = [], 0
    for one in pieces:
        inside = (part.columns >= start) & (part.columns < start + one.length)
        local = part._replace(columns=part.columns[inside] - start)
        start += one.length
        if not len(local.columns):
            new.append(one)
            continue
        parts = [
            old if value is None else _written(old, value[:, :, inside], local, n_row)
            for old, value in zip((one.k, one.v), values, strict=True)
        ]
        rows = max(map(len, parts))
        new.append(
            whole(*(t.repeat_interleave(rows // len(t), 0) if len(t) < rows else t for t in parts))
        )
    return tuple(new)


def _checked(name: str, value: Any, old: Tensor, shape: list[int]) -> Tensor:
    """The new values [row head column d_head], one row if all get the same."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = torch.full((), value, dtype=old.dtype, device=old.device)
    if not isinstance(value, Tensor):
        raise CacheError(
            f"{name} is {type(value).__name__}, expected a tensor or a function of the old values."
        )
    if (value.dtype, value.device) != (old.dtype, old.device):
        raise CacheError(
            f"{name} is {value.dtype} on {value.device}, the cache holds {old.dtype} on "
            f"{old.device}; pass {name}.to(past.{'keys' if name == 'k' else 'values'}(layer))."
        )
    expected = "[row head column d_head], or what broadcasts to it"
    if value.ndim > 4:
        raise ShapeError(name, got=value.shape, expected=f"{shape} {expected}")
    value = value.reshape((1,) * (4 - value.ndim) + value.shape)
    try:
        wide = value.broadcast_to(value.shape[0], *shape[1:])
        wide.broadcast_to(shape)
    except RuntimeError as error:
        raise ShapeError(name, got=value.shape, expected=f"{shape} {expected}") from error
    if not bool(value.isfinite().all()):
        raise CacheError(f"{name} holds NaN or infinite values; nothing was changed.")
    return wide


def _written(old: Tensor, value: Tensor, part: Part, n_row: int) -> Tensor:
    alike = part.rows is None and len(value) == 1
    new = old.clone() if alike or len(old) == n_row else old.repeat_interleave(n_row // len(old), 0)
    rows = torch.arange(len(new), device=old.device) if part.rows is None else part.rows
    index = rows[:, None, None], part.heads[:, None], part.columns
    new[index] = value
    return new


def check_alike(own: Sequence[Pieces], other: Sequence[Pieces], what: Any) -> None:
    """Raise unless two caches hold layers of the same shape, dtype and device."""
    names = [what] if isinstance(what, str) else list(what)
    if not names or not set(names) <= {"k", "v"}:
        raise CacheError(f"what={what!r}: expected 'k', 'v' or both.")
    if len(own) != len(other):
        raise CacheError(
            f"splice: the caches hold {len(own)} and {len(other)} layers; they were filled by "
            "different models."
        )
    for layer, (ours, theirs) in enumerate(zip(own, other, strict=True)):
        for name, get in _FACTS.items():
            mine, their = get(ours[0].k), get(theirs[0].k)
            if mine != their:
                raise CacheError(
                    f"splice: {name} of layer {layer} is {mine} here and {their} in the other "
                    "cache; expected the same."
                )


_FACTS = {
    "[head, d_head]": lambda k: list(k.shape[1::2]),
    "dtype": lambda k: k.dtype,
    "device": lambda k: k.device,
}
