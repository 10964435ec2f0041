"""Which heads an experiment is about, and where they are edited: what callers give, checked."""

from collections.abc import Iterable
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import InputError

Head = tuple[int, int]  # layer, head


def head_sets(model: Any, heads: Any) -> list[tuple[Head, ...]]:
    """Sets of heads to ablate: every head, every pair, given heads or given sets.

    Raises:
        InputError: heads that are not there, or something else.
    """
    every = [
        (layer, head)
        for layer in range(model.config.n_layer)
        for head in range(model.config.n_head)
    ]
    if heads is None:
        return [(one,) for one in every]
    if isinstance(heads, str):
        if heads != "pairs":
            raise InputError(f"heads is {heads!r}, expected None, 'pairs', heads or sets of heads.")
        return list(combinations(every, 2))
    found = []
    for one in _listed(heads):
        one = _listed(one)
        several = [one] if len(one) == 2 and all(_is_index(i) for i in one) else one
        found.append(tuple(sorted({_head(model, pair) for pair in several})))
    if not found or not all(found):
        raise InputError(f"heads is {heads!r}: no heads to ablate.")
    return found


def checked_mask(model: Any, head_mask: Any) -> Float[Tensor, "layer head"] | None:
    """A head mask as a float tensor [layer head].

    Raises:
        InputError: another shape.
    """
    if head_mask is None:
        return None
    mask = torch.as_tensor(head_mask, dtype=model.dtype, device=model.device)
    expected = (model.config.n_layer, model.config.n_head)
    if mask.shape != expected:
        raise InputError(f"head_mask is {tuple(mask.shape)}, expected {expected}: [layer head].")
    return mask


def edited_columns(columns: Any, n_pos: int) -> list[int] | None:
    """The columns at which heads are ablated, sorted; None for all.

    Raises:
        InputError: a column that is not there.
    """
    if columns is None:
        return None
    listed = [columns] if isinstance(columns, int) else list(columns)
    if not listed or not all(_is_index(i) and -n_pos <= i < n_pos for i in listed):
        raise InputError(f"columns is {columns!r}, expected some of {-n_pos} to {n_pos - 1}.")
    found = sorted({int(i) % n_pos for i in listed})
    return None if len(found) == n_pos else found


def set_name(heads: Iterable[Head]) -> str:
    """Heads as they print: "L0H1 L1H3"."""
    return " ".join(f"L{layer}H{head}" for layer, head in heads)


def _listed(value: Any) -> list[Any]:
    try:
        return list(value.tolist() if isinstance(value, Tensor) else value)
    except TypeError:
        raise InputError(
            f"heads holds {value!r}, expected (layer, head) pairs or sets of them."
        ) from None


def _is_index(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _head(model: Any, pair: Any) -> Head:
    pair = tuple(_listed(pair))
    if len(pair) != 2 or not all(_is_index(i) for i in pair):
        raise InputError(f"a head is {pair!r}, expected (layer, head).")
    layer, head = (int(i) for i in pair)
    config = model.config
    if not (0 <= layer < config.n_layer and 0 <= head < config.n_head):
        raise InputError(
            f"no head L{layer}H{head}: the model has layers 0 to {config.n_layer - 1} with heads 0 "
            f"to {config.n_head - 1}."
        )
    return layer, head
