"""From what a generation is given to checked prompts: ids, mask, cache."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bloomlab.errors import CacheError, InputError, ShapeError
from bloomlab.model.cache import KVCache
from bloomlab.model.decode import Decoder
from bloomlab.model.inputs import check_ids, visibility


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What generation goes on from.

    Attributes:
        ids: token ids [batch pos].
        mask: 1 for tokens, 0 for padding, of each id.
        seen: the same of every column, for a thinned-out cache its own columns first.
        skip: how many of the ids the cache holds.
        cache: what the model read already; None to recompute everything.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Int[Tensor, "batch pos"]
    seen: Int[Tensor, "batch key"]
    skip: int
    cache: KVCache | None

    def repeated(self, n: int) -> "Prompt":
        """N rows of each, side by side; the cache is a fork, so its owner's stays as it is."""
        forked = None if self.cache is None else KVCache()
        if self.cache is not None and self.cache.n_rows:
            forked = self.cache.fork(n)
        ids, mask, seen = (t.repeat_interleave(n, 0) for t in (self.ids, self.mask, self.seen))
        return replace(self, ids=ids, mask=mask, seen=seen, cache=forked)

    def decoder(self, model: Any, head_mask: Any, **options: Any) -> Decoder:
        """What reads the rest of the prompt."""
        return Decoder(model, mask=self.seen, head_mask=head_mask, cache=self.cache, **options)


def read_prompt(
    model: Any, inputs: Any, *, attention_mask: Any, pad_token_id: Any, past: Any, use_cache: Any
) -> Prompt:
    """The prompt, with a cache that fits it.

    Raises:
        InputError: no tokens, padding at the end, a mask or cache that contradicts the rest.
        CacheError: no cache, or one of other rows.
    """
    thinned = isinstance(past, KVCache) and past._evicted
    if thinned and attention_mask is not None:
        raise InputError(
            "past_key_values was thinned out by evict; it goes on without an attention_mask."
        )
    if isinstance(inputs, str | list | tuple):
        inputs, own = model.to_tokens_and_mask(inputs)
        attention_mask = own if attention_mask is None else attention_mask
    if not isinstance(inputs, Tensor) or inputs.ndim != 2 or not inputs.numel():
        raise InputError(
            "generation needs a prompt of at least one token a row, token ids [batch pos], or text."
        )
    check_ids(inputs, model.config.vocab_size)
    ids = inputs.to(model.device).long()
    mask = _mask(model, ids, attention_mask, pad_token_id)
    if past is None:
        return Prompt(ids=ids, mask=mask, seen=mask, skip=0, cache=KVCache() if use_cache else None)
    if not use_cache:
        raise InputError("past_key_values is given, but use_cache=False would not use it.")
    if not isinstance(past, KVCache):  # transformers' cache: it grows with ours
        past = KVCache.lent(past, mask)
    if past.n_rows not in (0, len(ids)):
        raise CacheError(
            f"the cache holds {past.n_rows} rows, the prompt {len(ids)}; "
            "fork(n) or gather(rows) the cache to fit."
        )
    if thinned:
        return _after_eviction(ids, mask, past)
    if len(past) >= ids.shape[1]:
        raise InputError(
            f"past_key_values holds {len(past)} tokens, the prompt {ids.shape[1]}: it must hold "
            "the prompt's beginning, and the last token is needed for its logits. Pass "
            f"past_key_values=past.crop({ids.shape[1] - 1}), or the whole text so far as prompt."
        )
    return Prompt(ids=ids, mask=mask, seen=mask, skip=len(past), cache=past)


def read_forced(model: Any, given: Any, rows: int) -> Int[Tensor, "batch given"] | None:
    """The tokens that a generation is to take: a text, ids [given] for all rows or [batch given].

    Raises:
        InputError: of different lengths, none, or outside the vocabulary.
    """
    if given is None:
        return None
    texts = [given] if isinstance(given, str) else given
    if isinstance(texts, list | tuple) and texts and isinstance(texts[0], str):
        given, mask = model.to_tokens_and_mask(texts)
        if not bool(mask.all()):
            raise InputError(
                f"the forced texts have {mask.sum(-1).tolist()} tokens; rows go on together, so "
                "force as many in each, or see score_continuations."
            )
    try:
        ids = torch.as_tensor(given, device=model.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"forced is {given!r:.80}, expected text or ids [batch pos].") from error
    ids = ids[None] if ids.ndim == 1 else ids
    whole = not (ids.is_floating_point() or ids.is_complex()) and ids.dtype != torch.bool
    if ids.ndim != 2 or not whole or not ids.numel():
        raise InputError(f"forced is {given!r:.80}, expected text or token ids [batch pos].")
    check_ids(ids, model.config.vocab_size)
    if len(ids) not in (1, rows):
        raise ShapeError("forced", got=ids.shape, expected=f"[{rows}, pos], or [pos] for all rows")
    return ids.long().expand(rows, -1)


def _mask(model: Any, ids: Tensor, given: Any, pad_token_id: Any) -> Int[Tensor, "batch pos"]:
    if given is None:
        pad = model.config.pad_token_id if pad_token_id is None else pad_token_id
        looks_padded = pad is not None and pad != model.config.eos_token_id
        mask = (ids != pad).long() if looks_padded else torch.ones_like(ids)
    else:
        _, shown = visibility(
            given, batch=len(ids), new=ids.shape[1], cache=None, device=ids.device
        )
        mask = torch.ones_like(ids) if shown is None else shown.long()
    if not bool(mask[:, -1].all()):
        raise InputError(
            "the last prompt token of a row is padding; generation goes on from there. "
            "Pad on the left: tokenizer(texts, padding=True) does."
        )
    return mask


def _after_eviction(ids: Tensor, mask: Tensor, past: KVCache) -> Prompt:
    """A thinned-out cache cannot be told apart from the prompt: ids are what comes after it."""
    if ids.shape[1] >= (seen := int(past.next_position.max())):
        raise InputError(
            "past_key_values dropped tokens (evict or a policy), so the prompt can only be the new "
            f"tokens that follow it; got {ids.shape[1]} after {seen}. To go on from the text of a "
            "generation: generate(text[:, -1:], past_key_values=past). For more tokens, let a "
            "forward read all but the last: model(ids[:, :-1], past_key_values=past)."
        )
    columns = torch.cat([past.valid.long(), mask], -1)
    return Prompt(ids=ids, mask=mask, seen=columns, skip=0, cache=past)
