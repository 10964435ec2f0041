"""What stands in the place of heads in one run, and how much running cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

# What a head writes at z instead of what it would: [row pos head d_head] of the edited heads of a
# layer, or broadcasting to it; None: nothing.
Values = Tensor | None


@dataclass(slots=True)
class Evaluations:
    """How much was computed, in rows (of one example each).

    Attributes:
        layers: rows that went through a whole layer.
        mlps: rows that went through the MLP of their first edited layer.
        last_layers: rows whose last layer answered at few columns only; not in `layers`.
    """

    layers: int = 0
    mlps: int = 0
    last_layers: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """Heads of one layer whose output is replaced.

    Attributes:
        heads: their numbers.
        values: [example pos head d_head] or broadcasting to it, the heads as in `heads`; None: 0.
        columns: where; None: everywhere. Elsewhere the heads write what they would.
    """

    heads: tuple[int, ...]
    values: Values = None
    columns: tuple[int, ...] | None = None

    def at(self, columns: Tensor, n_pos: int) -> Tensor | int:
        """The values at some of all `n_pos` columns."""
        if self.values is None:
            return 0
        return self.values[:, columns] if self.values.shape[1] == n_pos else self.values


Edits = Mapping[int, Edit]  # layer -> edit; one run


def by_layer(heads: Any) -> dict[int, tuple[int, ...]]:
    """Heads of each layer, sorted."""
    found: dict[int, list[int]] = {}
    for layer, head in sorted(heads):
        found.setdefault(layer, []).append(head)
    return {layer: tuple(some) for layer, some in found.items()}
