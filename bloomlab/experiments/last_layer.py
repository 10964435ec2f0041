"""The last attention layer where few columns are asked for."""

import math
from typing import Any

from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from bloomlab.model.alibi import AttentionBias
from bloomlab.model.linear import linear


def keys_and_values(
    attn: Any, normed: Float[Tensor, "batch key d_model"]
) -> tuple[Float[Tensor, "batch head key d_head"], Float[Tensor, "batch head key d_head"]]:
    """Keys and values of an attention layer, without its queries."""
    layout = {"h": attn.n_head, "three": 3}
    weight = rearrange(attn.qkv.weight, "(h three d) m -> three (h d) m", **layout)[1:]
    bias = rearrange(attn.qkv.bias, "(h three d) -> three (h d)", **layout)[1:]
    both = linear(normed, weight.flatten(0, 1), bias.flatten())
    k, v = rearrange(both, "b t (two h d) -> two b h t d", two=2, h=attn.n_head)
    return k, v


def read_from_stream(
    attn: Any,
    q: Float[Tensor, "batch head query d_head"],
    normed: Float[Tensor, "batch key d_model"],
    bias: AttentionBias,
) -> Float[Tensor, "batch head query d_head"]:
    """What few queries read, without making keys and values.

    q . (W_K x) = (W_K q) . x, and a sum of values is the value of a sum: less arithmetic as long as
    there are fewer queries than a head has dimensions. The key bias falls out of the softmax.
    """
    asked = einsum(q, attn.W_K, "b h q d, h m d -> b h q m")
    scores = einsum(asked, normed, "b h q m, b k m -> b h q k") / math.sqrt(attn.d_head)
    pattern = (scores + bias.additive(attn.slopes)).softmax(-1)
    read = einsum(pattern, normed, "b h q k, b k m -> b h q m")
    return einsum(read, attn.W_V, "b h q m, h m d -> b h q d") + attn.b_V[:, None]
