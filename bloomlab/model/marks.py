"""Where the tokens of a cache stand: position and validity of each, and what comes next."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bloomlab.model.alibi import token_positions


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

    @staticmethod
    def counted(valid: Bool[Tensor, "batch key"]) -> "Marks | None":
        """Positions that count the valid tokens; None where all are valid."""
        if bool(valid.all()):
            return None
        return Marks(token_positions(valid), valid, valid.sum(-1))

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
