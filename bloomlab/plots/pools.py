"""Patterns of many tokens in few cells: neighbouring tokens share one, and none is lost."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from bloomlab.plots.tokens import isolate


def starts(length: int, size: int) -> list[int]:
    """First index of each pool: at most `size` pools of nearly equal length."""
    count = min(length, size)
    return [pool * length // count for pool in range(count)]


def pool(
    pattern: Float[np.ndarray, "*lead query key"], rows: list[int], columns: list[int]
) -> Float[np.ndarray, "*lead row column"]:
    """Maximum over each pool of queries and keys."""
    pooled = np.maximum.reduceat(np.maximum.reduceat(pattern, columns, axis=-1), rows, axis=-2)
    return pooled.astype(np.float32)


def pool_signed(
    values: Float[np.ndarray, "*lead query key"], rows: list[int], columns: list[int]
) -> Float[np.ndarray, "*lead row column"]:
    """The number farthest from 0 in each pool of queries and keys."""
    high, low = pool(values, rows, columns), -pool(-values, rows, columns)
    return np.where(high >= -low, high, low)


def ranges(starts: list[int], tokens: Sequence[str], *, first: int = 0) -> list[str]:
    """`12 ␣the` for a pool of one token, `12–15 ␣the … ␣cat` for a longer one."""
    lasts = [start - 1 for start in starts[1:]] + [len(tokens) - 1]
    return [
        f"{first + low} {isolate(tokens[low])}"
        if low == last
        else f"{first + low}–{first + last} {isolate(tokens[low])} … {isolate(tokens[last])}"
        for low, last in zip(starts, lasts, strict=True)
    ]
