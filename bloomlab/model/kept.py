"""Which heads and neurons a pruned layer has; heads keep the numbers they had."""

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
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


def chosen_by_layer(
    chosen: Any, numbers: Mapping[int, Sequence[int]], *, kind: str
) -> dict[int, list[int]]:
    """The parts of each layer that a caller chose, sorted; layers with none left out.

    Args:
        chosen: {layer: numbers of its parts}, or (layer, number) pairs.
        numbers: of the parts that each layer has.
        kind: what the parts are called.

    Raises:
        InputError: something else; a layer or part that is not there.
    """
    found: dict[int, set[int]] = {}
    try:
        items = chosen.items() if isinstance(chosen, Mapping) else [(a, [b]) for a, b in chosen]
        for layer, some in items:
            listed: Any = some.tolist() if isinstance(some, Tensor | np.ndarray) else some
            listed = listed if isinstance(listed, Iterable) else [listed]
            found.setdefault(whole_number(layer), set()).update(map(whole_number, listed))
    except (TypeError, ValueError):
        raise InputError(
            f"{kind}s is {chosen!r:.80}, expected {{layer: its {kind}s}} or (layer, {kind}) pairs."
        ) from None
    for layer, some in found.items():
        if layer not in numbers:
            raise InputError(f"there is no layer {layer}; they run from 0 to {len(numbers) - 1}.")
        if missing := sorted(some - set(numbers[layer])):
            raise InputError(
                f"layer {layer} has no {kind} {missing[0]} (pruned, or there never was one); it "
                f"has {ranges(numbers[layer])}."
            )
    if not any(found.values()):
        raise InputError(f"no {kind}s to prune: {chosen!r:.80}.")
    return {layer: sorted(some) for layer, some in sorted(found.items()) if some}


def ranges(numbers: Iterable[int]) -> str:
    """Sorted numbers in words: '0 to 3, 5'; 'none'."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join(" to ".join(map(str, run)) for run in runs) or "none"


def whole_number(value: Any) -> int:
    """A number that counts; a TypeError for anything else."""
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


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


def check_layers(name: str, layers: Any, n: int | None = None) -> None:
    """Raise unless `layers` is None or lists numbers of layers, sorted; `n` of them.

    Raises:
        ConfigError: what was found.
    """
    if layers is None:
        return
    whole = isinstance(layers, list) and all(type(i) is int and i >= 0 for i in layers)
    if not whole or sorted(set(layers)) != layers or n not in (None, len(layers)):
        several = "" if n is None else f"{n} "
        raise ConfigError(f"{name} is {layers!r:.80}, expected {several}numbers of layers, sorted.")


def check_slopes(slopes: Float[Tensor, " head"], config: Any, layer: int, source: str) -> None:
    """Raise unless a pruned layer's slopes are those of its heads, or the file says otherwise.

    Raises:
        CheckpointError: both sets of slopes.
    """
    if not bool(slopes.isfinite().all()):
        raise CheckpointError(f"{source}: ALiBi slopes of layer {layer} are {slopes.tolist()}.")
    if config.kept_heads is None or layer in (config.edited_slopes or ()):
        return
    expected = alibi_slopes(config.n_head)[list(config.heads_of(layer))]
    if not torch.equal(slopes, expected):
        raise CheckpointError(
            f"{source}: the ALiBi slopes of layer {layer} are {slopes.tolist()}, but its heads "
            f"{list(config.heads_of(layer))} have {expected.tolist()}. The file is damaged, or its "
            "kept_heads were changed."
        )
