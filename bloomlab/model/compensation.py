"""What pruned parts wrote on average, to be folded into the bias of those that stay."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.model.dataset import dataset

COMPENSATIONS = ("constant", "mean", "zero")
ROWS = 16  # of a forward over the data


def check_compensation(compensate: Any, data: Any, values: Any) -> None:
    """Raise unless the compensation is known and has what it needs, and no more.

    Raises:
        InputError: what is missing or of no use.
    """
    if compensate not in COMPENSATIONS:
        raise InputError(f"compensate is {compensate!r}, expected one of {COMPENSATIONS}.")
    for name, given, wanted in (("data", data, "mean"), ("values", values, "constant")):
        if (given is not None) != (compensate == wanted):
            what = "is of no use" if compensate != wanted else "is missing"
            raise InputError(
                f"compensate={compensate!r}: {name} {what}; {name}= belongs to "
                f"compensate={wanted!r}."
            )


@torch.no_grad()
def mean_activations(
    model: Any, names: Sequence[str], data: Any
) -> dict[str, Float[Tensor, "*activation"]]:
    """Mean of what passes hook points [batch pos *activation] over all attended tokens of `data`.

    Args:
        model: what runs.
        names: of the hook points.
        data: text, texts, ids [batch pos], or a dict of ids and attention mask.

    Raises:
        InputError: no data, or the model is in training mode with dropout.
        ShapeError: ids or mask of the wrong shape.
    """
    config = model.config
    if model.training and (config.hidden_dropout or config.attention_dropout):
        raise InputError("the model is in training mode, so dropout would blur the means: eval().")
    texts, totals = dataset(model, data), {}
    wide = torch.promote_types(model.dtype, torch.float32)
    for _, part in texts.chunks(ROWS):
        seen = part.attended

        def add(value: Tensor, hook: Any, seen: Tensor = seen) -> None:
            totals[hook.name] = totals.get(hook.name, 0) + value[seen].to(wide).sum(0)

        mask = None if part.mask is None else part.mask.long()
        with model.hooks(fwd_hooks=[(name, add) for name in names]):
            model.backbone(part.tokens, attention_mask=mask, use_cache=False)
    n = texts.attended.sum()
    return {name: totals[name] / n for name in names}


def folded(
    bias: Float[Tensor, " d_model"],
    weight: Float[Tensor, "d_model pruned"],
    values: Float[Tensor, " pruned"],
) -> Float[Tensor, " d_model"]:
    """The bias plus what inputs that are constant would add to it, rounded once.

    Raises:
        InputError: such inputs that are no numbers.
    """
    if not bool(values.isfinite().all()):
        raise InputError("what the pruned parts are taken to write is NaN or infinite in places.")
    wide = torch.promote_types(bias.dtype, torch.float32)
    return (bias.to(wide) + weight.to(wide) @ values.to(weight.device, wide)).to(bias.dtype)
