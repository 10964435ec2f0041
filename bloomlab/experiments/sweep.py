"""Many runs with some heads replaced, measured: heads of a layer batched as rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.edits import Edits, Evaluations
from bloomlab.experiments.heads import Head
from bloomlab.experiments.judge import Judge
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

    def judge(self, clean: CleanRun, targets: Any, examples: slice) -> Judge:
        """What measures runs that resume from a clean one."""
        return Judge(
            self.metric,
            self.model.unembed,
            clean.data,
            clean=clean.stream,
            targets=targets,
            examples=examples,
        )

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
                        effects[group, examples] = found = _effects(runs, clean, judge, before)
                        stored.add(group, found, before)
                    bar.update(len(group) * len(part))
        return effects, clean_values


def rows_that_fit(model: Any, data: Dataset) -> int:
    """Rows whose activations fit into a quarter of the free memory, at most 64."""
    width, config = model.embed.weight.element_size(), model.config
    row = data.tokens.shape[1] * (16 * config.hidden_size * width + 4 * 2 * config.vocab_size)
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = psutil.virtual_memory().available
    return max(1, min(64, free // 4 // row))


def _effects(
    runs: list[Edits], clean: CleanRun, judge: Judge, before: Float[Tensor, " example"]
) -> Float[Tensor, "run example"]:
    """The metric of runs that begin to differ in the same layer, less that `before`."""
    begun = [clean.begin(run) for run in runs]
    effects = torch.zeros(len(runs), len(before), dtype=before.dtype)
    live = [i for i, mid in enumerate(begun) if mid is not None]  # others change nothing
    if live:
        mids = [mid for mid in begun if mid is not None]
        stream = clean.finish([runs[i] for i in live], mids)
        effects[live] = judge(stream, len(live)) - before
    return effects


def _groups(order: list[tuple[int, int]], size: int) -> Iterable[list[int]]:
    """Runs that begin to differ in the same layer, at most `size` together."""
    layers: dict[int, list[int]] = {}
    for layer, index in order:
        layers.setdefault(layer, []).append(index)
    for indices in layers.values():
        for start in range(0, len(indices), size):
            yield indices[start : start + size]
