"""Which heads to remove first: one-shot, iterative re-scoring, exact greedy elimination.

Scores of the intact model say what a head is worth while all others are there: of two copies of a
head each looks useless. Scoring again with the pruned heads masked (Michel et al., 2019,
arXiv:1905.10650) sees that the second copy is not. Greedy elimination removes one head after the
other, always the one whose exact ablation harms the metric least.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.harm import direction, harm_metric
from bloomlab.experiments.head_importance import head_importance
from bloomlab.experiments.head_order import (
    HeadOrder,
    check_at_least,
    every_head,
    finite_scores,
    one_shot_order,
    removable,
    weakest_first,
)
from bloomlab.experiments.heads import Head
from bloomlab.experiments.metrics import Metric
from bloomlab.experiments.replacements import Zero
from bloomlab.experiments.sweep import Sweep

SEARCHES = ("greedy", "iterative", "one_shot")
SCORINGS = 10  # of an iterative search, unless asked otherwise (Michel et al.)


def prune_order(
    model: Any,
    tokens: Any,
    scorer: Any = "ablation",
    *,
    search: str = "one_shot",
    per_step: Any = None,
    at_least_k_per_layer: Any = 0,
    metric: Any = "cross_entropy",
    positions: Any = None,
    answers: Any = None,
    progress: bool = True,
) -> HeadOrder:
    """The order in which to remove heads, the least important first.

    Greedy elimination of L layers of H heads measures LH(LH + 1)/2 runs.

    Args:
        model: a BLOOM with an unembedding; no hooks attached.
        tokens: texts, ids [batch pos] or a dict with `attention_mask`; a row is an example.
        scorer: "ablation" (exact); a kind of `head_importance`; a function (model, tokens,
            head_mask [layer head]) -> [layer head]; or, for "one_shot", such a matrix. A larger
            score is a more important head; scores of masked heads are not looked at.
        search: "one_shot" scores once; "iterative" again whenever `per_step` heads are gone, with
            these masked; "greedy" by exact ablation after every head.
        per_step: heads removed between two scorings of an iterative search; None: a tenth of all.
        at_least_k_per_layer: heads that every layer keeps.
        metric: what is harmed, a name or a function, see `ablate_heads`. A function is read as a
            loss. "kl" is from the intact model's prediction.
        positions: columns whose logits the metric sees.
        answers: token ids, for metrics that use them.
        progress: show a bar while it takes long.

    Returns:
        A `HeadOrder`. `.frame` has the columns rank, layer, head, score and metric (after the
        removal; known after every step of "iterative" and "greedy"); `.keep(k)` is the mask of the
        k heads that stay.

    Raises:
        UnknownNameError: no such search, scorer or metric.
        InputError: options that do not go together; more heads to keep than a layer has;
            hooks attached.
        UnsupportedError: heads were pruned before; search `inflate.whole(model)`.
        ShapeError: scores that are not [layer head].
        NumericalError: a score or metric that is NaN or infinite; names the head or example.
    """
    many = isinstance(scorer, str) or callable(scorer)
    _check_options(search, scorer, per_step, many=many)
    data, config = dataset(model, tokens), model.config
    check_at_least(at_least_k_per_layer, config.n_head)
    heads = every_head(config.n_layer, config.n_head)
    measured = harm_metric(model, data, metric, positions=positions, answers=answers)
    masked = MaskedModel(model, data, measured)

    def score(left: list[Head], among: list[Head], bar: bool) -> Any:
        if not many:
            return scorer
        if scorer == "ablation":
            return masked.harm(left, among, progress=bar)
        if callable(scorer):
            return scorer(model, tokens, masked.mask(left))
        return head_importance(
            model,
            tokens,
            kind=scorer,
            metric=metric,
            positions=positions,
            answers=answers,
            head_mask=masked.mask(left),
            progress=bar,
        ).matrix

    if search == "one_shot":
        matrix = _matrix(score(heads, heads, progress), masked.shape)
        return one_shot_order(matrix, at_least_k_per_layer=at_least_k_per_layer)
    at_once = 1 if search == "greedy" else per_step or math.ceil(len(heads) / SCORINGS)
    left, order, scores, metrics = list(heads), [], [], []
    clean = masked.value(left)
    total = len(heads) - config.n_layer * at_least_k_per_layer
    with tqdm(total=total, unit="head", delay=2, disable=not progress) as bar:
        while among := removable(left, at_least_k_per_layer):
            matrix = _matrix(score(left, among, False), masked.shape)
            found = finite_scores(matrix, among)
            gone = weakest_first(found, at_least_k_per_layer)[:at_once]
            left = [head for head in left if head not in gone]
            order += gone
            scores += [found[head] for head in gone]
            metrics += [math.nan] * (len(gone) - 1) + [masked.value(left)]
            bar.update(len(gone))
    return HeadOrder(
        heads=tuple(order),
        scores=tuple(scores),
        metrics=tuple(metrics),
        protected=tuple(left),
        shape=masked.shape,
        clean=clean,
    )


@dataclass(frozen=True)
class MaskedModel:
    """A model of which only some heads are on, measured.

    Args:
        model: a BLOOM with an unembedding.
        data: the examples.
        metric: what is measured.
    """

    model: Any
    data: Dataset
    metric: Metric

    @property
    def shape(self) -> tuple[int, int]:
        """Number of layers, and of heads in a layer."""
        return self.model.config.n_layer, self.model.config.n_head

    def mask(self, heads: list[Head]) -> Float[Tensor, "layer head"]:
        """1 for these heads, 0 for the others."""
        mask = torch.zeros(self.shape, dtype=self.model.dtype, device=self.model.device)
        for head in heads:
            mask[head] = 1
        return mask

    def value(self, heads: list[Head]) -> float:
        """The metric with only these heads, mean over examples."""
        sweep = Sweep(self.model, self.metric, head_mask=self.mask(heads))
        return sweep.run(self.data, [], Zero(), progress=False)[1].mean().item()

    def harm(
        self, heads: list[Head], among: list[Head], *, progress: bool
    ) -> Float[Tensor, "layer head"]:
        """How much worse the metric is, with only these heads, if one of some goes too.

        NaN for all others.
        """
        sweep = Sweep(self.model, self.metric, head_mask=self.mask(heads))
        singles = [(head,) for head in among]
        effects, _ = sweep.run(self.data, singles, Zero(), progress=progress)
        matrix = torch.full(self.shape, torch.nan, dtype=effects.dtype)
        for head, effect in zip(among, direction(self.metric) * effects.mean(-1), strict=True):
            matrix[head] = effect
        return matrix


def _check_options(search: str, scorer: Any, per_step: Any, *, many: bool) -> None:
    if search not in SEARCHES:
        raise UnknownNameError("search", search, SEARCHES)
    if search == "greedy" and not (isinstance(scorer, str) and scorer == "ablation"):
        raise InputError("search 'greedy' scores by exact ablation: leave out the scorer.")
    if search != "one_shot" and not many:
        raise InputError(f"search {search!r} scores again and again: give a function, no matrix.")
    if per_step is None:
        return
    if search != "iterative":
        raise InputError(f"per_step belongs to search 'iterative', not {search!r}.")
    if isinstance(per_step, bool) or not hasattr(per_step, "__index__") or per_step < 1:
        raise InputError(f"per_step is {per_step!r}, expected 1 or more heads.")


def _matrix(scores: Any, shape: tuple[int, int]) -> Float[Tensor, "layer head"]:
    try:
        matrix = torch.as_tensor(scores)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(
            f"the scorer returned {type(scores).__name__}, expected numbers {list(shape)}: [layer "
            "head]."
        ) from None
    if matrix.shape != shape:
        raise ShapeError("the scores", got=matrix.shape, expected=f"{list(shape)}: [layer head]")
    return matrix
