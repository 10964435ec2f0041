"""Pruning curves: a metric against the heads that are kept, beside what random pruning does.

A ranking is worth something only where its curve leaves the band of random orders: a model may lose
half its heads by lot and hardly notice.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor

from bloomlab.analysis.intervals import standard_error
from bloomlab.errors import InputError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.harm import LARGER_IS_BETTER, harm_metric
from bloomlab.experiments.head_ablation import Ablation
from bloomlab.experiments.head_order import HeadOrder, every_head, listed_order, one_shot_order
from bloomlab.experiments.heads import Head
from bloomlab.experiments.metrics import Metric
from bloomlab.experiments.replacements import Zero
from bloomlab.experiments.results import opened
from bloomlab.experiments.stored_runs import KEY
from bloomlab.experiments.sweep import Sweep

RANDOM = "random"  # name of the orders drawn by lot
POINTS = 13  # numbers of heads kept, unless asked otherwise


@dataclass(frozen=True, kw_only=True)
class PruningCurve:
    """A metric against the number of heads kept, for rankings, datasets and random orders.

    Attributes:
        frame: one row a measured model: dataset, ranking, seed (of a random order; else missing),
            kept, value (of the metric, mean over examples), effect (value less that of all heads),
            stderr (of the effect, over examples; NaN for a single one).
        orders: the order of removal of every ranking, by name; random ones as "random 0", ...
        metric: its name.
    """

    frame: pd.DataFrame
    orders: dict[str, HeadOrder]
    metric: str

    def band(self, level: float = 0.9) -> pd.DataFrame:
        """Random pruning, over seeds: dataset, kept, mean, low, high (quantiles), seeds."""
        tail = (1 - level) / 2
        found = self.frame[self.frame["ranking"] == RANDOM].groupby(["dataset", "kept"])["value"]
        return found.agg(
            mean="mean",
            low=lambda values: values.quantile(tail),
            high=lambda values: values.quantile(1 - tail),
            seeds="size",
        ).reset_index()

    def keep(self, ranking: str, kept: int) -> Bool[Tensor, "layer head"]:
        """True for the heads that a ranking keeps: a head mask, and what `prune_heads` leaves.

        Raises:
            InputError: no such ranking, or number of heads.
        """
        if ranking not in self.orders:
            raise InputError(f"no ranking {ranking!r}; there are {', '.join(self.orders)}.")
        return self.orders[ranking].keep(kept)


def prune_curve(
    model: Any,
    data: Any,
    rankings: Any = None,
    *,
    kept: Any = None,
    n_random: int = 20,
    at_least_k_per_layer: int = 0,
    metric: Any = "cross_entropy",
    positions: Any = None,
    answers: Any = None,
    rows: int | None = None,
    seed: int = 0,
    results: str | Path | None = None,
    progress: bool = True,
) -> PruningCurve:
    """The metric with fewer and fewer heads; the others are masked, which is what pruning computes.

    Args:
        model: a BLOOM with an unembedding; no hooks attached.
        data: texts, ids [batch pos] or a dict with `attention_mask`; or several of these by name,
            of languages or tasks, for a curve each.
        rankings: by name, each a `HeadOrder`; a score [layer head], larger for a head that matters
            more; a result of `head_importance` or `ablate_heads`; or (layer, head) pairs in the
            order of their removal, those left out never removed.
        kept: numbers of heads to keep; None: 13 from none to all.
        n_random: orders drawn by lot; 0 for none.
        at_least_k_per_layer: heads that every layer keeps, by scores and by lot.
        metric: what is measured, see `ablate_heads`; "kl" is from the prediction with all heads.
        positions: columns whose logits the metric sees.
        answers: token ids, for metrics that use them; by name if `data` is.
        rows: rows in a forward; None: by free memory, and of one model alone if results are stored.
        seed: of the random orders.
        results: a folder, new or of this same study (with a folder for each named dataset inside),
            where each model is stored once it is measured. Measuring goes on there after a kill,
            which loses the models of one forward. See `Results`.
        progress: show a bar while it takes long.

    Returns:
        A `PruningCurve`; `.frame`, `.band()`, `.keep(ranking, kept)`.

    Raises:
        InputError: rankings that cannot be read; a number of heads that a ranking cannot keep.
        ShapeError: scores of another shape.
        NumericalError: a score or metric that is NaN or infinite; names the head or example.
        ResultsError: the folder holds another study; says what differs.
    """
    shape = (model.config.n_layer, model.config.n_head)
    orders = {
        name: as_order(model, ranking, at_least_k_per_layer)
        for name, ranking in _named(rankings).items()
    }
    drawn = random_orders(shape, n_random, seed=seed, at_least_k_per_layer=at_least_k_per_layer)
    orders |= {f"{RANDOM} {i}": order for i, order in enumerate(drawn)}
    if not orders:
        raise InputError("there is nothing to measure: no rankings, and n_random is 0.")
    numbers = _numbers(kept, orders)
    frames, name_of_metric = [], ""
    for name, part in _datasets(model, data).items():
        own = answers[name] if isinstance(answers, Mapping) else answers
        measured = harm_metric(model, part, metric, positions=positions, answers=own)
        folder = results if results is None or not _several(data) else Path(results) / _safe(name)
        arguments = {
            "rankings": {n: o.heads for n, o in orders.items() if not n.startswith(RANDOM)},
            "kept": numbers,
            "n_random": n_random,
            "at_least_k_per_layer": at_least_k_per_layer,
            "metric": metric,
            "positions": positions,
            "answers": own,
            "rows": rows,
        }
        options = {"model": model, "data": part, "arguments": arguments, "seed": seed, "key": KEY}
        with opened(folder, **options) as store:
            frame = _measured(
                model, part, measured, orders, numbers, rows=rows, results=store, progress=progress
            )
        frames.append(frame.assign(dataset=name))
        name_of_metric = measured.name
    columns = ["dataset", "ranking", "seed", "kept", "value", "effect", "stderr"]
    frame = pd.concat(frames, ignore_index=True).reindex(columns=columns)
    return PruningCurve(frame=frame, orders=orders, metric=name_of_metric)


def random_orders(
    shape: tuple[int, int], n: int, *, seed: int = 0, at_least_k_per_layer: int = 0
) -> list[HeadOrder]:
    """Orders of removal drawn by lot; order i is the same for any `n`."""
    return [
        one_shot_order(
            torch.rand(shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + i)),
            at_least_k_per_layer=at_least_k_per_layer,
        )
        for i in range(n)
    ]


def as_order(model: Any, ranking: Any, at_least_k_per_layer: int = 0) -> HeadOrder:
    """The order of removal that a ranking stands for; see `prune_curve`.

    Raises:
        InputError: heads that are not there, or of another model; something else.
        ShapeError: scores of another shape.
    """
    shape = (model.config.n_layer, model.config.n_head)
    if isinstance(ranking, HeadOrder):
        if ranking.shape != shape:
            raise InputError(
                f"a ranking is of {ranking.shape[0]} layers x {ranking.shape[1]} heads, the model "
                f"has {shape[0]} x {shape[1]}."
            )
        return ranking
    scores = getattr(ranking, "matrix", ranking)
    if isinstance(ranking, Ablation) and ranking.metric in LARGER_IS_BETTER:
        scores = -scores
    if isinstance(scores, Tensor | np.ndarray) and tuple(scores.shape) == shape:
        return one_shot_order(scores, at_least_k_per_layer=at_least_k_per_layer)
    return listed_order(model, scores)


def _measured(
    model: Any,
    data: Dataset,
    metric: Metric,
    orders: Mapping[str, HeadOrder],
    kept: Sequence[int],
    **options: Any,
) -> pd.DataFrame:
    """One row for each order and number of heads; models that several orders share run once."""
    every = every_head(model.config.n_layer, model.config.n_head)
    found: dict[tuple[Head, ...], list[dict[str, Any]]] = {}
    for name, order in orders.items():
        random = name.startswith(RANDOM)
        labels = {
            "ranking": RANDOM if random else name,
            "seed": int(name.split()[1]) if random else pd.NA,
        }
        for k in kept:
            stay = order.keep(k)
            gone = tuple(head for head in every if not stay[head])
            found.setdefault(gone, []).append(labels | {"kept": k})
    sets = [gone for gone in found if gone]
    effects, clean = Sweep(model, metric).run(data, sets, Zero(), **options)
    by_set = dict(zip(sets, effects, strict=True)) | {(): torch.zeros_like(clean)}
    rows = []
    for gone, labelled in found.items():
        effect = by_set[gone]
        numbers = {
            "value": (clean + effect).mean().item(),
            "effect": effect.mean().item(),
            "stderr": standard_error(effect).item(),
        }
        rows += [labels | numbers for labels in labelled]
    frame = pd.DataFrame(rows).astype({"seed": "Int64"})
    return frame.sort_values(["ranking", "seed", "kept"], ignore_index=True)


def _named(rankings: Any) -> dict[str, Any]:
    if rankings is None:
        return {}
    named = rankings if isinstance(rankings, Mapping) else {"ranking": rankings}
    for name in named:
        if not isinstance(name, str) or name.startswith(RANDOM):
            raise InputError(
                f"a ranking is called {name!r}, expected a name that does not begin with "
                f"{RANDOM!r}, which is what orders drawn by lot are called."
            )
    return dict(named)


def _numbers(kept: Any, orders: Mapping[str, HeadOrder]) -> list[int]:
    low = max(len(order.protected) for order in orders.values())
    high = next(len(order.protected) + len(order.heads) for order in orders.values())
    if kept is None:
        return sorted({round(k) for k in np.linspace(low, high, POINTS).tolist()})
    numbers = sorted({*kept}) if hasattr(kept, "__iter__") else [kept]
    if not numbers:
        raise InputError("kept is empty: no number of heads to keep.")
    for order in orders.values():
        for k in numbers:
            order.keep(k)
    return [int(k) for k in numbers]


def _several(data: Any) -> bool:
    return isinstance(data, Mapping) and not {"tokens", "input_ids"} & set(data)


def _datasets(model: Any, data: Any) -> dict[str, Dataset]:
    if not _several(data):
        return {"data": dataset(model, data)}
    if not data:
        raise InputError("data is empty: expected a dataset, or several by name.")
    return {str(name): dataset(model, part) for name, part in data.items()}


def _safe(name: str) -> str:
    """A name as that of a folder."""
    return re.sub(r"[^\w.-]", "_", name)
