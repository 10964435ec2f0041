"""Two texts and a metric: runs of one that take something from the other, example by example."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.analysis.intervals import ratio_of_means, standard_error
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.edits import Evaluations
from bloomlab.experiments.judge import Judge
from bloomlab.experiments.metrics import Metric
from bloomlab.experiments.sweep import rows_that_fit
from bloomlab.experiments.text_pairs import aligned

DIRECTIONS = ("denoise", "noise")


@dataclass(frozen=True, kw_only=True)
class Effects:
    """The metric of runs of one text that took something from another.

    Attributes:
        values: the metric of each run.
        clean: the metric of the clean texts.
        corrupted: the metric of the corrupted texts.
        direction: "denoise": clean values in corrupted runs; "noise": the reverse.
        metric: its name.
        evaluations: how much was computed.
    """

    values: Float[Tensor, "cell example"]
    clean: Float[Tensor, " example"]
    corrupted: Float[Tensor, " example"]
    direction: str
    metric: str
    evaluations: Evaluations

    @property
    def effects(self) -> Float[Tensor, "cell example"]:
        """Patched - unpatched, in the metric's unit."""
        return self.values - (self.corrupted if self.direction == "denoise" else self.clean)

    @property
    def total(self) -> Float[Tensor, " example"]:
        """What patching everything would do: clean - corrupted, or the reverse for "noise"."""
        whole = self.clean - self.corrupted
        return whole if self.direction == "denoise" else -whole

    @property
    def share(self) -> Float[Tensor, " cell"]:
        """Mean effect over mean total: 0 nothing, 1 as much as patching everything.

        NaN where clean and corrupted texts do not differ in the metric.
        """
        return ratio_of_means(self.effects, self.total)[0]

    def framed(self, columns: dict[str, Any]) -> pd.DataFrame:
        """One row a cell: these columns, effect, stderr, share, share_stderr."""
        share, error = ratio_of_means(self.effects, self.total)
        scores = {
            "effect": self.effects.mean(-1),
            "stderr": standard_error(self.effects),
            "share": share,
            "share_stderr": error,
        }
        return pd.DataFrame(columns | {name: value.tolist() for name, value in scores.items()})


@runtime_checkable
class Runs(Protocol):
    """Runs of some examples: the unpatched one, the other text's, and patched ones."""

    @property
    def stream(self) -> Float[Tensor, "batch pos d_model"]:
        """Output of the final norm of the unpatched run at the asked columns."""
        ...

    @property
    def theirs(self) -> Float[Tensor, "batch pos d_model"]:
        """The same of the other text's run."""
        ...

    def run(self, cells: Sequence[Any], /) -> Float[Tensor, "row pos d_model"]:
        """The same with something patched: all examples of each cell, one by one."""
        ...


# takes which examples, then base, source, columns that are asked for, evaluations, which count
Start = Callable[..., Runs]


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Clean and corrupted texts and what is measured of them.

    Attributes:
        model: a BLOOM with an unembedding.
        clean: the clean texts.
        corrupted: the others, token beside token.
        metric: what is measured; next tokens are the clean text's.
        direction: which of both is run, and which gives.
        at_once: rows in a forward.
    """

    model: Any
    clean: Dataset
    corrupted: Dataset
    metric: Metric
    direction: str
    at_once: int

    @classmethod
    def of(
        cls,
        model: Any,
        clean: Any,
        corrupted: Any,
        metric: Any,
        *,
        answers: Any,
        positions: Any,
        direction: str,
        rows: int | None,
    ) -> "Contrast":
        """From what a caller gives; see `patch_activations`.

        Raises:
            UnknownNameError: no such direction or metric.
            InputError: texts that are not as long as each other (names the example), answers
                missing, columns that are not there, or rows below 1.
            ShapeError: another number of texts.
        """
        if direction not in DIRECTIONS:
            raise UnknownNameError("direction", direction, DIRECTIONS)
        if rows is not None and rows < 1:
            raise InputError(f"rows is {rows}, expected 1 or more.")
        pair = aligned(model, clean, corrupted)
        return cls(
            model=model,
            clean=pair[0],
            corrupted=pair[1],
            metric=Metric(metric, positions=positions, answers=answer_ids(model, answers)),
            direction=direction,
            at_once=rows or rows_that_fit(model, pair[0]),
        )

    @property
    def n_pos(self) -> int:
        """Columns of the texts, padding included."""
        return self.clean.tokens.shape[1]

    def parts(self, at_once: int) -> Iterator[tuple[slice, Dataset, Dataset]]:
        """Some examples at a time: which, those that are run, and those that give."""
        base, source = (self.clean, self.corrupted)[:: -1 if self.direction == "denoise" else 1]
        for first, part in base.chunks(min(len(base), at_once)):
            examples = slice(first, first + len(part))
            yield examples, part, source.rows(examples.start, examples.stop)

    def ends(self, runs: "Runs") -> tuple[Tensor, Tensor]:
        """The streams of the clean run and of the corrupted one."""
        if self.direction == "denoise":
            return runs.theirs, runs.stream
        return runs.stream, runs.theirs

    def judge(self, examples: slice, ours: Float[Tensor, "batch pos d_model"]) -> Judge:
        """What makes the metric of runs of some examples; `ours` is their clean run's stream."""
        return Judge(
            self.metric,
            self.model.unembed,
            self.clean.rows(examples.start, examples.stop),
            clean=ours,
            targets=self.metric.targets(self.clean),
            examples=examples,
        )

    def measure(
        self,
        cells: Sequence[Any],
        start: Start,
        groups: Callable[[int], Iterable[list[int]]],
        *,
        progress: bool,
    ) -> dict[str, Any]:
        """The metric of every cell and example, as the fields of `Effects`.

        Args:
            cells: what is patched in each run.
            start: makes the runs of some examples.
            groups: cells that may run together, by their number, at most so many.
            progress: show a bar while it takes long.
        """
        wide = torch.promote_types(self.model.dtype, torch.float32)
        evaluations, n = Evaluations(), len(self.clean)
        values, ends = torch.empty(len(cells), n, dtype=wide), torch.empty(2, n, dtype=wide)
        with tqdm(total=len(cells) * n, unit="run", delay=2, disable=not progress) as bar:
            for examples, base, source in self.parts(self.at_once):
                runs = start(
                    examples,
                    base=base,
                    source=source,
                    columns=self.metric.columns(self.n_pos),
                    evaluations=evaluations,
                )
                clean, corrupted = self.ends(runs)
                judge = self.judge(examples, clean)
                ends[:, examples] = judge(torch.cat([clean, corrupted]), 2)
                for group in groups(max(1, self.at_once // len(base))):
                    stream = runs.run([cells[i] for i in group])
                    values[group, examples] = judge(stream, len(group))
                    bar.update(len(group) * len(base))
        return {
            "values": values,
            "clean": ends[0],
            "corrupted": ends[1],
            "direction": self.direction,
            "metric": self.metric.name,
            "evaluations": evaluations,
        }


def answer_ids(model: Any, answers: Any) -> Any:
    """Answers with the ids of tokens in the place of their texts.

    Raises:
        InputError: a text of several tokens.
    """
    if isinstance(answers, str):
        return model.to_single_token(answers)
    return [answer_ids(model, one) for one in answers] if isinstance(answers, list) else answers
