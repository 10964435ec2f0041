"""Which heads and neurons a pruned layer has; heads keep the numbers they had."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import CheckpointError, ConfigError, InputError
from bloomlab.model.alibi import alibi_slopes


def places_of(heads: Iterable[int], kept: Sequence[int], *, layer: int) -> list[int]:
    """Where heads stand among the kept ones.

    Raises:
        InputError: a head that was pruned, or that there never was.
    """
    places = {head: place for place, head in enumerate(kept)}
    found = list(heads)
    for head in found:
        if head not in places:
            raise InputError(
                f"there is no L{layer}H{head} (pruned, or there never was one); layer {layer} has "
                f"heads {', '.join(map(str, kept)) or 'none'}."
            )
    return [places[head] for head in found]


def check_kept(name: str, kept: Any, n_layer: int, n: int) -> None:
    """Raise unless `kept` is None or lists numbers below `n` for each layer.

    Raises:
        ConfigError: which layer's list is wrong.
    """
    if kept is None:
        return
    if not isinstance(kept, list) or len(kept) != n_layer:
        raise ConfigError(f"{name} is {kept!r:.80}, expected a list for each of {n_layer} layers.")
    for layer, some in enumerate(kept):
        whole = isinstance(some, list) and all(type(i) is int for i in some)
        if not whole or sorted(set(some)) != some or (some and not 0 <= some[0] <= some[-1] < n):
            raise ConfigError(
                f"{name} of layer {layer} is {some!r:.80}, expected some of 0 to {n - 1}, sorted."
            )


def check_slopes(slopes: Float[Tensor, " head"], config: Any, layer: int, source: str) -> None:
    """Raise unless a pruned layer's slopes are those of its heads, or the file says otherwise.

    Raises:
        CheckpointError: both sets of slopes.
    """
    if config.kept_heads is None or layer in (config.edited_slopes or ()):
        return
    expected = alibi_slopes(config.n_head)[list(config.heads_of(layer))]
    if not torch.equal(slopes, expected):
        raise CheckpointError(
            f"{source}: the ALiBi slopes of layer {layer} are {slopes.tolist()}, but its heads "
            f"{list(config.heads_of(layer))} have {expected.tolist()}. The file is damaged, or its "
            "kept_heads were changed."
        )
