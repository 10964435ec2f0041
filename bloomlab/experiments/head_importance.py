"""How much every head matters: gradients of gates, paths, patching, activations; and exactly."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.attribution_patching import patching_effects
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.gate_gradients import (
    first_order,
    interactions,
    second_order,
    token_first_order,
)
from bloomlab.experiments.gated_runs import GatedRuns
from bloomlab.experiments.harm import ParentKL, direction, harm_metric
from bloomlab.experiments.heads import checked_mask, head_sets
from bloomlab.experiments.importance import FORWARD_ONLY, NORMS, Importance, aggregated, normalised
from bloomlab.experiments.integrated_gates import joint_path, single_paths
from bloomlab.experiments.metrics import Metric
from bloomlab.experiments.replacements import Zero
from bloomlab.experiments.resume import require_bare
from bloomlab.experiments.static_scores import attention_confidence, output_norm
from bloomlab.experiments.sweep import Sweep

Effects = Float[Tensor, "example layer head"]
GRADIENTS = ("batch_abs", "example_abs", "fisher", "signed")
PATCHING = {  # kind -> QK-fix, GradDrop
    "atp": {"fix": False, "drop": False},
    "atp_qk_fix": {"fix": True, "drop": False},
    "atp_star": {"fix": True, "drop": True},
}
FIRST_ORDER = (*GRADIENTS, "token_abs", *PATCHING)
PATHS = ("ig_joint", "ig_single")
KINDS = tuple(sorted((*FIRST_ORDER, *FORWARD_ONLY, *PATHS, "exact", "taylor2")))


def head_importance(
    model: Any,
    batches: Any,
    kind: str = "example_abs",
    norm: str | None = None,
    *,
    metric: Any = "cross_entropy",
    positions: Any = None,
    answers: Any = None,
    head_mask: Any = None,
    attention_mask: Any = None,
    baseline: Any = "zero",
    node: str = "z",
    steps: int = 16,
    rows: int = 16,
    progress: bool = True,
) -> Importance:
    """Score of each head; a larger one is a more important head.

    g is the metric's derivative by a gate on the head's output, of one example (all of its tokens);
    E the mean over examples. Harm is a rise of a loss and a fall of accuracy, probability or logit
    difference. Every kind but "exact" is approximate: `.against(exact)` says how well it ranks.

    | kind | score |
    |---|---|
    | "example_abs" | E of abs(g) (Michel et al., 2019, the paper) |
    | "token_abs" | E of the sum over tokens of abs(g of the token) (their code) |
    | "batch_abs" | abs of E g within a batch, mean over batches (transformers' bertology) |
    | "signed" | harm predicted to first order, from -E g |
    | "fisher" | E g^2; `.interactions` between heads (Kwon et al., 2022) |
    | "taylor2" | harm predicted to second order |
    | "ig_joint" | share of the harm of silencing all heads; gradients on the way there |
    | "ig_single" | harm of silencing the head; gradients on the way there |
    | "atp" | harm of `node` at its baseline, to first order: attribution patching |
    | "atp_qk_fix" | the same, exact in the softmax (Kramar et al., 2024) |
    | "atp_star" | the same, absolute, with GradDrop too |
    | "attention_confidence" | mean of the largest attention weight (Voita et al., 2019) |
    | "output_norm" | mean length of what the head writes |
    | "exact" | harm of silencing the head: `ablate_heads` |

    Args:
        model: a BLOOM with an unembedding; no hooks attached. It is left as it was.
        batches: texts, ids [batch pos] or a dict with `attention_mask`; or several in a list.
        kind: of score, see above.
        norm: None; "layer", by each layer's L2 norm; "global", stretched to 0..1.
        metric: what is harmed, a name or a differentiable function read as a loss; see
            `ablate_heads`. "kl" is from the intact model's prediction.
        positions: columns whose logits the metric sees.
        answers: token ids of all examples, for metrics that use them.
        head_mask: [layer head]; heads scaled in every run. Masked heads score 0.
        attention_mask: [batch pos] of a single batch, 0 for padding.
        baseline: of patching: "zero", "mean" over a batch's tokens, or corrupted tokens of the same
            shape (then of a single batch).
        node: of patching: "z", "q", "k" or "v" of a head.
        steps: of a path; 16 or more where attention is sharp.
        rows: examples in a forward; changes no score.
        progress: show a bar while it takes long.

    Raises:
        UnknownNameError: no such kind, norm, metric, node or baseline.
        InputError: no data; options that do not go together; a metric without gradient; "kl" where
            its gradient is zero; hooks attached.
        ShapeError: answers, masks or a baseline that do not fit.
        UnsupportedError: heads were pruned before; give `inflate.whole(model)`.
        NumericalError: a metric that is NaN or infinite; names the example.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of importance", kind, KINDS)
    if norm not in NORMS:
        raise UnknownNameError("norm", norm, map(str, NORMS))
    _check_options(kind, baseline, node, steps, rows)
    require_bare(model)
    datasets = list(_datasets(model, batches, attention_mask))
    if len(datasets) > 1 and not isinstance(baseline, str):
        raise InputError("corrupted tokens belong to a single batch; score the batches in turn.")
    mask = checked_mask(model, head_mask)
    shape = (model.config.n_layer, model.config.n_head)
    scale = torch.ones(shape, device=model.device, dtype=model.dtype) if mask is None else mask
    compute = _method(kind, baseline=baseline, node=node, steps=steps)
    effects, residuals, measured, first = [], [], None, 0
    several = tqdm(datasets, unit="batch", delay=2, disable=not progress or len(datasets) < 2)
    for data, own in zip(several, _shares(answers, datasets), strict=True):
        measured = harm_metric(model, data, metric, positions=positions, answers=own)
        _check_metric(kind, measured, scale)
        runs = GatedRuns(
            model=model,
            data=data,
            metric=measured,
            mask=scale,
            first=first,
            rows=rows,
            progress=progress and len(datasets) == 1,
        )
        found, residual = compute(runs)
        effects.append(found if kind in FORWARD_ONLY else direction(measured) * found)
        residuals.append(residual)
        first += len(data)
    assert measured is not None
    if kind in ("token_abs", "atp_star"):
        effects = [effect.abs() for effect in effects]
    alive, examples = (scale != 0).cpu(), torch.cat(effects)
    residual = None if residuals[0] is None else torch.cat(residuals)
    return Importance(
        kind=kind,
        norm=norm,
        matrix=normalised(aggregated(kind, effects), norm, alive),
        examples=examples,
        metric=measured.name,
        sign=direction(measured),
        alive=alive,
        residual=residual.mean(0) if residual is not None and kind == "ig_single" else residual,
        interactions=interactions(examples) if kind == "fisher" else None,
    )


def _method(
    kind: str, *, baseline: Any, node: str, steps: int
) -> Callable[[GatedRuns], tuple[Effects, Tensor | None]]:
    """What measures a batch: the effects, and the residual of those that have one."""
    if kind == "ig_joint":
        return lambda runs: joint_path(runs, steps)
    if kind == "ig_single":
        return lambda runs: single_paths(runs, steps)
    if kind in PATCHING:
        options = PATCHING[kind]
        return lambda runs: (patching_effects(runs, baseline, node=node, **options), None)
    simple = {
        "attention_confidence": attention_confidence,
        "exact": _exact,
        "output_norm": output_norm,
        "taylor2": second_order,
        "token_abs": token_first_order,
    }.get(kind, first_order)
    return lambda runs: (simple(runs), None)


def _exact(runs: GatedRuns) -> Effects:
    sweep = Sweep(runs.model, runs.metric, head_mask=runs.mask)
    effects, _ = sweep.run(runs.data, head_sets(runs.model, None), Zero(), progress=runs.progress)
    return effects.T.unflatten(1, runs.mask.shape)


def _datasets(model: Any, batches: Any, attention_mask: Any) -> Iterator[Dataset]:
    """The batches, each a dataset."""
    kinds: Any = (str, Tensor, Mapping, Dataset)
    single = isinstance(batches, kinds) or hasattr(batches, "keys")
    if not single and not hasattr(batches, "__iter__"):
        single = True  # no data at all: `dataset` says what was expected
    listed: list[Any] = [] if single else list(batches)
    if single or (listed and all(isinstance(one, str) for one in listed)):
        yield dataset(model, batches if single else listed, attention_mask)
        return
    if attention_mask is not None:
        raise InputError("attention_mask belongs to a single batch; give dicts that hold it.")
    if not listed:
        raise InputError("there are no batches: the dataset is empty. Give at least one example.")
    yield from (dataset(model, one) for one in listed)


def _shares(answers: Any, datasets: list[Dataset]) -> list[Any]:
    """Each batch's part of the answers."""
    if answers is None or len(datasets) == 1:
        return [answers] * len(datasets)
    whole, sizes = torch.as_tensor(answers), [len(data) for data in datasets]
    if not whole.ndim or len(whole) != sum(sizes):
        raise InputError(
            f"answers has {len(whole) if whole.ndim else 'no'} rows, expected {sum(sizes)}: one "
            "for each example of all batches."
        )
    return list(whole.split(sizes))


def _check_options(kind: str, baseline: Any, node: str, steps: Any, rows: Any) -> None:
    if kind not in PATCHING and not (
        isinstance(baseline, str) and (baseline, node) == ("zero", "z")
    ):
        raise InputError(f"baseline and node belong to {', '.join(PATCHING)}; not to {kind!r}.")
    if kind == "atp_qk_fix" and node not in ("q", "k"):
        raise InputError(f"QK-fix is for node 'q' or 'k', not {node!r}.")
    for name, value in (("steps", steps), ("rows", rows)):
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
            raise InputError(f"{name} is {value!r}, expected a whole number, 1 or more.")


def _check_metric(kind: str, metric: Metric, mask: Float[Tensor, "layer head"]) -> None:
    if kind == "exact" or kind in FORWARD_ONLY:
        return
    if metric.name == "accuracy" and metric.function is None:
        raise InputError("metric 'accuracy' has no gradient: take another, or kind='exact'.")
    if kind in FIRST_ORDER and isinstance(metric, ParentKL) and bool((mask == 1).all()):
        raise InputError(
            "metric 'kl' has a zero gradient where nothing is masked yet. Take kind 'taylor2', "
            "'ig_single' or 'exact', or another metric."
        )
