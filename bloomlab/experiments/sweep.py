"""Many runs with some heads replaced, measured: heads of a layer batched as rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.errors import NumericalError
from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.edits import Edits, Evaluations
from bloomlab.experiments.heads import Head
from bloomlab.experiments.metrics import Metric
from bloomlab.experiments.replacements import Replacement
from bloomlab.experiments.results import Results
from bloomlab.experiments.resume import CleanRun
from bloomlab.experiments.stored_runs import StoredRuns


@dataclass
class Sweep:
    """Measures runs that differ from a clean one in some heads.

    Args:
        model: what runs.
        metric: what is measured.
        head_mask: heads scaled in every run.
        since: first column that is edited.
    """

    model: Any
    metric: Metric
    head_mask: Float[Tensor, "layer head"] | None = None
    since: int = 0
    evaluations: Evaluations = field(default_factory=Evaluations)

    def clean(self, data: Dataset) -> CleanRun:
        """The clean run of some examples."""
        return CleanRun(
            model=self.model,
            data=data,
            columns=self.metric.columns(data.tokens.shape[1]),
            since=self.since,
            head_mask=self.head_mask,
            evaluations=self.evaluations,
        )

    def judge(self, clean: CleanRun, targets: Any, examples: slice) -> "Judge":
        """What measures runs that resume from a clean one."""
        return Judge(self, clean, targets, examples)

    @torch.no_grad()
    def run(
        self,
        data: Dataset,
        sets: Sequence[tuple[Head, ...]],
        source: Replacement,
        *,
        rows: int | None = None,
        progress: bool = True,
        results: Results | None = None,
    ) -> tuple[Float[Tensor, "run example"], Float[Tensor, " example"]]:
        """Effects of every set on every example, and the clean metric.

        Args:
            data: the examples.
            sets: heads to ablate together.
            source: what stands in their place.
            rows: rows in a forward; None: as many as fit, but of one run where they are stored, so
                that a killed sweep loses no more than one.
            progress: whether to show a bar.
            results: where runs are stored as they come, and found again; see `StoredRuns`.
        """
        targets = self.metric.targets(data)
        order = sorted((min(one)[0], i) for i, one in enumerate(sets))
        at_once = rows or rows_that_fit(self.model, data)
        together = results is None or rows is not None
        if results is not None:
            at_once = results.settled("rows", at_once)
        wide = torch.promote_types(self.model.dtype, torch.float32)
        effects = torch.full((len(sets), len(data)), torch.nan, dtype=wide)
        clean_values = torch.empty(len(data), dtype=wide)
        bar = tqdm(total=len(order) * len(data), unit="run", delay=2, disable=not progress)
        with bar:
            for start, part in data.chunks(min(len(data), at_once)):
                examples = slice(start, start + len(part))
                stored = StoredRuns(results, sets, start)
                groups = list(_groups(order, max(1, at_once // len(part)) if together else 1))
                if groups and all(map(stored.has, groups)):
                    effects[:, examples] = stored.effects(list(range(len(sets))))
                    clean_values[examples] = stored.clean(0)
                    bar.update(len(sets) * len(part))
                    continue
                clean = self.clean(part)
                judge = self.judge(clean, targets, examples)
                clean_values[examples] = before = judge(clean.stream, 1)[0]
                for group in groups:
                    if stored.has(group):
                        effects[group, examples] = stored.effects(group).to(wide)
                    else:
                        runs = [source.edits(sets[i], clean, examples) for i in group]
                        effects[group, examples] = found = judge.effects(runs, before)
                        stored.add(group, found, before)
                    bar.update(len(group) * len(part))
        return effects, clean_values


class Judge:
    """Turns the final stream of many runs over some examples into the metric of each.

    Args:
        sweep: whose metric it is.
        clean: the clean run of the examples.
        targets: what the metric compares with, for all examples.
        examples: which of them.
    """

    def __init__(self, sweep: Sweep, clean: CleanRun, targets: Any, examples: slice) -> None:
        self.metric, self.unembed = sweep.metric, sweep.model.unembed
        self.targets, self.examples, self.clean_run = targets, examples, clean
        self.log_clean: Tensor | None = None
        if self.metric.needs_clean:
            logits = self.unembed(clean.stream)
            wide = torch.promote_types(logits.dtype, torch.float32)
            self.log_clean = logits.to(wide).log_softmax(-1)

    def __call__(
        self, stream: Float[Tensor, "row pos d_model"], n_run: int
    ) -> Float[Tensor, "run example"]:
        """The metric of every run and example.

        Raises:
            NumericalError: NaN or infinity; names the example.
        """
        tokens = self.clean_run.data.tokens
        values = self.metric.values(
            stream,
            self.unembed,
            target=None if self.targets is None else self.targets.rows(self.examples, n_run),
            tokens=tokens.repeat(n_run, 1),
            clean=None if self.log_clean is None else self.log_clean.repeat(n_run, 1, 1),
        ).view(n_run, len(tokens))
        check_finite(self.metric, values, first=self.examples.start)
        return values.cpu()

    def effects(
        self, runs: list[Edits], before: Float[Tensor, " example"]
    ) -> Float[Tensor, "run example"]:
        """The metric of runs that begin to differ in the same layer, less that `before`."""
        begun = [self.clean_run.begin(run) for run in runs]
        effects = torch.zeros(len(runs), len(before), dtype=before.dtype)
        live = [i for i, mid in enumerate(begun) if mid is not None]  # others change nothing
        if live:
            mids = [mid for mid in begun if mid is not None]
            stream = self.clean_run.finish([runs[i] for i in live], mids)
            effects[live] = self(stream, len(live)) - before
        return effects


def check_finite(metric: Metric, values: Float[Tensor, "run example"], *, first: int) -> None:
    """Raise unless a metric is a number everywhere; `first` is the number of the first example.

    Raises:
        NumericalError: NaN or infinite; names the example.
    """
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).any(0).nonzero()[0].item())
        raise NumericalError(
            f"metric {metric.name!r} is {values[:, bad].tolist()} for example {first + bad}. Drop "
            "the example, or check the metric."
        )


def rows_that_fit(model: Any, data: Dataset) -> int:
    """Rows whose activations fit into a quarter of the free memory, at most 64."""
    width, config = model.embed.weight.element_size(), model.config
    row = data.tokens.shape[1] * (16 * config.hidden_size * width + 4 * 2 * config.vocab_size)
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = psutil.virtual_memory().available
    return max(1, min(64, free // 4 // row))


def _groups(order: list[tuple[int, int]], size: int) -> Iterable[list[int]]:
    """Runs that begin to differ in the same layer, at most `size` together."""
    layers: dict[int, list[int]] = {}
    for layer, index in order:
        layers.setdefault(layer, []).append(index)
    for indices in layers.values():
        for start in range(0, len(indices), size):
            yield indices[start : start + size]
