"""Many runs with some heads replaced, measured: heads of a layer batched as rows."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.errors import NumericalError
from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.edits import Evaluations
from bloomlab.experiments.heads import Head
from bloomlab.experiments.metrics import Metric
from bloomlab.experiments.replacements import Replacement
from bloomlab.experiments.resume import CleanRun


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

    @torch.no_grad()
    def run(
        self,
        data: Dataset,
        sets: Sequence[tuple[Head, ...]],
        source: Replacement,
        *,
        rows: int | None = None,
        progress: bool = True,
        done: Callable[[int], bool] = lambda index: False,
    ) -> tuple[Float[Tensor, "run example"], Float[Tensor, " example"]]:
        """Effects of every set on every example, and the clean metric.

        Args:
            data: the examples.
            sets: heads to ablate together.
            source: what stands in their place.
            rows: rows in a forward.
            progress: whether to show a bar.
            done: runs to leave out.
        """
        targets = self.metric.targets(data)
        order = sorted((min(one)[0], i) for i, one in enumerate(sets) if not done(i))
        at_once = rows or rows_that_fit(self.model, data)
        size = min(len(data), at_once)
        wide = torch.promote_types(self.model.dtype, torch.float32)
        effects = torch.full((len(sets), len(data)), torch.nan, dtype=wide)
        clean_values = torch.empty(len(data), dtype=wide)
        bar = tqdm(total=len(order) * len(data), unit="run", delay=2, disable=not progress)
        with bar:
            for start, part in data.chunks(size):
                examples = slice(start, start + len(part))
                clean = self.clean(part)
                judge = Judge(self, clean, targets, examples)
                clean_values[examples] = before = judge(clean.stream, 1)[0]
                for group in _groups(order, max(1, at_once // len(part))):
                    runs = [source.edits(sets[i], clean, examples) for i in group]
                    begun = {i: clean.begin(run) for i, run in enumerate(runs)}
                    effects[group, examples] = 0  # of those that change nothing
                    live = {i: mid for i, mid in begun.items() if mid is not None}
                    if live:
                        stream = clean.finish([runs[i] for i in live], list(live.values()))
                        after = judge(stream, len(live))
                        effects[[group[i] for i in live], examples] = after - before
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
        if not bool(values.isfinite().all()):
            bad = (~values.isfinite()).any(0).nonzero()[0].item()
            raise NumericalError(
                f"metric {self.metric.name!r} is {values[:, int(bad)].tolist()} for example "
                f"{self.examples.start + int(bad)}. Drop the example, or check the metric."
            )
        return values.cpu()


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
