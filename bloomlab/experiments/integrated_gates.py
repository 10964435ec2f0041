"""Integrated gradients on gates of heads (Sundararajan et al., 2017, arXiv:1703.01365).

The derivative by a gate is averaged over a path from silent to open, by the midpoint rule. Unlike
the derivative at the clean run it sees heads behind a saturated softmax.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.experiments.gated_runs import GatedRuns


@torch.enable_grad()
def joint_path(
    runs: GatedRuns, steps: int
) -> tuple[Float[Tensor, "example layer head"], Float[Tensor, " example"]]:
    """All gates open together: effects that add up to M(all silent) - M(all open).

    Returns the effects, and the residual: how much their sum differs from that.
    """
    found = []
    for some in runs.chunks():
        total = torch.zeros_like(runs.gates(some), requires_grad=False)
        for share in _midpoints(steps):
            gates = runs.gates(some)
            (slope,) = torch.autograd.grad(runs.values(some, gates * share).sum(), [gates])
            total -= slope / share / steps  # by the gate itself, not by its share
        found.append(total.cpu())
    effects = torch.cat(found)
    whole = runs.clean_values(0.0) - runs.clean_values()
    return effects, effects.sum((1, 2)) - whole


@torch.enable_grad()
def single_paths(
    runs: GatedRuns, steps: int
) -> tuple[Float[Tensor, "example layer head"], Float[Tensor, "example layer head"]]:
    """Each gate alone, the others open: effects that tend to those of exact ablation.

    Returns the effects, and the residual: how much each differs from the exact one.
    """
    found, residuals = [], []
    for some in runs.chunks():
        streams: dict[int, Tensor] = {}
        hooks = [
            (f"blocks.{layer}.hook_resid_pre", _keeping(streams, layer))
            for layer in range(len(runs.mask))
        ]
        with torch.no_grad():
            clean = runs.values(some, runs.gates(some), hooks=hooks)
        effects = torch.zeros_like(runs.gates(some), requires_grad=False)
        residual = effects.clone()
        for layer, head in (runs.mask != 0).nonzero().tolist():
            from_here = {"since": layer, "stream": streams[layer]}
            for share in _midpoints(steps):
                gates = runs.gates(some)
                moved = _one_at(gates, layer, head, share)
                values = runs.values(some, moved, **from_here)
                (slope,) = torch.autograd.grad(values.sum(), [gates])
                effects[:, layer, head] -= slope[:, layer, head] / share / steps
            with torch.no_grad():
                shut = _one_at(runs.gates(some), layer, head, 0.0)
                gone = runs.values(some, shut, **from_here)
            residual[:, layer, head] = effects[:, layer, head] - (gone - clean)
        found.append(effects.cpu())
        residuals.append(residual.cpu())
    return torch.cat(found), torch.cat(residuals)


def _one_at(
    gates: Float[Tensor, "batch layer head"], layer: int, head: int, share: float
) -> Float[Tensor, "batch layer head"]:
    scale = torch.ones_like(gates[0], requires_grad=False)
    scale[layer, head] = share
    return gates * scale


def _midpoints(steps: int) -> list[float]:
    return [(i + 0.5) / steps for i in range(steps)]


def _keeping(kept: dict[int, Tensor], layer: int) -> object:
    def keep(value: Tensor, hook: object) -> None:
        kept[layer] = value

    return keep
