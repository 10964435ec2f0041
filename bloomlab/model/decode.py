"""Decoder: new token ids through the model, the cache growing by them."""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bloomlab.errors import CacheError
from bloomlab.model.cache import KVCache
from bloomlab.model.graphs import GraphedDecoder, worth_capturing
from bloomlab.model.inputs import layer_head_mask
from bloomlab.model.lean import LeanDecoder, Products, products
from bloomlab.model.passing import suits

GROWTH = 256  # columns by which mask and text grow, at least
STRIDE = 256  # columns for which lean steps make room at a time
MOST_COPIES = 16  # of a shared past; more rows go on sharing it, each step a forward


class Decoder:
    """Rows of text that the model reads piece by piece; columns count padding and cached tokens.

    Args:
        model: a BLOOM with a language-model head.
        mask: 1 for tokens, 0 for padding [batch pos]; of the whole prompt, cached tokens included.
        head_mask: as in a forward; in force at every step.
        cache: what was read already, and where the rest goes; None recomputes the text each time.
        until: columns the text may reach; then steps of one token take the lean way where nothing
            forbids it.
        alone: whether nobody touches the model between the steps; then weights may be copied into
            a faster order, and nothing is looked at again.

    Attributes:
        cache: the cache; another one after `reorder` and `repeat`.
        length: number of columns read.
    """

    def __init__(
        self,
        model: Any,
        *,
        mask: Int[Tensor, "batch pos"],
        head_mask: Any = None,
        cache: KVCache | None = None,
        until: int = 0,
        alone: bool = False,
    ) -> None:
        self._until, self._alone = until, alone
        self._lean: LeanDecoder | GraphedDecoder | None = None
        self._multiply: Products | None = None
        self.model, self.head_mask, self.cache = model, head_mask, cache
        self.length = 0 if cache is None else len(cache)
        self._before: dict[str, Any] = {}  # the cache before the last step, if it drops tokens
        self._prompt, self._mask = mask.shape[1], mask  # what lies beyond the prompt is ones
        self._text = mask.new_zeros(len(mask), 0) if cache is None else None
        # the cache knows its padding; a mask that hides more has to come along at every step
        held = mask[:, : self.length] == 0
        self._hides_more = cache is not None and bool(self.length and (cache.valid & held).any())

    @property
    def mask(self) -> Int[Tensor, "batch pos"]:
        """1 for tokens, 0 for padding, of all columns read."""
        self._mask = _with_room(self._mask, self.length, value=1)
        return self._mask[:, : self.length]

    def advance(self, ids: Int[Tensor, "batch new"]) -> Float[Tensor, "batch vocab"]:
        """Read new tokens; the logits after the last one.

        A forward that raises or is interrupted leaves cache and decoder as they were.
        """
        end = self.length + ids.shape[1]
        if self.cache is not None:
            self.model.require_whole_text(len(self.cache))
            self._require_own_growth(self.cache)
        if self.cache is not None and self.cache.policy is not None:
            self._before = vars(self.cache) | {"_layers": list(self.cache._layers)}
        lean = self._lean_way() if ids.shape[1] == 1 and self.length < self._until else None
        if lean is not None:
            logits = lean.advance(ids[:, 0])
            self.length = end
            return logits
        self._mask = _with_room(self._mask, end, value=1)
        needs_mask = self._hides_more or self._text is not None or self.length < self._prompt
        if self._text is not None:
            self._text = _with_room(self._text, end, value=0)
            self._text[:, self.length : end] = ids
            ids = self._text[:, :end]
        logits = self.model(
            ids,
            attention_mask=self._mask[:, :end] if needs_mask else None,
            head_mask=self.head_mask,
            past_key_values=self.cache,
            use_cache=self.cache is not None,
            logits_to_keep=1,
            return_type="logits",
        )
        self.length = end
        return logits[:, -1]

    def _require_own_growth(self, cache: KVCache) -> None:
        if cache.policy is None and len(cache) != self.length:
            raise CacheError(
                f"the cache holds {len(cache)} tokens where {self.length} were read: something "
                "else grew or cropped it between two steps. Give that a fork() of it."
            )

    def _lean_way(self) -> LeanDecoder | GraphedDecoder | None:
        cache, model = self.cache, self.model
        if not cache or self._hides_more or self.length < self._prompt:
            return None
        lean = self._lean
        if lean is not None and lean.holds(cache) and (self._alone or lean.is_current()):
            return lean
        self._lean = None
        foreign = cache.policy is not None or cache.has_lender
        if foreign or cache.n_copies > MOST_COPIES or not suits(model):
            return None
        masks = layer_head_mask(
            self.head_mask, batch=cache.n_rows, config=model.config, device=model.device
        )
        steps = self._until - self.length
        if self._multiply is None or not self._alone:
            pack = self._alone
            self._multiply = products(model, rows=cache.n_rows, steps=steps, pack=pack)
        lean = LeanDecoder(
            model,
            cache,
            steps=min(steps, STRIDE),
            head_mask=masks,
            multiply=self._multiply,
        )
        self._lean = GraphedDecoder(lean) if worth_capturing(lean, steps) else lean
        return self._lean

    def reorder(self, rows: Int[Tensor, " row"], *, since: int = 0) -> None:
        """Go on with these rows, in this order; a row may come several times.

        Rows that replace each other are alike, mask and all, before the column `since`.
        """
        lean = self._lean
        cache = self.cache
        if since and cache and lean is not None and lean.holds(cache):
            lean.reorder(rows, since=since)  # in place: nobody else has this room
            return
        if cache is not None:
            self.cache = cache.gather(rows)
        self._take(rows)

    def repeat(self, n: int) -> None:
        """Go on with n copies of every row, side by side; their past is shared."""
        rows = torch.arange(len(self._mask), device=self._mask.device)
        if self.cache is not None:
            self.cache = self.cache.fork(n)
        self._take(rows.repeat_interleave(n))

    def fork(self) -> "Decoder":
        """A decoder that goes its own way from here; this one is left alone."""
        twin = copy.copy(self)
        twin._lean, twin._until = None, 0  # whatever it reads, the shared past is not copied
        if self.cache is not None:
            empty = KVCache(policy=self.cache.policy)
            twin.cache = self.cache.fork() if self.cache.n_rows else empty
        twin._text = None if self._text is None else self._text.clone()
        return twin

    def rewind(self, length: int) -> None:
        """Back to when only the first `length` columns had been read, in the cache itself too.

        A cache that drops tokens can only go back by one step.
        """
        if self.cache is not None and length != self.length:
            drops = self.cache.policy is not None
            earlier = self._before if drops else vars(self.cache.crop(length))
            vars(self.cache).update(earlier)
        self.length = length

    def _take(self, rows: Tensor) -> None:
        self._lean = self._multiply = None
        self._mask = self._mask[rows]
        self._text = None if self._text is None else self._text[rows]
        if isinstance(self.head_mask, Tensor) and self.head_mask.ndim == 3:
            self.head_mask = self.head_mask[rows if len(self.head_mask) > 1 else slice(None)]


def _with_room(columns: Tensor, end: int, *, value: int) -> Tensor:
    missing = end - columns.shape[1]
    return F.pad(columns, (0, max(missing, GROWTH)), value=value) if missing > 0 else columns
