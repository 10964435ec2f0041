"""transformers' Cache objects: taken for a key-value cache, grown in place, and made from one."""

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer

from bloomlab.errors import CacheError, InputError, ShapeError
from bloomlab.model.cache_state import Held
from bloomlab.model.marks import Marks
from bloomlab.model.pieces import joined, whole


def imported(cache: Any, attention_mask: Any) -> dict[str, Any]:
    """The fields of a cache that holds what transformers' cache holds; the tensors are its own.

    transformers counts positions by the attention mask of each forward; so does this.

    Raises:
        CacheError: no cache of plain layers, or one whose layers do not fit together.
        ShapeError: a mask that does not cover what is cached.
    """
    check_kind(cache)
    held = [layer for layer in cache.layers if _length(layer)]
    if not held:
        return {}
    alike = all(layer.keys.shape == layer.values.shape for layer in held)
    # heads apart, which pruned layers have fewer of
    shapes = {(*layer.keys.shape[:1], *layer.keys.shape[2:]) for layer in held}
    if len(held) < len(cache.layers) or len(shapes) > 1 or not alike:
        raise CacheError(
            f"the layers of the {type(cache).__name__} hold keys and values of different shapes, "
            "or some none; expected the same tokens in all."
        )
    rows, _, length, _ = held[0].keys.shape
    return {
        "layers": [(whole(layer.keys, layer.values),) for layer in held],
        "rows": rows,
        "length": length,
        "seen": length,
        "marks": None
        if attention_mask is None
        else Marks.counted(_visible(attention_mask, rows, length, held[0].keys.device)),
    }


def check_kind(cache: Any) -> None:
    """Raise unless this is a cache that keeps every token of every layer as it was computed."""
    kind = type(cache).__name__
    if isinstance(cache, tuple | list):
        raise CacheError(
            f"past_key_values is a {kind}, transformers' old format; expected a bl.KVCache or a "
            "DynamicCache: transformers.DynamicCache(past_key_values) makes one of it."
        )
    layers = getattr(cache, "layers", None)
    if not isinstance(cache, Cache) or not isinstance(layers, list):
        raise CacheError(
            f"past_key_values is a {kind}, expected a bl.KVCache or transformers' DynamicCache."
        )
    kinds = {type(layer) for layer in layers} | {cache.layer_class_to_replicate or DynamicLayer}
    if others := {other.__name__ for other in kinds - {DynamicLayer}}:
        raise CacheError(
            f"past_key_values is a {kind} of {', '.join(sorted(others))}, which does not keep "
            "plain keys and values of every token; expected a bl.KVCache or a DynamicCache. "
            "(Static shapes, sinks and windows: bl.KVCache has its own.)"
        )
    if cache.offloading:
        raise CacheError(
            f"past_key_values is an offloading {kind}; expected a DynamicCache without offloading, "
            "or a bl.KVCache, which past.to('cpu') offloads."
        )


def give_back(cache: Any, layers: list[tuple[Tensor, Tensor]]) -> None:
    """Put grown keys and values [batch head key d_head] into transformers' cache."""
    for index, (k, v) in enumerate(layers):
        if index < len(cache.layers) and _length(cache.layers[index]):
            cache.layers[index].keys, cache.layers[index].values = k, v
        else:
            cache.update(k, v, index)


def _length(layer: Any) -> int:
    """Tokens in a layer; transformers' own count is 0 where there are no heads."""
    return layer.keys.shape[2] if layer.is_initialized and layer.keys.ndim == 4 else 0


def exported(cache: Held) -> DynamicCache:
    """A DynamicCache with a copy of the keys and values.

    Raises:
        CacheError: positions with gaps.
    """
    if cache.has_padding:
        marks = cache.marks
        plain = Marks.counted(marks.valid) or Marks.of_rows(cache.n_rows, len(cache), cache.device)
        if not all(torch.equal(*two) for two in zip(plain, marks, strict=True)):
            raise CacheError(
                "to_hf: tokens were evicted and positions have gaps; transformers counts them "
                "without. evict(..., reindex=True) does so too."
            )
    new = DynamicCache()
    for index, pieces in enumerate(cache._layers):
        k, v = joined(pieces, cache.n_rows)
        new.update(k.contiguous(), v.contiguous(), index)  # which copies once more
    return new


def _visible(mask: Any, rows: int, length: int, device: Any) -> Bool[Tensor, "batch key"]:
    try:
        mask = torch.as_tensor(mask, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"attention_mask is {mask!r}, expected 0s and 1s.") from error
    if mask.ndim != 2 or len(mask) != rows or mask.shape[1] < length:
        raise ShapeError(
            "attention_mask", got=mask.shape, expected=f"[{rows}, {length} or more]: [batch key]"
        )
    return mask[:, :length] == 1
