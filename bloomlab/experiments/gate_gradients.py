"""First and second derivatives of a metric by gates on heads, example by example.

A gate xi multiplies a head's output z, so that dM/dxi at 1 is the sum of <z, dM/dz> over tokens
(Michel et al., 2019, arXiv:1905.10650). Silencing the head moves it from 1 to 0, which changes M by
-g to first order and by -g + M''/2 to second. All here are such predictions of the effect.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.experiments.gated_runs import GatedRuns


@torch.enable_grad()
def first_order(runs: GatedRuns) -> Float[Tensor, "example layer head"]:
    """-dM/dxi of every gate: one forward and one backward an example."""
    found = []
    for some in runs.chunks():
        gates = runs.gates(some)
        (slope,) = torch.autograd.grad(runs.values(some, gates).sum(), [gates])
        found.append(-slope.cpu())
    return torch.cat(found)


@torch.enable_grad()
def token_first_order(runs: GatedRuns) -> Float[Tensor, "example layer head"]:
    """Sum over tokens of |<z, dM/dz>|: no two tokens cancel."""
    found = []
    for some in runs.chunks():
        probe = Probe(runs, ["z"])
        values = runs.values(some, runs.gates(some), hooks=probe.hooks)
        slopes = probe.slopes(values)
        each = [
            (probe.seen["z", layer] * slopes["z", layer]).sum(-1).abs().sum(1)
            for layer in range(len(runs.mask))
        ]
        found.append(torch.stack(each, 1).detach().cpu())
    return torch.cat(found)


@torch.enable_grad()
def second_order(runs: GatedRuns) -> Float[Tensor, "example layer head"]:
    """-dM/dxi + 1/2 d2M/dxi2 of every gate: a second backward for each head."""
    found = []
    for some in runs.chunks():
        gates = runs.gates(some)
        values = runs.values(some, gates, hooks=eager(len(runs.mask)))
        (slope,) = torch.autograd.grad(values.sum(), [gates], create_graph=True)
        effect = -slope.detach()
        for layer, head in (runs.mask != 0).nonzero().tolist():
            one = slope[:, layer, head].sum()
            if one.requires_grad:  # a linear function's slope is a constant
                (bend,) = torch.autograd.grad(one, [gates], retain_graph=True, allow_unused=True)
                if bend is not None:
                    effect[:, layer, head] += bend[:, layer, head] / 2
        found.append(effect.cpu())
    return torch.cat(found)


def interactions(
    effects: Float[Tensor, "example layer head"],
) -> Float[Tensor, "layer head layer head"]:
    """Empirical Fisher matrix E[g g^T]: silencing a set S costs about half its sum over S x S.

    Kwon et al., 2022, arXiv:2204.09656. Symmetric, without negative eigenvalues.
    """
    return torch.einsum("xlh,xmk->lhmk", effects, effects) / len(effects)


def eager(n_layer: int) -> list[Any]:
    """Hooks that only look: fused kernels have no second derivative, and then step aside."""
    names = ("attn.hook_pattern", "mlp.hook_pre")
    return [(f"blocks.{layer}.{name}", _look) for layer in range(n_layer) for name in names]


def _look(value: Tensor, hook: Any) -> None:
    return None


class Probe:
    """Sees activations of one run and, afterwards, the metric's derivative by each.

    Args:
        runs: what is run.
        points: names of hook points of attention: "z", "q", "k", "v", "attn_scores", "pattern".
    """

    def __init__(self, runs: GatedRuns, points: list[str]) -> None:
        self.seen: dict[tuple[str, int], Tensor] = {}
        self._shifts: dict[tuple[str, int], Tensor] = {}
        self.hooks = [
            (f"blocks.{layer}.attn.hook_{point}", self._watch(point, layer))
            for layer in range(len(runs.mask))
            for point in points
        ]

    def slopes(
        self, values: Float[Tensor, " batch"], *, again: bool = False
    ) -> dict[tuple[str, int], Tensor]:
        """Derivatives of each example's value; `again` keeps what another call needs."""
        found = torch.autograd.grad(
            values.sum(), list(self._shifts.values()), retain_graph=again, materialize_grads=True
        )
        return dict(zip(self._shifts, found, strict=True))

    def _watch(self, point: str, layer: int) -> Any:
        def watch(value: Tensor, hook: Any) -> Tensor:
            self.seen[point, layer] = value.detach()
            shift = torch.zeros_like(value, requires_grad=True)  # a leaf, whatever the weights are
            self._shifts[point, layer] = shift
            return value + shift

        return watch
