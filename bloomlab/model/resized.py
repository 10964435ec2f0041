"""A model of the same class with other sizes: what every kind of pruning ends in."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bloomlab.errors import UnsupportedError
from bloomlab.model.config import BloomConfig

SLOPES = ".attn.slopes"  # a parameter only where someone made it one


def weights_of(model: Any) -> dict[str, Tensor]:
    """The parameters of a model by name, without ALiBi's slopes."""
    return {n: value for n, value in model.named_parameters() if not n.endswith(SLOPES)}


def picked_slopes(slopes: Tensor, places: Sequence[int]) -> Tensor:
    """A copy of some heads' slopes; trainable ones stay so."""
    new = slopes.detach()[list(places)].clone()
    return nn.Parameter(new, slopes.requires_grad) if isinstance(slopes, nn.Parameter) else new


def resized(
    model: Any, *, config: BloomConfig, weights: Mapping[str, Tensor], slopes: Sequence[Tensor]
) -> Any:
    """A model of the class, mode and tokenizer of another; no memory is shared, no hook taken over.

    Args:
        model: the other one.
        config: the new sizes.
        weights: every parameter by its name here; the other model's own are copied.
        slopes: ALiBi's, of every layer.

    Raises:
        UnsupportedError: the model has parameters that no BLOOM has (an adapter's, say).
    """
    config.edited_slopes = None  # found anew when the model is saved
    with torch.device("meta"):
        made = type(model)(config)
    names = [name for name, _ in made.named_parameters()]
    if odd := sorted(set(weights) ^ set(names)):
        raise UnsupportedError(
            f"this {type(model).__name__} has other parameters than a plain one, such as "
            f"{odd[0]!r}: take adapters off (or merge them) before pruning."
        )
    own = dict(model.named_parameters())
    state = {
        name: value.detach().clone() if isinstance(value, nn.Parameter) else value
        for name, value in weights.items()
    }
    made.load_state_dict(state, assign=True)
    for name, value in made.named_parameters():
        given = weights[name]
        before = given if isinstance(given, nn.Parameter) else own[name]
        value.requires_grad_(before.requires_grad)
    for block, some in zip(made.blocks, slopes, strict=True):
        block.attn.slopes = some
    made.tokenizer = model.tokenizer
    return made.train(model.training)
