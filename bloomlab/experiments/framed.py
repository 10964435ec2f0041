"""Results that show their frame, not their tensors."""

from typing import Any

SHOWN = 6  # rows


class Framed:
    """A result with a `frame`: its repr is the frame's first rows."""

    frame: Any

    def __repr__(self) -> str:
        """Name, number of rows and the first of them."""
        rows = self.frame
        more = f", the first {SHOWN} of {len(rows)} rows" if len(rows) > SHOWN else ""
        return f"{type(self).__name__}: .frame{more}\n{rows.head(SHOWN)}"
