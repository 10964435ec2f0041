"""Arrays as few bytes: what the browser draws is uint8, square-root quantised, lower triangle."""

import numpy as np
from jaxtyping import Float, UInt8

TOP = 255


def quantised(values: Float[np.ndarray, "..."], top: float = 1.0) -> UInt8[np.ndarray, "..."]:
    """round(255 sqrt(value / top)): small weights keep their resolution; NaN becomes 0."""
    share = np.clip(np.nan_to_num(values, nan=0.0, posinf=top, neginf=0.0) / (top or 1.0), 0, 1)
    return np.rint(TOP * np.sqrt(share)).astype(np.uint8)


def signed(values: Float[np.ndarray, "..."], top: float) -> UInt8[np.ndarray, "..."]:
    """128 for 0, square roots to both sides of it: 1 for -top, 255 for top; NaN becomes 128."""
    share = np.clip(np.nan_to_num(values, nan=0.0) / (top or 1.0), -1, 1)
    return np.rint(128 + 127 * np.sign(share) * np.sqrt(np.abs(share))).astype(np.uint8)


def lower(values: UInt8[np.ndarray, "*lead row column"]) -> bytes:
    """The lower triangles, diagonal included, row by row: about half a byte a cell."""
    n = values.shape[-1]
    if values.shape[-2] != n:
        return values.tobytes()
    row, column = np.tril_indices(n)
    return values[..., row, column].tobytes()


def floats(values: Float[np.ndarray, "..."]) -> bytes:
    """As float32, for what is shown as a number."""
    return np.ascontiguousarray(values, dtype=np.float32).tobytes()


def trouble(values: Float[np.ndarray, "..."], what: str) -> str:
    """A sentence if numbers are not finite; empty if all are."""
    broken = int((~np.isfinite(values)).sum())
    if not broken:
        return ""
    return f"{what} holds {broken} numbers that are NaN or infinite; they are drawn as 0."
