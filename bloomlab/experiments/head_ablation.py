"""What the model loses without a head: exact sweeps over heads, pairs and sets of heads.

Effects are metric(ablated) - metric(clean), so a head that matters has a positive effect on a loss
and a negative one on an accuracy. The result equals one full forward a head (tested), at half the
layer evaluations or less; see `resume`.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import pandas as pd
import psutil
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.analysis.intervals import bootstrap_mean
from bloomlab.errors import InputError, NumericalError, UnknownNameError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.metrics import Metric
from bloomlab.experiments.replacements import KINDS, Replacement, replacement
from bloomlab.experiments.resume import CleanRun, Edit, Edits, Evaluations

Head = tuple[int, int]  # layer, head


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """Effects of ablating heads, for every example.

    Attributes:
        sets: the heads ablated together, one entry a run.
        effects: metric(ablated) - metric(clean).
        clean: the metric of the clean run.
        metric: its name.
        kind: what stood in the heads' place.
        evaluations: how much was computed.
        shape: number of layers, and of heads in a layer.
    """

    sets: list[tuple[Head, ...]]
    effects: Float[Tensor, "run example"]
    clean: Float[Tensor, " example"]
    metric: str
    kind: str
    evaluations: Evaluations
    shape: tuple[int, int]

    @property
    def stderr(self) -> Float[Tensor, " run"]:
        """Standard error of each mean effect; NaN for a single example."""
        n = self.effects.shape[1]
        if n == 1:
            return torch.full_like(self.effects[:, 0], torch.nan)
        return self.effects.std(-1) / n**0.5

    @property
    def frame(self) -> pd.DataFrame:
        """One row a run: layer and head (or `heads`, of a set), effect, stderr."""
        effects = {"effect": self.effects.mean(-1).tolist(), "stderr": self.stderr.tolist()}
        if all(len(one) == 1 for one in self.sets):
            layers, heads = zip(*(one[0] for one in self.sets), strict=True)
            return pd.DataFrame({"layer": layers, "head": heads, **effects})
        names = [" ".join(f"L{layer}H{head}" for layer, head in one) for one in self.sets]
        return pd.DataFrame({"heads": names, **effects})

    @property
    def matrix(self) -> Float[Tensor, "layer head"]:
        """Mean effect of every single head; NaN where it was not asked for."""
        found = torch.full(self.shape, torch.nan, dtype=self.effects.dtype)
        for one, effect in zip(self.sets, self.effects.mean(-1), strict=True):
            if len(one) == 1:
                found[one[0]] = effect
        return found

    def intervals(self, level: float = 0.95, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
        """`frame` with `low` and `high`: bootstrap over examples, clean and ablated paired."""
        low, high = bootstrap_mean(self.effects, level, draws=draws, seed=seed)
        return self.frame.assign(low=low.tolist(), high=high.tolist())


def ablate_heads(
    model: Any,
    tokens: Any,
    metric: Any = "cross_entropy",
    kind: str = "zero",
    heads: Any = None,
    positions: Any = None,
    attention_mask: Any = None,
    *,
    answers: Any = None,
    head_mask: Any = None,
    columns: Any = None,
    reference: Any = None,
    per_position: bool = False,
    seed: int = 0,
    rows: int | None = None,
    progress: bool = True,
) -> Ablation:
    """Effect of ablating each head, or each given set of heads, on a metric.

    Args:
        model: a BLOOM with an unembedding; no hooks attached.
        tokens: texts, ids [batch pos] or a dict with `attention_mask`; a row is an example.
        metric: "cross_entropy", "kl", "accuracy", "probability", "logit_difference" or a function
            (logits [batch pos vocab], tokens [batch pos]) -> [batch]; see `Metric`.
        kind: what the heads write instead: "zero"; "mean" over the reference (Chan et al.'s
            mean ablation); "resample", another example's; "optimal", the constant that harms the
            metric least (Li and Janson, 2024).
        heads: None for every head alone; "pairs"; (layer, head) pairs; or sets of them.
        positions: columns whose logits the metric sees: None all, -1 the last, or several.
        attention_mask: [batch pos], 0 for padding.
        answers: token ids [batch], or [batch 2] for "logit_difference".
        head_mask: [layer head]; heads scaled in the clean run and in every other.
        columns: where the heads are ablated; None: everywhere. Only from some column on:
            `range(t, n)`; earlier columns are then computed once for all.
        reference: texts or ids for "mean" and "resample"; None: `tokens` itself.
        per_position: a mean for every column instead of one for all.
        seed: of "resample".
        rows: rows in a forward; None: by free memory.
        progress: show a bar while it takes long.

    Returns:
        An `Ablation`; its `frame` has the columns layer, head, effect, stderr.

    Raises:
        InputError: heads that are not there, no data, hooks attached, a metric that returns
            something else than a number an example.
        UnknownNameError: no such metric or kind.
        NumericalError: a metric that is NaN or infinite; names the example.
    """
    data = dataset(model, tokens, attention_mask)
    measured = Metric(metric, positions=positions, answers=answers)
    if kind not in KINDS:
        raise UnknownNameError("kind of ablation", kind, KINDS)
    sets = head_sets(model, heads)
    mask = checked_mask(model, head_mask)
    edited = edited_columns(columns, data.tokens.shape[1])
    sweep = Sweep(model, measured, head_mask=mask, since=0 if edited is None else edited[0])
    source = replacement(
        sweep,
        kind,
        data,
        reference=None if reference is None else dataset(model, reference),
        per_position=per_position,
        columns=edited,
        seed=seed,
    )
    effects, clean = sweep.run(data, sets, source, rows=rows, progress=progress)
    return Ablation(
        sets=sets,
        effects=effects,
        clean=clean,
        metric=measured.name,
        kind=kind,
        evaluations=sweep.evaluations,
        shape=(model.config.n_layer, model.config.n_head),
    )


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
                    begun = [clean.begin(run) for run in runs]
                    effects[group, examples] = 0  # of those that change nothing
                    live = [i for i, mid in enumerate(begun) if mid is not None]
                    if live:
                        stream = clean.finish([runs[i] for i in live], [begun[i] for i in live])
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


def head_sets(model: Any, heads: Any) -> list[tuple[Head, ...]]:
    """Sets of heads to ablate: every head, every pair, given heads or given sets.

    Raises:
        InputError: heads that are not there, or something else.
    """
    every = [(l, h) for l in range(model.config.n_layer) for h in range(model.config.n_head)]
    if heads is None:
        return [(one,) for one in every]
    if isinstance(heads, str):
        if heads != "pairs":
            raise InputError(f"heads is {heads!r}, expected None, 'pairs', heads or sets of heads.")
        return list(combinations(every, 2))
    found = []
    for one in _listed(heads):
        one = _listed(one)
        several = [one] if len(one) == 2 and all(_is_index(i) for i in one) else one
        found.append(tuple(sorted({_head(model, pair) for pair in several})))
    if not found or not all(found):
        raise InputError(f"heads is {heads!r}: no heads to ablate.")
    return found


def checked_mask(model: Any, head_mask: Any) -> Float[Tensor, "layer head"] | None:
    """A head mask as a float tensor [layer head].

    Raises:
        InputError: another shape.
    """
    if head_mask is None:
        return None
    mask = torch.as_tensor(head_mask, dtype=model.dtype, device=model.device)
    expected = (model.config.n_layer, model.config.n_head)
    if mask.shape != expected:
        raise InputError(f"head_mask is {tuple(mask.shape)}, expected {expected}: [layer head].")
    return mask


def edited_columns(columns: Any, n_pos: int) -> list[int] | None:
    """The columns at which heads are ablated, sorted; None for all.

    Raises:
        InputError: a column that is not there.
    """
    if columns is None:
        return None
    listed = [columns] if isinstance(columns, int) else list(columns)
    if not listed or not all(_is_index(i) and -n_pos <= i < n_pos for i in listed):
        raise InputError(f"columns is {columns!r}, expected some of {-n_pos} to {n_pos - 1}.")
    found = sorted({int(i) % n_pos for i in listed})
    return None if len(found) == n_pos else found


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


def _listed(value: Any) -> list[Any]:
    try:
        return list(value.tolist() if isinstance(value, Tensor) else value)
    except TypeError:
        raise InputError(
            f"heads holds {value!r}, expected (layer, head) pairs or sets of them."
        ) from None


def _is_index(value: Any) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _head(model: Any, pair: Any) -> Head:
    pair = tuple(_listed(pair))
    if len(pair) != 2 or not all(_is_index(i) for i in pair):
        raise InputError(f"a head is {pair!r}, expected (layer, head).")
    layer, head = (int(i) for i in pair)
    config = model.config
    if not (0 <= layer < config.n_layer and 0 <= head < config.n_head):
        raise InputError(
            f"no head L{layer}H{head}: the model has layers 0 to {config.n_layer - 1} with heads 0 "
            f"to {config.n_head - 1}."
        )
    return layer, head


__all__ = ["Ablation", "Edit", "Edits", "Sweep", "ablate_heads"]
