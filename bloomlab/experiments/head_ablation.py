"""What the model loses without a head: exact sweeps over heads, pairs and sets of heads.

Effects are metric(ablated) - metric(clean), so a head that matters has a positive effect on a loss
and a negative one on an accuracy. The result equals one full forward a head (tested), at half the
layer evaluations or less; see `resume`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.analysis.intervals import bootstrap_mean, standard_error
from bloomlab.errors import UnknownNameError
from bloomlab.experiments.dataset import dataset
from bloomlab.experiments.edits import Evaluations
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.heads import Head, checked_mask, edited_columns, head_sets, set_name
from bloomlab.experiments.metrics import Metric
from bloomlab.experiments.replacements import KINDS, replacement
from bloomlab.experiments.results import opened
from bloomlab.experiments.stored_runs import KEY
from bloomlab.experiments.sweep import Sweep


@dataclass(frozen=True, kw_only=True, repr=False)
class Ablation(Framed):
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
        return standard_error(self.effects)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a run: layer and head (or `heads`, of a set), effect, stderr."""
        effects = {"effect": self.effects.mean(-1).tolist(), "stderr": self.stderr.tolist()}
        if all(len(one) == 1 for one in self.sets):
            layers, heads = zip(*(one[0] for one in self.sets), strict=True)
            return pd.DataFrame({"layer": layers, "head": heads, **effects})
        return pd.DataFrame({"heads": list(map(set_name, self.sets)), **effects})

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
    results: str | Path | None = None,
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
        seed: of "resample"; "optimal" draws nothing.
        rows: rows in a forward; None: by free memory, and of one run alone if results are stored.
        results: a folder, new or of this same sweep, where each run is stored once it is measured;
            a sweep that was killed goes on from there to the same numbers, bit for bit. A kill
            loses the runs of one forward: one, unless `rows` asks for more. See `Results`.
        progress: show a bar while it takes long.

    Returns:
        An `Ablation`; its `frame` has the columns layer, head, effect, stderr.

    Raises:
        InputError: heads that are not there, no data, hooks attached, a metric that returns
            something else than a number an example.
        UnknownNameError: no such metric or kind.
        NumericalError: a metric that is NaN or infinite; names the example.
        ResultsError: the folder holds another study; says what differs.
    """
    data = dataset(model, tokens, attention_mask)
    measured = Metric(metric, positions=positions, answers=answers)
    if kind not in KINDS:
        raise UnknownNameError("kind of ablation", kind, KINDS)
    sets = head_sets(model, heads)
    mask = checked_mask(model, head_mask)
    edited = edited_columns(columns, data.tokens.shape[1])
    sweep = Sweep(model, measured, head_mask=mask, since=0 if edited is None else edited[0])
    apart = None if reference is None else dataset(model, reference)
    arguments = {
        "metric": metric,
        "kind": kind,
        "heads": sets,
        "positions": positions,
        "answers": answers,
        "head_mask": mask,
        "columns": edited,
        "reference": apart,
        "per_position": per_position,
        "rows": rows,
    }
    source = replacement(
        sweep,
        kind,
        data,
        reference=apart,
        per_position=per_position,
        columns=edited,
        seed=seed,
    )
    with opened(results, model=model, data=data, arguments=arguments, seed=seed, key=KEY) as store:
        effects, clean = sweep.run(data, sets, source, rows=rows, progress=progress, results=store)
    return Ablation(
        sets=sets,
        effects=effects,
        clean=clean,
        metric=measured.name,
        kind=kind,
        evaluations=sweep.evaluations,
        shape=(model.config.n_layer, model.config.n_head),
    )
