"""ALiBi: attention with linear biases (Press et al., 2022, arXiv:2108.12409), and who sees whom."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def alibi_slopes(n_head: int) -> Float[Tensor, " head"]:
    """Slope of each head in logits per token, float32 on the CPU: 2^(-8/n), 2^(-16/n), ...

    For head counts that are not a power of two (BLOOM-176B has 112) the remaining heads take
    every second slope of the series for twice the next lower power, appended at the end.
    """
    n = 2 ** math.floor(math.log2(n_head))
    base, extra_base = (2 ** (-(2.0 ** -(math.log2(m) - 3))) for m in (n, 2 * n))
    powers = [(base, i) for i in range(1, n + 1)]
    powers += [(extra_base, i) for i in range(1, 2 * (n_head - n), 2)]
    # float32 powers of a float32 base, as transformers has them: the last bit counts for parity
    bases = torch.tensor([b for b, _ in powers], device="cpu", dtype=torch.float32)
    return bases.pow(torch.tensor([i for _, i in powers], device="cpu", dtype=torch.int32))


def token_positions(attention_mask: Bool[Tensor, "batch key"]) -> Int[Tensor, "batch key"]:
    """Position of each attended token among the attended ones; unattended tokens get 0."""
    return (attention_mask.cumsum(-1) - 1) * attention_mask


def absolute_alibi(
    slopes: Float[Tensor, " head"], key_positions: Int[Tensor, "batch key"]
) -> Float[Tensor, "batch head 1 key"]:
    """Slope x key position, in logits, float32: transformers' form, the same for every query.

    It differs from the paper's -slope x distance by a constant per row, which softmax ignores;
    rounded to bfloat16 it is a staircase (long prompts: use `relative_alibi`).
    """
    return slopes[:, None, None] * key_positions[:, None, None, :]


def relative_alibi(
    slopes: Float[Tensor, " head"],
    query_positions: Int[Tensor, "batch query"],
    key_positions: Int[Tensor, "batch key"],
) -> Float[Tensor, "batch head query key"]:
    """-slope x (query position - key position), in logits, float32; 0 on the diagonal."""
    distance = query_positions[:, None, :, None] - key_positions[:, None, None, :]
    return -slopes[:, None, None] * distance


def rounds(mode: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether every operation of attention rounds as transformers' does, for the same bits.

    In half precision on a CPU, in "hf" mode: there these operations, in blocks, are the fastest
    too. A GPU's fused kernels keep scores in float32; the bias is rounded all the same.
    """
    return mode == "hf" and dtype in (torch.bfloat16, torch.float16) and device.type == "cpu"


