"""Arrays as few bytes: what the browser draws is uint8, square-root quantised, lower triangle."""

import math
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

TOP = 255


def quantised(values: Float[np.ndarray, "..."], top: float = 1.0) -> UInt8[np.ndarray, "..."]:
    """round(255 sqrt(value / top)): small weights keep their resolution; NaN becomes 0."""
    share = values / (top or 1.0)
    if not np.isfinite(share.sum()):
        share = np.nan_to_num(share, nan=0.0, posinf=1.0, neginf=0.0)
    root = np.sqrt(np.clip(share, 0, 1))
    root *= TOP
    root += 0.5
    return root.astype(np.uint8)


def signed(values: Float[np.ndarray, "..."], top: float) -> UInt8[np.ndarray, "..."]:
    """128 for 0, square roots to both sides of it: 1 for -top, 255 for top; NaN becomes 128."""
    share = np.clip(np.nan_to_num(values, nan=0.0) / (top or 1.0), -1, 1)
    return np.rint(128 + 127 * np.sign(share) * np.sqrt(np.abs(share))).astype(np.uint8)


def lower(values: UInt8[np.ndarray, "*lead row column"]) -> bytes:
    """The lower triangles, diagonal included, row by row: about half a byte a cell."""
    n = values.shape[-1]
    if values.shape[-2] != n:
        return values.tobytes()
    if values.ndim == 2:  # a large one: rows are faster than places
        return b"".join(row[: i + 1].tobytes() for i, row in enumerate(values))
    row, column = np.tril_indices(n)
    return values[..., row, column].tobytes()


def floats(values: Float[np.ndarray, "..."]) -> bytes:
    """As float32, for what is shown as a number."""
    return np.ascontiguousarray(values, dtype=np.float32).tobytes()


def plain(value: Any) -> Any:
    """Facts that JSON can hold: NaN and infinity, which it cannot, become None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def trouble(values: Float[np.ndarray, "..."], what: str) -> str:
    """A sentence if numbers are not finite; empty if all are."""
    broken = int((~np.isfinite(values)).sum())
    if not broken:
        return ""
    return f"{what} holds {broken} numbers that are NaN or infinite; they are drawn as 0."
