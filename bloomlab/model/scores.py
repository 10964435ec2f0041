"""From queries, keys and bias to attention scores and pattern: what attention and Trace share."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.model.alibi import AttentionBias


def attention_scores(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head key d_head"],
    *,
    bias: AttentionBias,
    alibi: Float[Tensor, "#batch #head #query key"],
) -> Float[Tensor, "batch head query key"]:
    """q.k/sqrt(d_head) + `alibi`, masked as `bias` says, in logits.

    In "hf" mode transformers' operations in its order, equal to the last bit. In "exact" mode, and
    in half precision where fused kernels keep scores in float32, so does this.
    """
    return masked_scores(biased_scores(q, k, bias=bias, alibi=alibi), bias)


def biased_scores(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head key d_head"],
    *,
    bias: AttentionBias,
    alibi: Float[Tensor, "#batch #head #query key"],
) -> Float[Tensor, "batch head query key"]:
    """The scores before masking, onto any of the keys."""
    batch, n_head, n_query, d_head = q.shape
    scale = 1 / math.sqrt(d_head)
    wide = torch.promote_types(q.dtype, torch.float32)
    if bias.mode == "hf" and (bias.rounded or q.dtype == wide):
        rows = alibi.expand(batch, n_head, -1, -1).flatten(0, 1)
        scores = torch.baddbmm(rows, q.flatten(0, 1), k.flatten(0, 1).mT, beta=1.0, alpha=scale)
        return scores.view(batch, n_head, n_query, k.shape[2])
    return (q.to(wide) @ k.to(wide).mT) * scale + alibi


def masked_scores(
    scores: Float[Tensor, "batch head query key"], bias: AttentionBias
) -> Float[Tensor, "batch head query key"]:
    """`scores` with what a query may not see at the most negative number; may write in place."""
    if bias.visible is None:
        return scores
    if bias.keys_seen is None and not torch.is_grad_enabled():
        scores[..., bias.first :] += bias.mask(scores.dtype)[..., bias.first :]
    else:
        scores = scores + bias.mask(scores.dtype)
    if scores.dtype == torch.float16:  # may overflow to -inf, and a row of padding to NaN
        scores = scores.clamp_min(torch.finfo(scores.dtype).min)
    return scores


def attention_pattern(
    scores: Float[Tensor, "batch head query key"], dtype: torch.dtype
) -> Float[Tensor, "batch head query key"]:
    """Softmax of the scores over the keys, as probabilities in `dtype`."""
    # half-precision kernels compute in float32: without gradients, copies for the same bits
    wide = torch.promote_types(scores.dtype, torch.float32)
    wide = wide if torch.is_grad_enabled() else scores.dtype
    return scores.softmax(-1, dtype=wide).to(dtype)
