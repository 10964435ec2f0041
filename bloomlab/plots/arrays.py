"""What a figure is given, as arrays: checked, whether it came as array, tensor or lists."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from jaxtyping import Float

from bloomlab.errors import InputError, ShapeError


def as_array(name: str, values: object, axes: str) -> Float[np.ndarray, "..."]:
    """`values` as floats on the CPU; a tensor may be on any device and require gradients.

    Raises:
        ShapeError: if it does not have one axis for each of the names in `axes`.
        InputError: if it holds no numbers.
    """
    value = cast(Any, values)
    if hasattr(value, "detach"):
        value = value.detach().cpu().float()
    try:
        array = np.asarray(value, dtype=float if isinstance(value, list | tuple) else None)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} holds no numbers: {error}") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} holds {array.dtype}, expected numbers.")
    if array.ndim != len(axes.split()):
        raise ShapeError(name, got=array.shape, expected=f"[{axes}]")
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def as_probabilities(name: str, values: object, axes: str) -> Float[np.ndarray, "..."]:
    """`as_array` for numbers from 0 to 1.

    Raises:
        InputError: if some are outside, or not a number.
    """
    array = as_array(name, values, axes)
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 1.0)
    if not -1e-3 <= low <= high <= 1.001:
        raise InputError(
            f"{name} runs from {low:.3g} to {high:.3g}, expected probabilities from 0 to 1. "
            "Attention comes from hook_pattern, not from hook_attn_scores."
        )
    return array


def check_labels(
    name: str, array: Float[np.ndarray, "..."], labels: Sequence[object], *, along: int = -1
) -> None:
    """Raise unless an axis of the array has one label for each place, and something is there.

    Raises:
        ShapeError: more or fewer labels.
        InputError: nothing to draw.
    """
    if array.shape[along] != len(labels):
        expected = list(array.shape)
        expected[along] = len(labels)
        raise ShapeError(name, got=array.shape, expected=str(tuple(expected)))
    if not array.size:
        raise InputError(f"{name} has shape {array.shape}: there is nothing to draw.")


def check_pattern(name: str, shape: tuple[int, ...], tokens: Sequence[str]) -> None:
    """Raise unless [... query key] has a token for each key, and no more queries than keys.

    Raises:
        ShapeError: it has not, or no query.
    """
    *lead, n_query, n_key = shape
    if not 0 < n_query <= n_key == len(tokens):
        expected = f"({', '.join(map(str, [*lead, 'query <= key']))}, {len(tokens)})"
        raise ShapeError(name, got=shape, expected=expected, fix="Give one token for each key.")


def check_top(top: int) -> None:
    """Raise unless `top`, a number of things to draw, is 1 or more.

    Raises:
        InputError: it is not.
    """
    if isinstance(top, bool) or top < 1:
        raise InputError(f"top is {top!r}, expected 1 or more.")


def check_columns(frame: Any, names: Sequence[str]) -> None:
    """Raise unless a data frame has rows and these columns.

    Raises:
        InputError: a column is missing, or the frame is empty.
    """
    if missing := [name for name in names if name not in frame]:
        raise InputError(
            f"the frame has no column {missing[0]!r}; it has {', '.join(map(str, frame.columns))}."
        )
    if frame.empty:
        raise InputError("the frame is empty: there is nothing to draw.")
