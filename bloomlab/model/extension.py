"""One forward's addition to a cache, which keeps it only once the whole forward is done."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bloomlab.errors import CacheError, ShapeError
from bloomlab.model.cache import KVCache
from bloomlab.model.marks import Marks
from bloomlab.model.pieces import Pieces, appended


class Extension:
    """What a cache and the new tokens are together; the cache changes at `commit`.

    Args:
        cache: what the new tokens follow; unchanged until `commit`.
        batch: rows of the new tokens.
        new: new tokens a row.
        device: where the new tokens are.
        valid: False where a new token is padding [batch query]; None: nowhere.
        past_visible: False for cached tokens that this forward may not see; None: all.

    Attributes:
        query_positions: position of each new token [batch query]; one row if all are alike.
        key_positions: position of each old and new token [batch key]; one row if all are alike.
        keys_seen: False for tokens no query may see [batch key]; None: every token is seen.
        watches_pattern: whether every layer must hand its pattern to `saw`.
    """

    def __init__(
        self,
        cache: KVCache,
        *,
        batch: int,
        new: int,
        device: torch.device,
        valid: Bool[Tensor, "batch query"] | None,
        past_visible: Bool[Tensor, "batch key"] | None,
    ) -> None:
        if cache.n_rows not in (0, batch):
            raise CacheError(
                f"the cache holds {cache.n_rows} rows, the input {batch}; "
                "fork(n) or gather(rows) the cache to fit."
            )
        if cache.n_rows and cache.device != device:
            raise CacheError(
                f"the cache is on {cache.device}, the input on {device}; "
                "move it: past = past.to(device)."
            )
        self._cache, self._past = cache, list(cache._layers)
        self._layers: list[Pieces] = []
        self._rows, self._new, self._valid = batch, new, valid
        self.watches_pattern = cache.policy is not None and cache.policy.watches_pattern
        self._received: dict[int, Tensor] = {}
        length = len(cache)
        self._marks, self.keys_seen = None, None
        if cache._marks is None and valid is None and past_visible is None:
            self.key_positions = torch.arange(length + new, device=device)[None]
            self.query_positions = self.key_positions[:, length:]
            return
        old = cache.marks if cache.n_rows else Marks.of_rows(batch, 0, device)
        if past_visible is not None and bool((past_visible & ~old.valid).any()):
            raise CacheError(
                "attention_mask shows cached tokens that were padding when they were cached; "
                "compute the cache again with the mask you mean."
            )
        self._marks = old.followed_by(
            torch.ones(batch, new, dtype=torch.bool, device=device) if valid is None else valid
        )
        self.key_positions = self._marks.positions
        self.query_positions = self.key_positions[:, length:]
        seen = self._marks.valid
        if past_visible is not None:
            seen = torch.cat([old.valid & past_visible, seen[:, length:]], -1)
        self.keys_seen = seen

    def update(
        self,
        layer: int,
        k: Float[Tensor, "batch head query d_head"],
        v: Float[Tensor, "batch head query d_head"],
    ) -> Pieces:
        """All keys and values of a layer, past ones first."""
        past = self._past[layer] if layer < len(self._past) else ()
        if len(self._cache) and not past:
            raise CacheError(f"the cache holds {len(self._past)} layers; the model has more.")
        if past and past[0].k.dtype != k.dtype:
            raise CacheError(f"the cache holds {past[0].k.dtype}, the model computes in {k.dtype}.")
        if past and past[0].k.shape[1::2] != k.shape[1::2]:
            raise ShapeError(
                f"the cache's layer {layer} [head, d_head]",
                got=past[0].k.shape[1::2],
                expected=str(list(k.shape[1::2])),
                fix="It was filled by another model.",
            )
        grown = appended(past, k, v)
        self._layers[layer:] = [grown]  # backward may run a layer once more
        return grown

    def commit(self, n_layer: int) -> None:
        """Make the new tokens part of the cache, after all `n_layer` layers were updated."""
        held = max(len(self._layers), len(self._past))
        if held != n_layer:
            raise CacheError(f"the cache holds {held} layers, the model {n_layer}.")
        self._cache._grow(
            self._layers,
            rows=self._rows,
            new=self._new,
            marks=self._marks,
            received=self._received_so_far(),
        )

    def saw(self, layer: int, pattern: Float[Tensor, "batch head query key"]) -> None:
        """Note how much attention each token receives in a layer, for the cache's policy."""
        pattern = pattern.detach()
        if self._valid is not None:
            pattern = pattern * self._valid[:, None, :, None]
        wide = torch.promote_types(pattern.dtype, torch.float32)
        self._received[layer] = pattern.sum((1, 2), dtype=wide)  # backward may see a layer again

    def _received_so_far(self) -> Tensor | None:
        if not self._received:
            return None
        new = torch.stack([self._received[layer] for layer in sorted(self._received)]).sum(0)
        before = self._cache._received
        if before is not None:
            new[:, : before.shape[1]] += before
        return new
