"""Attribution patching (Nanda, 2023) and AtP* (Kramar et al., 2024, arXiv:2403.00745).

What a head's node would change if it took its value from a baseline, to first order:
<baseline - clean, dM/dnode>, summed over tokens. Two things hide an effect from it, and AtP* mends
both: a saturated softmax (QK-fix: the pattern is computed with the new query or key, and only what
comes after it is linear) and paths that cancel (GradDrop: the mean of absolute values with one
layer's writes held constant at a time).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import UnknownNameError
from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.gate_gradients import Probe
from bloomlab.experiments.gated_runs import GatedRuns
from bloomlab.experiments.recorded import recorded
from bloomlab.experiments.text_pairs import aligned
from bloomlab.model.scores import attention_pattern

NODES = ("k", "q", "v", "z")
BASELINES = ("mean", "zero")


def corrupted(model: Any, data: Dataset, baseline: Any) -> Dataset | None:
    """The other texts of a baseline that is one; None for a named baseline.

    Raises:
        UnknownNameError: no such baseline.
        InputError: texts of another length, or padded elsewhere.
        ShapeError: another number of texts.
    """
    if isinstance(baseline, str):
        if baseline not in BASELINES:
            raise UnknownNameError("baseline", baseline, [*BASELINES, "or corrupted tokens"])
        return None
    return aligned(model, data, baseline)[1]


@torch.enable_grad()
def patching_effects(
    runs: GatedRuns, baseline: Any = "zero", *, node: str = "z", fix: bool, drop: bool
) -> Float[Tensor, "example layer head"]:
    """Predicted effect of giving each head's node its baseline value, at all tokens at once.

    Args:
        runs: the batch.
        baseline: "zero", "mean" over the batch's attended tokens, or tokens [batch pos] of a
            corrupted run.
        node: "z", "q", "k" or "v" of a head.
        fix: QK-fix, which "q" and "k" can use.
        drop: GradDrop; effects are then absolute values.

    Raises:
        UnknownNameError: no such node or baseline.
        ShapeError: corrupted tokens of another shape.
    """
    if node not in NODES:
        raise UnknownNameError("node", node, NODES)
    other = corrupted(runs.model, runs.data, baseline)
    n_layer = len(runs.mask)
    fixed = fix and node in ("q", "k")
    points = ["q", "k", "attn_scores", "pattern"] if fixed else [node]
    mean = _means(runs, node) if isinstance(baseline, str) and baseline == "mean" else None
    found = []
    for some in runs.chunks():
        theirs = None if other is None else _seen(runs, other.rows(some.start, some.stop), node)
        probe, dropping = Probe(runs, points), _Dropping(n_layer)
        hooks = [*probe.hooks, *(dropping.hooks if drop else [])]
        values = runs.values(some, runs.gates(some), hooks=hooks)
        if fixed:
            changes = {}
            for layer in range(n_layer):
                new = _new(probe.seen[node, layer], layer, theirs, mean)
                changes["pattern", layer] = _pattern_change(probe, layer, node, new)
        else:
            changes = {
                (node, layer): _new(probe.seen[node, layer], layer, theirs, mean)
                - probe.seen[node, layer]
                for layer in range(n_layer)
            }
        if not drop or n_layer == 1:
            effects = _dots(changes, probe.slopes(values))
            found.append((effects.abs() if drop else effects).cpu())
            continue
        total = torch.zeros_like(runs.gates(some), requires_grad=False)
        for layer in range(n_layer):
            dropping.layer = layer
            total += _dots(changes, probe.slopes(values, again=True)).abs()
        found.append((total / (n_layer - 1)).cpu())
    return torch.cat(found)


class _Dropping:
    """Stops the gradient at the writes of one layer, chosen anew for every backward."""

    def __init__(self, n_layer: int) -> None:
        self.layer: int | None = None
        self.hooks = [
            (f"blocks.{layer}.hook_{point}", self._at(layer))
            for layer in range(n_layer)
            for point in ("attn_out", "mlp_out")
        ]

    def _at(self, layer: int) -> Any:
        def at(value: Tensor, hook: Any) -> None:
            if value.requires_grad:
                value.register_hook(
                    lambda slope: torch.zeros_like(slope) if layer == self.layer else None
                )

        return at


def _dots(
    changes: dict[tuple[str, int], Tensor], slopes: dict[tuple[str, int], Tensor]
) -> Float[Tensor, "batch layer head"]:
    """<change, slope> of every head."""
    found = []
    for (point, layer), change in changes.items():
        product = change * slopes[point, layer]
        # a pattern is [batch head query key], a node [batch pos head d_head]
        found.append(product.sum((2, 3)) if point == "pattern" else product.sum((1, 3)))
    return torch.stack(found, 1)


def _pattern_change(probe: Probe, layer: int, node: str, new: Tensor) -> Tensor:
    """How the pattern changes with every query, or every key, of a head at once."""
    q, k = probe.seen["q", layer], probe.seen["k", layer]
    scores, before = probe.seen["attn_scores", layer], probe.seen["pattern", layer]
    moved = ((new - q), k) if node == "q" else (q, new - k)
    change = torch.einsum("bihd,bjhd->bhij", *moved) / q.shape[-1] ** 0.5
    # bias and mask stay; beside the mask's number any change is nothing
    with torch.no_grad():
        return attention_pattern(scores + change, before.dtype) - before


def _new(
    old: Tensor, layer: int, theirs: dict[int, Tensor] | None, mean: dict[int, Tensor] | None
) -> Tensor:
    if theirs is not None:
        return theirs[layer]
    return torch.zeros_like(old) if mean is None else mean[layer].to(old).expand_as(old)


def _seen(runs: GatedRuns, data: Dataset, node: str) -> dict[int, Tensor]:
    """A node's values in a run of some texts, [batch pos head d_head] of each layer."""
    return recorded(runs.model, data, [f"attn.hook_{node}"], head_mask=runs.mask)[0][0]


def _means(runs: GatedRuns, node: str) -> dict[int, Tensor]:
    """A node's mean over the attended tokens of the batch, [head d_head] of each layer."""
    totals: dict[int, Tensor] = {}
    for some in runs.chunks():
        part = runs.data.rows(some.start, some.stop)
        wide = torch.promote_types(runs.model.dtype, torch.float32)
        for layer, value in _seen(runs, part, node).items():
            sums = value.to(wide)[part.attended].sum(0)
            totals[layer] = sums if layer not in totals else totals[layer] + sums
    n = runs.data.attended.sum()
    return {layer: total / n for layer, total in totals.items()}
