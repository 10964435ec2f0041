"""Layer normalisation with its scale and its normalised value behind hook points."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bloomlab.model.config import BloomConfig
from bloomlab.model.hooks import HookPoint, hooked_edit, is_hooked


class LayerNorm(nn.Module):
    """Layer normalisation; hooked or not, the same formula in at least float32."""

    def __init__(self, config: BloomConfig) -> None:
        super().__init__()
        self.eps = config.layer_norm_epsilon
        self.weight = nn.Parameter(torch.ones(config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))
        self.hook_scale = HookPoint()  # batch pos 1; sqrt(variance + eps)
        self.hook_normalized = HookPoint()  # batch pos d_model; before gain and bias

    def reset_parameters(self) -> None:
        """Gain 1 and bias 0, as in torch's own modules."""
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)

    @property
    def w(self) -> Float[Tensor, " d_model"]:
        """The gain, under TransformerLens' name."""
        return self.weight

    @property
    def b(self) -> Float[Tensor, " d_model"]:
        """The bias, under TransformerLens' name."""
        return self.bias

    def forward(self, x: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """`x` with zero mean and unit variance, times gain plus bias."""
        if is_hooked(self.hook_scale) or is_hooked(self.hook_normalized):
            return self.with_branches(x, [])[0]
        return self.plain(x)

    def with_branches(
        self,
        x: Float[Tensor, "batch pos d_model"],
        branches: Sequence[Float[Tensor, "batch pos *head d_model"] | None],
    ) -> tuple[Float[Tensor, "batch pos d_model"], list[Tensor | None]]:
        """`x` normalised, and edited copies of it, perhaps one a head; the hooks see `x` alone.

        A branch has its own mean and variance, but where a hook set the scale or the normalised
        value of `x` (path patching freezes them), that holds for the branches too.
        """
        centred, own_scale = self._statistics(x)
        scale, scale_set = hooked_edit(self.hook_scale, own_scale)
        normalized, value_set = hooked_edit(self.hook_normalized, centred / scale)
        forked: list[Tensor | None] = []
        for branch in branches:
            if branch is None:
                forked.append(None)
                continue
            centred, branch_scale = self._statistics(branch)
            value = centred / (as_for(branch, scale) if scale_set else branch_scale)
            value = as_for(branch, normalized).expand_as(value) if value_set else value
            forked.append(self._affine(value).to(x.dtype))
        return self._affine(normalized).to(x.dtype), forked

    def _affine(self, normalized: Tensor) -> Tensor:
        return normalized * self.weight.to(normalized.dtype) + self.bias.to(normalized.dtype)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        centred = wide - wide.mean(-1, keepdim=True)
        return centred, (centred.square().mean(-1, keepdim=True) + self.eps).sqrt()

    def plain(self, x: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead d_model"]:
        """The same without hooks, for any leading axes."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


def as_for(
    branch: Tensor, value: Float[Tensor, "batch pos d"]
) -> Float[Tensor, "batch pos *head d"]:
    """`value` with a head axis where `branch` has one."""
    return value[:, :, None] if branch.ndim > value.ndim else value
