"""From a forward's arguments to checked tensors: ids, masks, positions."""

import inspect
import logging
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bloomlab.errors import CacheError, InputError, ShapeError
from bloomlab.model.alibi import AttentionBias, token_positions
from bloomlab.model.cache import KVCache
from bloomlab.model.config import BloomConfig
from bloomlab.model.extension import Extension

log = logging.getLogger("bloomlab")


def check_ids(ids: Any, vocab_size: int) -> None:
    """Raise unless `ids` is a [batch pos] tensor of ids in the vocabulary, at least one a row."""
    if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
        kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise InputError(
            f"input_ids is {kind}, expected text, or a tensor of integer token ids [batch pos]."
        )
    if ids.ndim != 2:
        fix = "Add a batch axis: ids[None]." if ids.ndim == 1 else ""
        raise ShapeError("input_ids", got=ids.shape, expected="[batch pos]", fix=fix)
    if not ids.numel():
        raise InputError("the prompt is empty: a forward needs at least one token a row.")
    if torch.compiler.is_compiling():
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= vocab_size:
        raise InputError(
            f"input_ids run from {low} to {high}, outside the vocabulary 0 to {vocab_size - 1}. "
            "Were they made by another model's tokenizer?"
        )


def warn_of_padding(ids: Any, config: BloomConfig) -> None:
    """Log if ids begin or end with padding; without a mask the model takes it for text."""
    pad = config.pad_token_id
    means_more = pad is None or pad in (config.bos_token_id, config.eos_token_id)
    if means_more or not isinstance(ids, Tensor) or ids.ndim != 2 or torch.compiler.is_compiling():
        return
    if ids.numel() and bool(((ids[:, 0] == pad) | (ids[:, -1] == pad)).any()):
        log.warning(
            "input_ids hold padding at an end but there is no attention_mask, so it is taken for "
            "text. Pass the mask: model.to_tokens_and_mask(texts) gives both.",
        )


def check_stream(name: str, stream: Any, d_model: int) -> None:
    """Raise unless `stream` is [batch pos d_model] with at least one position."""
    expected = f"[batch pos {d_model}]"
    if not isinstance(stream, Tensor) or not stream.is_floating_point():
        raise InputError(
            f"{name}: expected a floating-point tensor {expected}, got {type(stream).__name__}."
        )
    if stream.ndim != 3 or stream.shape[-1] != d_model or not stream.shape[1]:
        raise ShapeError(name, got=stream.shape, expected=expected)


def layer_range(start: int | None, stop: int | None, n_layer: int) -> tuple[int, int]:
    """First layer and end of the layers to run; negative numbers count from the end."""
    first, last = start or 0, n_layer if stop is None else stop
    first, last = (i + n_layer if i < 0 else i for i in (first, last))
    if not 0 <= first <= last <= n_layer:
        raise InputError(
            f"start_at_layer={start}, stop_at_layer={stop}: "
            f"expected 0 <= start <= stop <= {n_layer}."
        )
    return first, last


def layer_head_mask(
    head_mask: Any, *, batch: int, config: BloomConfig, device: torch.device
) -> Float[Tensor, "#batch layer head"] | None:
    """`head_mask` with all its axes; None stays None."""
    if head_mask is None:
        return None
    n_layer, n_head = config.n_layer, config.n_head
    try:
        mask = torch.as_tensor(head_mask, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"head_mask is {type(head_mask).__name__}, expected numbers [head], [layer head] or "
            "[batch layer head]; 1 keeps a head, 0 silences it."
        ) from error
    mask = mask if mask.is_floating_point() else mask.float()
    shapes = {1: (n_head,), 2: (n_layer, n_head), 3: (batch, n_layer, n_head)}
    fits = mask.shape == shapes.get(mask.ndim) or mask.shape == (1, n_layer, n_head)
    if not fits:
        raise ShapeError(
            "head_mask",
            got=mask.shape,
            expected=" or ".join(str(list(s)) for s in shapes.values())
            + ": [head], [layer head] or [batch layer head]",
        )
    return mask.expand(1, n_layer, n_head) if mask.ndim < 3 else mask


def visibility(
    attention_mask: Any,
    *,
    batch: int,
    new: int,
    cache: KVCache | None,
    device: torch.device,
) -> tuple[Bool[Tensor, "batch key"] | None, Bool[Tensor, "batch query"] | None]:
    """The attention mask of cached and of new tokens as booleans; None where it hides nothing.

    A cache that has evicted tokens also takes a mask over all it has seen. Then the part for the
    new tokens counts alone: what was padding before, the cache knows.
    """
    if attention_mask is None:
        return None, None
    try:
        mask = torch.as_tensor(attention_mask, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"attention_mask is {attention_mask!r}, expected 0s and 1s.") from error
    past = 0 if cache is None else len(cache)
    history = cache.seen + new if cache is not None and cache.has_evicted else None
    if mask.shape not in ((batch, past + new), (batch, history)):
        held = f" for {past} cached and {new} new tokens" if past else ""
        other = "" if history is None else f", or [{batch}, {history}] for all tokens ever seen"
        raise ShapeError(
            "attention_mask", got=mask.shape, expected=f"[{batch}, {past + new}]{held}{other}"
        )
    visible = mask == 1
    if not bool((visible | (mask == 0)).all()):
        raise InputError(
            "attention_mask holds values other than 0 and 1; additive masks are not supported."
        )
    if mask.shape[1] == history:
        visible = visible[:, -new:]
        return None, None if bool(visible.all()) else visible
    if bool(visible.all()) and not (cache is not None and cache.has_padding):
        return None, None
    return visible[:, :past], visible[:, past:]


def attention_bias(
    stream: Float[Tensor, "batch query d_model"],
    *,
    attention_mask: Any,
    cache: KVCache | None,
    cache_position: Tensor | None,
    mode: str,
) -> tuple[AttentionBias, Extension | None]:
    """Positions and visibility of one forward, and the extension of the cache by it."""
    batch, new, _ = stream.shape
    past, device = (0 if cache is None else cache.seen), stream.device
    columns = torch.arange(past, past + new, device=device)
    if cache_position is not None and cache_position.tolist() != columns.tolist():
        raise CacheError(
            f"cache_position is {cache_position.tolist()}, expected {columns.tolist()}: "
            f"the cache was given {past} tokens."
        )
    past_visible, valid = visibility(
        attention_mask, batch=batch, new=new, cache=cache, device=device
    )
    extension = None
    if cache is not None:
        extension = Extension(
            cache, batch=batch, new=new, device=device, valid=valid, past_visible=past_visible
        )
        query_positions, key_positions = extension.query_positions, extension.key_positions
        seen = extension.keys_seen
    else:
        positions = columns[None] if valid is None else token_positions(valid)
        query_positions, key_positions, seen = positions, positions, valid
    bias = AttentionBias(
        query_positions=query_positions,
        key_positions=key_positions,
        keys_seen=seen,
        mode=mode,
        dtype=stream.dtype,
    )
    return bias, extension


def name_all_arguments(model_class: type, passed_to: Callable[..., Any]) -> None:
    """Give a class's `forward` a signature that also names the arguments it passes on.

    transformers' Trainer drops the data columns that a forward's signature does not name.
    """
    forward = model_class.__dict__.get("forward")
    if forward is None:
        return
    own = inspect.signature(forward).parameters.values()
    named = [p for p in own if p.kind != p.VAR_KEYWORD]
    passed = inspect.signature(passed_to).parameters.values()
    rest = [p for p in passed if p.kind == p.KEYWORD_ONLY and p.name not in {n.name for n in named}]
    forward.__signature__ = inspect.Signature([*named, *rest])
