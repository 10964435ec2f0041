"""Runs of a sweep as rows of a results folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.experiments.heads import Head, set_name
from bloomlab.experiments.results import Results

KEY = ("heads", "first_example")


@dataclass(frozen=True)
class StoredRuns:
    """Effects of runs over some of the examples, in a results folder or nowhere.

    A row holds the heads of a run, the number of its first example, and the effect and the clean
    metric of each example from there on.

    Args:
        results: the folder; None: nothing is stored.
        sets: the heads of each run.
        first: number of the first example.
    """

    results: Results | None
    sets: Sequence[tuple[Head, ...]]
    first: int

    def has(self, group: list[int]) -> bool:
        """Whether all of these runs are stored."""
        results = self.results
        return results is not None and all(results.done(*self._key(i)) for i in group)

    def effects(self, group: list[int]) -> Float[Tensor, "run example"]:
        """Of stored runs, in float64."""
        return torch.tensor([self._row(i)["effect"] for i in group], dtype=torch.float64)

    def clean(self, index: int) -> Float[Tensor, " example"]:
        """The clean metric in a stored run, in float64."""
        return torch.tensor(self._row(index)["clean"], dtype=torch.float64)

    def add(
        self,
        group: list[int],
        effects: Float[Tensor, "run example"],
        clean: Float[Tensor, " example"],
    ) -> None:
        """Store those of some runs that are not stored yet."""
        if self.results is None:
            return
        for index, values in zip(group, effects, strict=True):
            if not self.results.done(*self._key(index)):
                key = dict(zip(KEY, self._key(index), strict=True))
                self.results.append(key | {"effect": values.tolist(), "clean": clean.tolist()})

    def _key(self, index: int) -> tuple[str, int]:
        return set_name(self.sets[index]), self.first

    def _row(self, index: int) -> dict[str, Any]:
        assert self.results is not None
        return self.results.row(*self._key(index))
