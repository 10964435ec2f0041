"""Losses in nats, and which positions get logits at all."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bloomlab.errors import InputError, ShapeError

IGNORED = -100  # label that counts for nothing


def kept(
    stream: Float[Tensor, "batch pos d_model"], keep: int | Tensor
) -> Float[Tensor, "*kept d_model"]:
    """The positions whose logits are asked for.

    `keep` is a number (the last n; 0 all), positions [kept] or [batch kept], or a mask [pos] or
    [batch pos] (which flattens: rows may keep different numbers).
    """
    if isinstance(keep, int):
        if keep < 0:
            raise InputError(f"logits_to_keep is {keep}, expected 0 (all) or the last n positions.")
        return stream[:, -keep:] if keep else stream
    if keep.ndim == 1:
        return stream[:, keep]
    return stream[keep] if keep.dtype == torch.bool else stream.take_along_dim(keep[:, :, None], 1)


def next_token_loss(
    logits: Float[Tensor, "batch pos vocab"],
    labels: Tensor,
    *,
    num_items: Tensor | int | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of each token given those before it, in nats; mean, or sum / `num_items`.

    NaN when every label is ignored, as in transformers.
    """
    check_shape(labels, logits.shape[:2], "[batch pos]")
    check_labels(labels, logits.shape[-1])
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shifted = F.pad(labels, (0, 1), value=IGNORED)[:, 1:].to(logits.device)
    reduction = "mean" if num_items is None else "sum"
    loss = F.cross_entropy(
        wide.flatten(0, 1), shifted.flatten(), ignore_index=IGNORED, reduction=reduction
    )
    return loss if num_items is None else loss / torch.as_tensor(num_items, device=loss.device)


def span_loss(logits: Float[Tensor, "batch pos"], positions: Tensor) -> Float[Tensor, ""]:
    """Cross-entropy over positions, in nats; targets beyond the text are ignored."""
    n = logits.shape[1]
    targets = positions.to(logits.device)
    targets = (targets.squeeze(-1) if targets.ndim > 1 else targets).clamp(0, n)
    return F.cross_entropy(logits, targets, ignore_index=n)


def as_numbers(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels to compare with logits: floating-point ones unrounded, others in the logits' dtype."""
    return labels if labels.is_floating_point() else labels.to(logits.dtype)


def check_shape(labels: Tensor, shape: Sequence[int], axes: str) -> None:
    """Raise unless there is a label for each entry; a last axis of one is let pass."""
    if not isinstance(labels, Tensor):
        raise InputError(f"labels is {type(labels).__name__}, expected a tensor {axes}.")
    if labels.shape not in (shape, (*shape, 1)):
        raise ShapeError("labels", got=labels.shape, expected=f"{list(shape)} ({axes})")


def check_labels(labels: Tensor, n: int) -> None:
    """Raise unless every label is -100 or in 0 ... n - 1."""
    used = labels[labels != IGNORED]
    if len(used) and not 0 <= int(used.min()) <= int(used.max()) < n:
        raise InputError(
            f"labels run from {int(used.min())} to {int(used.max())}, "
            f"expected 0 to {n - 1} or {IGNORED}."
        )
