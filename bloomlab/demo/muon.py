"""Muon: momentum whose steps are orthogonal matrices (Jordan et al., 2024).

torch.optim.Muon computes in bfloat16 whatever the machine, a hundred times slower on a CPU without
bfloat16 products, and takes BLOOM's fused queries, keys and values for one matrix.
"""

from collections.abc import Iterable
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon over matrices; a group's parameters have one shape.

    Args:
        groups: dicts of "params" and, for fused queries, keys and values, "n_head" (else 0).
        lr: learning rate; a step has singular values of about lr x sqrt(max(1, rows / columns)).
        momentum: Nesterov momentum.
        weight_decay: share of lr by which weights shrink in a step.
        precision: number format of the orthogonalisation.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self.precision = precision
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "n_head": 0}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  # torch's overloads
        """Move every parameter that has a gradient."""
        for group in self.param_groups:
            params: list[nn.Parameter] = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            moving = torch.stack([self._moving(param, group["momentum"]) for param in params])
            updates = self._orthogonal(moving, group["n_head"])
            for param, update in zip(params, updates, strict=True):
                param.mul_(1 - group["lr"] * group["weight_decay"])
                param.add_(update, alpha=-group["lr"])

    def _moving(self, param: nn.Parameter, momentum: float) -> Tensor:
        state, grad = self.state[param], param.grad
        assert grad is not None
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(param)
        average = state["momentum"].lerp_(grad, 1 - momentum)
        return grad.lerp(average, momentum)

    def _orthogonal(
        self, matrices: Float[Tensor, "n rows columns"], n_head: int
    ) -> Float[Tensor, "n rows columns"]:
        if n_head:
            layout = {"h": n_head, "three": 3}
            parts = rearrange(matrices, "n (h three d) m -> (n three) (h d) m", **layout)
            return rearrange(self._scaled(parts), "(n three) (h d) m -> n (h three d) m", **layout)
        return self._scaled(matrices)

    def _scaled(self, matrices: Tensor) -> Tensor:
        rows, columns = matrices.shape[-2:]
        return orthogonalised(matrices, self.precision) * max(1.0, rows / columns) ** 0.5


def orthogonalised(
    matrices: Float[Tensor, "*lead rows columns"],
    precision: torch.dtype = torch.float32,
    *,
    steps: int = 5,
) -> Float[Tensor, "*lead rows columns"]:
    """Matrices of the same singular vectors, all singular values moved close to 1 (0.7 to 1.2).

    Newton-Schulz iteration of an odd polynomial of the fifth degree.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).to(precision)
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(precision)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
