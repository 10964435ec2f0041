"""What one run left at hook points of every layer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.experiments.dataset import Dataset
from bloomlab.model.cache import KVCache


@torch.no_grad()
def recorded(
    model: Any,
    data: Dataset,
    points: Sequence[str],
    *,
    head_mask: Float[Tensor, "layer head"] | None = None,
    past: KVCache | None = None,
    embedded: Float[Tensor, "batch pos d_model"] | None = None,
) -> tuple[list[dict[int, Tensor]], Float[Tensor, "batch pos d_model"]]:
    """Values at each point by layer, and the output of the final norm.

    Args:
        model: a BLOOM.
        data: the examples.
        points: such as "attn.hook_z".
        head_mask: scales heads.
        past: filled with the run's keys and values.
        embedded: what layer 0 reads; None: the tokens' own embeddings.
    """
    kept: list[dict[int, Tensor]] = [{} for _ in points]
    hooks = [
        (f"blocks.{layer}.{point}", _keeping(layer, values))
        for layer in range(model.config.n_layer)
        for point, values in zip(points, kept, strict=True)
    ]
    with model.hooks(fwd_hooks=hooks):
        back = model.backbone(
            data.tokens if embedded is None else embedded,
            start_at_layer=None if embedded is None else 0,
            attention_mask=given(data.mask),
            head_mask=head_mask,
            past_key_values=past,
            use_cache=past is not None,
        )
    return kept, back.last


def given(mask: Tensor | None) -> Tensor | None:
    """A mask as a forward takes it."""
    return None if mask is None else mask.to(torch.long)


def _keeping(layer: int, kept: dict[int, Tensor]) -> Callable[..., None]:
    def keep(value: Tensor, hook: Any) -> None:
        kept[layer] = value

    keep.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
    return keep
