"""ALiBi: attention with linear biases (Press et al., 2022, arXiv:2108.12409), and who sees whom."""

import math
from functools import cached_property

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


class AttentionBias:
    """What all layers of one forward share: positions, visibility and, per slopes, the bias.

    `visible` is None where every query sees every key. A query that may see nothing (leading
    padding) spreads evenly over all keys, as in transformers; never NaN, in any dtype.
    """

    def __init__(
        self,
        *,
        query_positions: Int[Tensor, "batch query"],
        key_positions: Int[Tensor, "batch key"],
        visible: Bool[Tensor, "batch 1 query key"] | None,
        mode: str,
        dtype: torch.dtype,
    ) -> None:
        self.query_positions, self.key_positions = query_positions, key_positions
        self.visible, self.mode = visible, mode
        device = key_positions.device.type
        autocast = torch.is_autocast_enabled(device)
        self.dtype = torch.get_autocast_dtype(device) if autocast else dtype
        # CPU kernels take a float32 mask beside half precision: float16 then cannot overflow.
        wide = device == "cpu" and not autocast
        self.mask_dtype = torch.promote_types(dtype, torch.float32) if wide else self.dtype
        self._made: dict[object, Tensor] = {}

    @property
    def rounded(self) -> bool:
        """Whether every operation rounds as transformers' does: half precision in "hf" mode."""
        return self.mode == "hf" and self.dtype in (torch.bfloat16, torch.float16)

    def alibi(self, slopes: Float[Tensor, " head"]) -> Float[Tensor, "batch head #query key"]:
        """The bias alone, in logits: rounded to the model's dtype ("hf") or float32 ("exact")."""
        key = ("alibi", self._content(slopes))
        if key not in self._made:
            slopes = slopes.to(self.key_positions.device)
            self._made[key] = (
                absolute_alibi(slopes, self.key_positions).to(self.dtype)
                if self.mode == "hf"
                else relative_alibi(slopes, self.query_positions, self.key_positions)
            )
        return self._made[key]

    def additive(self, slopes: Float[Tensor, " head"]) -> Float[Tensor, "batch head #query key"]:
        """Bias and mask in one tensor, as a fused kernel takes them."""
        key = ("additive", self._content(slopes))
        if key not in self._made:
            self._made[key] = self.masked(self.alibi(slopes))
        return self._made[key]

    def masked(self, alibi: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """`alibi` with the invisible keys at the most negative number, for a fused kernel."""
        alibi = alibi.to(self.mask_dtype)
        if self.visible is None:
            return alibi
        return torch.where(self.visible, alibi, torch.finfo(self.mask_dtype).min)

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "batch 1 query key"]:
        """0 where a query sees a key, the dtype's most negative number elsewhere, to be added."""
        assert self.visible is not None
        key = ("mask", dtype)
        if key not in self._made:
            hidden = torch.zeros(self.visible.shape, dtype=dtype, device=self.visible.device)
            self._made[key] = hidden.masked_fill(~self.visible, torch.finfo(dtype).min)
        return self._made[key]

    @cached_property
    def has_blind_queries(self) -> bool:
        """Whether some query sees no key at all (leading padding)."""
        return self.visible is not None and not bool(self.visible.any(-1).all())

    @staticmethod
    def _content(slopes: Tensor) -> object:
        # Layers with equal slopes share one tensor, whoever edited the slopes and however.
        return id(slopes) if slopes.requires_grad else tuple(slopes.tolist())
