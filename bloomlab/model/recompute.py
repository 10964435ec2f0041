"""Gradient checkpointing: blocks recomputed in the backward pass (Chen et al., 2016)."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from bloomlab.errors import UnsupportedError


class Recomputing(nn.Module):
    """Switches for gradient checkpointing, under transformers' names."""

    supports_gradient_checkpointing = True
    gradient_checkpointing = False
    _recompute: Callable[..., Any] = staticmethod(partial(checkpoint, use_reentrant=False))
    _recompute_every = 1

    def recomputed(self, run: Callable[..., Any], layer: int) -> Callable[..., Any]:
        """`run`, or a version of it that keeps no activations for the backward pass."""
        return partial(self._recompute, run) if layer % self._recompute_every == 0 else run

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, every_n_layers: int = 1
    ) -> None:
        """Recompute every n-th block in the backward pass of training, to save memory.

        The keywords go to torch.utils.checkpoint. Blocks with hooks keep their activations.
        """
        chosen = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
        self._recompute, self._recompute_every = partial(checkpoint, **chosen), every_n_layers
        self.gradient_checkpointing = True

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Transformers 5's name of `gradient_checkpointing_enable`; its Trainer calls this."""
        if offload:
            raise UnsupportedError("offloading of checkpointed activations is not supported.")
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers)

    def gradient_checkpointing_disable(self) -> None:
        """Keep activations for the backward pass again."""
        self.gradient_checkpointing = False
