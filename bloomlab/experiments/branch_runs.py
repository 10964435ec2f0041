"""What runs one branch of a generation: a plan, its interventions and read-outs, step by step."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from bloomlab.experiments.readouts import Key, Reader
from bloomlab.model.growing import Grown, broken, grow
from bloomlab.model.instrument import Instrumented
from bloomlab.model.plan import Plan
from bloomlab.model.prompt import Prompt


class BranchRun:
    """One run of a plan; iterating makes its steps, what they left is kept."""

    def __init__(
        self,
        model: Any,
        prompt: Prompt,
        plan: Plan,
        edits: Sequence[Any],
        readouts: Any,
        *,
        until: int,
        finished: Bool[Tensor, " row"] | None = None,
    ) -> None:
        self.plan, self.reader = plan, Reader(model, readouts)
        self.decoder = Instrumented(
            prompt.decoder(model, None, until=until),
            interventions=[*edits, self.reader],
            recorder=None,
        )
        self.grown: list[Tensor] = []
        self.ended: list[Tensor] = []  # before each step
        self.taken: list[dict[Key, Tensor]] = []
        none = torch.zeros(len(plan.text), dtype=torch.bool, device=plan.text.device)
        self.finished = none if finished is None else finished

    def __iter__(self) -> Iterator[Grown]:
        for index, grown in enumerate(grow(self.plan, self.decoder)):
            if not bool(grown.sound):
                start = self.plan.start
                raise broken(self.plan, self.decoder.decoder, start + index, self.decoder.edits)
            self.ended.append(self.finished)
            self.grown.append(grown.token)
            self.taken.append(self.reader.taken())
            self.finished = self.finished | grown.finished
            yield grown
            if bool(self.finished.all()):
                return


class Shifted:
    """An intervention in a run whose step 0 is a later one of the whole generation."""

    def __init__(self, edit: Any, by: int) -> None:
        self._edit, self._by = edit, by
        self.enters_cache = getattr(edit, "enters_cache", True)

    def hooks(self, start: int, step: int) -> list[Any]:
        """The pairs of a step, counted from the start of the run."""
        if hasattr(self._edit, "hooks"):
            return self._edit.hooks(start, step + self._by)
        return [tuple(self._edit)]


class Padding:
    """Lets ended rows go on with padding: a processor of logits."""

    def __init__(self, ended: Bool[Tensor, " row"], pad: int) -> None:
        self._ended, self._pad = ended, pad

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """The scores; those of ended rows leave nothing but the padding token."""
        only = torch.full_like(scores, -torch.inf)
        only[:, self._pad] = 0
        return torch.where(self._ended[:, None], only, scores)
