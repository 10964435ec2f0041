"""Optimal ablation: the constant that harms least (Li and Janson, 2024, arXiv:2409.09951).

Zeros and means may push the model somewhere it has never been; what is left of the harm with the
best constant is what the head's information was worth.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.edits import Edit, Edits, by_layer
from bloomlab.experiments.harm import direction
from bloomlab.experiments.judge import Judge
from bloomlab.experiments.resume import CleanRun

STEPS = 40  # of L-BFGS
EXAMPLES = 16  # in a forward


class Optimal:
    """The best constants of each set of heads, found together by L-BFGS from the means on.

    Nothing is drawn at random. The best of all constants seen is taken, so that it never does worse
    than the means on these examples.

    Args:
        sweep: runs the examples.
        data: the examples that are ablated.
        means: where to begin; pos is 1.
        columns: where heads are ablated; None: everywhere.
    """

    def __init__(
        self,
        sweep: Any,
        data: Dataset,
        means: Float[Tensor, "layer pos head d_head"],
        columns: list[int] | None,
    ) -> None:
        if sweep.metric.name == "accuracy" and sweep.metric.function is None:
            raise InputError("metric 'accuracy' has no gradient, which kind 'optimal' follows.")
        self.sweep, self.data, self.means = sweep, data, means
        self.columns = None if columns is None else tuple(columns)
        self._found: dict[tuple[Any, ...], Edits] = {}
        self._judges: list[tuple[CleanRun, Judge]] = []

    def edits(self, heads: Any, clean: CleanRun, examples: slice) -> Edits:
        """The best values of these heads, the same for all examples."""
        key = tuple(heads)
        if key not in self._found:
            self._found[key] = self._best(by_layer(heads))
        return self._found[key]

    @torch.enable_grad()
    def _best(self, heads: dict[int, tuple[int, ...]]) -> Edits:
        wide = torch.promote_types(self.sweep.model.dtype, torch.float32)
        values = {
            layer: self.means[layer][:, list(some)].to(wide).clone().requires_grad_()
            for layer, some in heads.items()
        }
        best, least = self._made(heads, values), float("inf")
        optimizer = torch.optim.LBFGS(
            list(values.values()), max_iter=STEPS, line_search_fn="strong_wolfe"
        )

        def harm() -> float:
            nonlocal best, least
            optimizer.zero_grad()
            total = self._harm(self._made(heads, values, fixed=False), list(values.values()))
            if total < least:
                best, least = self._made(heads, values), total
            return total

        optimizer.step(harm)
        return best

    def _made(
        self, heads: dict[int, tuple[int, ...]], values: dict[int, Tensor], *, fixed: bool = True
    ) -> Edits:
        """Edits with these values; `fixed`: as they are now."""
        return {
            layer: Edit(
                heads=some,
                values=(values[layer].detach().clone() if fixed else values[layer])[None],
                columns=self.columns,
            )
            for layer, some in heads.items()
        }

    def _harm(self, run: Edits, values: list[Tensor]) -> float:
        """Mean harm of a run over all examples; its gradient is left at the values."""
        total, sign = 0.0, direction(self.sweep.metric)
        for clean, judge in self._all_judges():
            mid = clean.begin(run)
            # None: nobody reads these heads, or they write this already
            stream = clean.stream if mid is None else clean.finish([run], [mid])
            part = sign * judge(stream, 1).sum() / len(self.data)
            if part.requires_grad:
                slopes = torch.autograd.grad(part, values, materialize_grads=True)
                for value, slope in zip(values, slopes, strict=True):
                    value.grad = slope if value.grad is None else value.grad + slope
            total += part.item()
        return total

    @torch.no_grad()
    def _all_judges(self) -> list[tuple[CleanRun, Judge]]:
        """A clean run of all examples, kept: every step resumes from it."""
        if not self._judges:
            targets = self.sweep.metric.targets(self.data)
            for start, part in self.data.chunks(EXAMPLES):
                clean = self.sweep.clean(part)
                judge = self.sweep.judge(clean, targets, slice(start, start + len(part)))
                self._judges.append((clean, judge))
        return self._judges