class AttentionBias:
    """What all layers of one forward share: positions, visibility and, per slopes, the bias.

    A query that may see nothing (leading padding) spreads evenly over all keys, as in
    transformers; never NaN, in any dtype.

    Args:
        query_positions: position of each query; one row if all are alike.
        key_positions: position of each key; one row if all are alike.
        keys_seen: False for keys no query sees (padding); None where every key is seen.
        mode: form of the bias, "hf" or "exact".
        dtype: number format of queries and keys.
        first: column of the first query among the keys; None: the queries are the last keys.
        columns: column of each query, where they do not follow each other from `first` on.
        rounded: whether every operation rounds as transformers' does; None: as `rounds` says.
    """

    def __init__(
        self,
        *,
        query_positions: Int[Tensor, "#batch query"],
        key_positions: Int[Tensor, "#batch key"],
        keys_seen: Bool[Tensor, "batch key"] | None,
        mode: str,
        dtype: torch.dtype,
        first: int | None = None,
        columns: Int[Tensor, " query"] | None = None,
        rounded: bool | None = None,
    ) -> None:
        self.query_positions, self.key_positions = query_positions, key_positions
        self.keys_seen, self.mode = keys_seen, mode
        self.n_query, self.n_key = query_positions.shape[-1], key_positions.shape[-1]
        self.first = self.n_key - self.n_query if first is None else first
        self.columns = columns
        self.device = key_positions.device
        autocast = torch.is_autocast_enabled(self.device.type)
        self.dtype = torch.get_autocast_dtype(self.device.type) if autocast else dtype
        # CPU kernels take a float32 mask beside half precision: float16 then cannot overflow. On a
        # GPU the mask has the model's format, and "exact" is rounded to it.
        wide = self.device.type == "cpu" and not autocast
        self.mask_dtype = torch.promote_types(dtype, torch.float32) if wide else self.dtype
        self.rounded = rounds(mode, self.dtype, self.device) if rounded is None else rounded
        self._made: dict[object, Any] = {}
        self._block_of: tuple[AttentionBias, int] | None = None

    @property
    def visible(self) -> Bool[Tensor, "#batch 1 query key"] | None:
        """Which query sees which key; None where every query sees every key."""
        return self.once("visible", self._visible)

    @property
    def has_blind_queries(self) -> bool:
        """Whether some query sees no key at all (leading padding)."""
        return self.once("blind", self._has_blind_queries)

    def alibi(self, slopes: Float[Tensor, " head"]) -> Float[Tensor, "#batch head #query key"]:
        """The bias alone, in logits: rounded to the model's dtype ("hf") or float32 ("exact")."""
        return self.once(("alibi", content(slopes)), lambda: self._alibi(slopes))

    def additive(self, slopes: Float[Tensor, " head"]) -> Float[Tensor, "#batch head #query key"]:
        """Bias and mask in one tensor, as a fused kernel takes them."""
        return self.once(("additive", content(slopes)), lambda: self.masked(self.alibi(slopes)))

    def baked(self, slopes: Float[Tensor, " head"]) -> Float[Tensor, "#batch head #query key"]:
        """Bias and mask in one tensor, in the format in which scores are summed."""
        if not self.rounded:
            return self.additive(slopes)
        if self.visible is None:
            return self.alibi(slopes)
        return torch.where(self.visible, self.alibi(slopes), torch.finfo(self.dtype).min)

    def masked(self, alibi: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`alibi` with the invisible keys at the most negative number, for a fused kernel."""
        alibi = alibi.to(self.mask_dtype)
        if self.visible is None:
            return alibi
        return torch.where(self.visible, alibi, torch.finfo(self.mask_dtype).min)

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "#batch 1 query key"]:
        """0 where a query sees a key, the dtype's most negative number elsewhere, to be added."""
        return self.once(("mask", dtype), lambda: self._mask(dtype))

    def blocks(self, size: int) -> Iterator[tuple[slice, "AttentionBias"]]:
        """The queries in groups of at most `size`, each with the bias onto the keys it may need.

        Keys after a group's last query are left out, unless its queries may be blind and spread
        over all keys. What a group makes lives as long as the group: memory grows with the keys.
        """
        if self.n_query <= size:
            yield slice(0, self.n_query), self
            return
        for start in range(0, self.n_query, size):
            rows = slice(start, min(start + size, self.n_query))
            n_key = self.n_key if self.has_blind_queries else self.first + rows.stop
            part = AttentionBias(
                query_positions=self.query_positions[:, rows],
                key_positions=self.key_positions[:, :n_key],
                keys_seen=None if self.keys_seen is None else self.keys_seen[:, :n_key],
                mode=self.mode,
                dtype=self.dtype,
                first=self.first + start,
                rounded=self.rounded,
            )
            part._block_of = self, size
            yield rows, part

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """What `make` made the first time it was asked for under this key."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _alibi(self, slopes: Tensor) -> Tensor:
        slopes = slopes.to(self.device)
        if self.mode == "hf":
            return absolute_alibi(slopes, self.key_positions).to(self.dtype)
        return relative_alibi(slopes, self.query_positions, self.key_positions)

    def _visible(self) -> Tensor | None:
        keys = None if self.keys_seen is None else self.keys_seen[:, None, None, :]
        if self.first == self.n_key - 1:  # a single query at the end
            return keys
        keys_at = torch.arange(self.n_key, device=self.device)
        own = self.columns
        own = keys_at[self.first : self.first + self.n_query] if own is None else own
        causal = keys_at <= own[:, None]
        return causal[None, None] if keys is None else causal & keys

    def _has_blind_queries(self) -> bool:
        if self.keys_seen is None:
            return False
        return not bool(self.keys_seen[:, : self.first + 1].any(-1).all())

    def _mask(self, dtype: torch.dtype) -> Tensor:
        if self._block_of is not None and self.keys_seen is None:
            whole, size = self._block_of
            band = whole.once(("band", size, dtype), lambda: whole._band(size, dtype))
            return band[..., -self.n_query :, -self.n_key :]
        assert self.visible is not None
        hidden = torch.zeros(self.visible.shape, dtype=dtype, device=self.device)
        return hidden.masked_fill(~self.visible, torch.finfo(dtype).min)

    def _band(self, size: int, dtype: torch.dtype) -> Tensor:
        # Every block ends on the diagonal, so the masks of all are one mask's last columns.
        hidden = torch.full((size, size), torch.finfo(dtype).min, dtype=dtype, device=self.device)
        seen = hidden.new_zeros(size, max(self.n_key - size, 0))
        return torch.cat([seen, hidden.triu(1)], -1)[None, None]


def content(slopes: Float[Tensor, " head"]) -> object:
    """A key under which layers with equal slopes find the same bias, whoever edited the slopes."""
    return id(slopes) if slopes.requires_grad else tuple(slopes.tolist())
