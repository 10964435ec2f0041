"""Multi-head attention of BLOOM: fused unless someone looks at scores or pattern."""

from collections.abc import Iterable
from itertools import pairwise
from typing import NamedTuple

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from bloomlab.model.alibi import AttentionBias, alibi_slopes
from bloomlab.model.config import BloomConfig
from bloomlab.model.extension import Extension
from bloomlab.model.fused import fused_attention, rounded_attention, shared_attention
from bloomlab.model.hooks import HookPoint, hooked, is_hooked
from bloomlab.model.kept import places_of
from bloomlab.model.linear import Linear
from bloomlab.model.pieces import joined
from bloomlab.model.scores import attention_pattern, attention_scores


class Attended(NamedTuple):
    """What one attention layer hands back."""

    out: Tensor  # batch query d_model
    pattern: Tensor | None  # batch head query key, when asked for


class Attention(nn.Module):
    """Attention layer; hook names and shapes follow TransformerLens.

    `slopes` (float32, one a head, in logits per token) may be edited or replaced at any time. They
    are no parameter: `save_pretrained` keeps edited ones, a state dict does not.

    Attributes:
        heads: numbers of the heads here; of a pruned layer those that are left, so that entry i of
            a head axis is head `heads[i]`.
    """

    def __init__(self, config: BloomConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, config.heads_of(layer)
        self.n_head, self.d_head = len(self.heads), config.d_head
        self.n_whole = config.n_head
        self.dropout = config.attention_dropout
        self.tp = config.pretraining_tp if config.slow_but_exact else 1
        self.slopes = alibi_slopes(config.n_head)[list(self.heads)]
        self.qkv = Linear(config.hidden_size, 3 * self.n_head * self.d_head)
        self.o = Linear(self.n_head * self.d_head, config.hidden_size)
        self.hook_attn_in = HookPoint()  # batch query head d_model; when hooked
        self.hook_q_input = HookPoint()  # batch query head d_model; when hooked
        self.hook_k_input = HookPoint()  # batch query head d_model; when hooked
        self.hook_v_input = HookPoint()  # batch query head d_model; when hooked
        self.hook_q = HookPoint()  # batch query head d_head
        self.hook_k = HookPoint()  # batch query head d_head; of the new tokens
        self.hook_v = HookPoint()  # batch query head d_head; of the new tokens
        self.hook_alibi = HookPoint()  # batch head query key; the bias alone, in logits
        self.hook_attn_scores = HookPoint()  # batch head query key; biased and masked, in logits
        self.hook_pattern = HookPoint()  # batch head query key; before head mask and dropout
        self.hook_z = HookPoint()  # batch query head d_head; after the head mask
        self.hook_result = HookPoint()  # batch query head d_model; when hooked
        for point in self.children():
            if isinstance(point, HookPoint):
                point.heads = self.heads  # pyright: ignore[reportArgumentType]  # no module

    def index(self, heads: Iterable[int]) -> list[int]:
        """Where heads stand on a head axis here, by their numbers.

        Raises:
            InputError: a head that was pruned, or that there never was.
        """
        return places_of(heads, self.heads, layer=self.layer)

    def kept(self, mask: Float[Tensor, "*lead whole"]) -> Float[Tensor, "*lead head"]:
        """The entries of a mask over all head numbers that belong to the heads here."""
        return mask if self.n_head == self.n_whole else mask[..., list(self.heads)]

    @property
    def W_Q(self) -> Float[Tensor, "head d_model d_head"]:
        """Query weights: a view of the fused parameter."""
        return self._weights(0)

    @property
    def W_K(self) -> Float[Tensor, "head d_model d_head"]:
        """Key weights: a view of the fused parameter."""
        return self._weights(1)

    @property
    def W_V(self) -> Float[Tensor, "head d_model d_head"]:
        """Value weights: a view of the fused parameter."""
        return self._weights(2)

    @property
    def W_O(self) -> Float[Tensor, "head d_head d_model"]:
        """Output weights: a view of the parameter."""
        return rearrange(self.o.weight, "m (h d) -> h d m", h=self.n_head, d=self.d_head)

    @property
    def b_Q(self) -> Float[Tensor, "head d_head"]:
        """Query biases: a view of the fused parameter."""
        return self._biases(0)

    @property
    def b_K(self) -> Float[Tensor, "head d_head"]:
        """Key biases: a view of the fused parameter."""
        return self._biases(1)

    @property
    def b_V(self) -> Float[Tensor, "head d_head"]:
        """Value biases: a view of the fused parameter."""
        return self._biases(2)

    @property
    def b_O(self) -> Float[Tensor, " d_model"]:
        """Output bias: the parameter itself."""
        return self.o.bias

    def _weights(self, part: int) -> Tensor:
        # BLOOM interleaves q, k and v per head.
        sizes = {"h": self.n_head, "three": 3, "d": self.d_head}
        return rearrange(self.qkv.weight, "(h three d) m -> three h m d", **sizes)[part]

    def _biases(self, part: int) -> Tensor:
        sizes = {"h": self.n_head, "three": 3, "d": self.d_head}
        return rearrange(self.qkv.bias, "(h three d) -> three h d", **sizes)[part]

    def forward(
        self,
        x: Float[Tensor, "batch query d_model"],
        *,
        inputs: "HeadInputs | None",
        bias: AttentionBias,
        extension: Extension | None,
        head_mask: Float[Tensor, "#batch head"] | None,
        output_attentions: bool,
    ) -> Attended:
        """The layer's write to the residual stream, for normalised input `x`."""
        batch, n_query, _ = x.shape
        # BLOOM interleaves q, k and v per head. (Plain views here and below: at the demo's size
        # einops would cost more than the arithmetic.)
        q, k, v = self.qkv(x).view(batch, n_query, self.n_head, 3, self.d_head).unbind(3)
        if inputs is not None:
            q, k, v = (
                self._projected(i, part, t)
                for i, (part, t) in zip(inputs, enumerate((q, k, v)), strict=True)
            )
        q = hooked(self.hook_q, q).transpose(1, 2)
        k = hooked(self.hook_k, k).transpose(1, 2)
        v = hooked(self.hook_v, v).transpose(1, 2)
        noted = extension is not None and extension.watches_pattern
        watched = output_attentions or noted or self._is_watched()
        pieces = () if extension is None else extension.update(self.layer, k, v)
        if not self.n_head and not watched and not is_hooked(self.hook_alibi):
            z, pattern = q, None  # all were pruned: only the output bias is left
        elif len(pieces) > 1 and not watched and not is_hooked(self.hook_alibi):
            z, pattern = shared_attention(q, pieces, bias=bias, slopes=self.slopes), None
        else:
            k, v = joined(pieces, batch) if pieces else (k, v)
            z, pattern = (
                self._eager(q, k, v, bias) if watched else (self._fused(q, k, v, bias), None)
            )
        if head_mask is not None:
            scale = self.kept(head_mask)[:, :, None, None].to(z.dtype)
            z = z * scale
            pattern = None if pattern is None else pattern * scale
        if extension is not None and noted and pattern is not None:
            extension.saw(self.layer, pattern)
        z = hooked(self.hook_z, z.transpose(1, 2))
        if is_hooked(self.hook_result):
            result = einsum(z, self.W_O, "b q h d, h d m -> b q h m")
            out = hooked(self.hook_result, result).sum(2) + self.o.bias
        else:
            out = sliced_linear(self.o, z.flatten(2), self.tp)
        return Attended(out, pattern if output_attentions else None)

    def _is_watched(self) -> bool:
        dropping = self.training and self.dropout > 0
        forward_gradients = forward_ad._current_level >= 0  # fused kernels have none
        return (
            dropping
            or forward_gradients
            or is_hooked(self.hook_attn_scores)
            or is_hooked(self.hook_pattern)
        )

    def _fused(self, q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias) -> Tensor:
        # the backward pass of fused kernels is wrong for queries that see nothing
        blind = torch.is_grad_enabled() and bias.has_blind_queries
        if is_hooked(self.hook_alibi):
            if bias.rounded or blind:
                return self._eager(q, k, v, bias)[0]
            mask = bias.masked(self._hooked_alibi(q, k, bias))
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        attend = rounded_attention if bias.rounded or blind else fused_attention
        return attend(q, k, v, bias=bias, slopes=self.slopes)

    def _eager(self, q: Tensor, k: Tensor, v: Tensor, bias: AttentionBias) -> tuple[Tensor, Tensor]:
        watched = is_hooked(self.hook_alibi)
        alibi = self._hooked_alibi(q, k, bias) if watched else bias.alibi(self.slopes)
        scores = attention_scores(q, k, bias=bias, alibi=alibi)
        pattern = attention_pattern(hooked(self.hook_attn_scores, scores), v.dtype)
        pattern = hooked(self.hook_pattern, pattern)
        if self.training and self.dropout:
            pattern = F.dropout(pattern, self.dropout)
        return pattern @ v, pattern

    def _hooked_alibi(self, q: Tensor, k: Tensor, bias: AttentionBias) -> Tensor:
        alibi = bias.alibi(self.slopes).expand(len(q), self.n_head, q.shape[2], k.shape[2])
        if self.hook_alibi.may_be_edited():  # every query needs its own row: any entry may change
            alibi = alibi.contiguous()
        return hooked(self.hook_alibi, alibi)

    def _projected(self, head_input: Tensor | None, part: int, otherwise: Tensor) -> Tensor:
        if head_input is None:
            return otherwise
        return einsum(head_input, self._weights(part), "b q h m, h m d -> b q h d") + self._biases(
            part
        )


class HeadInputs(NamedTuple):
    """Normalised input of q, k and v for each head, where someone forked the stream."""

    q: Tensor | None  # batch query head d_model
    k: Tensor | None
    v: Tensor | None


def sliced_linear(
    layer: nn.Linear, x: Float[Tensor, "batch query d_in"], n_slice: int
) -> Float[Tensor, "batch query d_out"]:
    """`layer(x)`, its input summed in `n_slice` parts as tensor-parallel training summed it.

    transformers' `slow_but_exact` forgets the bias here; this does not.
    """
    if n_slice == 1:
        return layer(x)
    width = layer.weight.shape[1] / n_slice
    cuts = [int(i * width) for i in range(n_slice + 1)]
    out = torch.zeros(*x.shape[:-1], len(layer.weight), dtype=x.dtype, device=x.device)
    for start, end in pairwise(cuts):
        out = out + F.linear(x[..., start:end], layer.weight[:, start:end])
    return out + layer.bias
