"""Direct logit attribution: what each summand of the residual stream adds to a logit.

With the final LayerNorm's scale taken as it is, the norm is linear, so that a logit is exactly the
sum over components c of ((c - mean c) * gain / scale) . W_U, plus bias . W_U (Elhage et al., 2021).
"""

import torch
from jaxtyping import Float
from torch import Tensor


def norm_scale(stream: Float[Tensor, "*row d_model"], eps: float) -> Float[Tensor, "*row"]:
    """What a LayerNorm divides each row by: sqrt(variance + eps)."""
    return (stream.var(-1, correction=0) + eps).sqrt()


def through_norm(
    columns: Float[Tensor, "row d_model"], gain: Float[Tensor, " d_model"]
) -> Float[Tensor, "row d_model"]:
    """Directions u with u . c = ((c - mean c) * gain) . column for every c.

    Args:
        columns: of the unembedding, or differences of two.
        gain: of the final LayerNorm.
    """
    gained = columns * gain
    return gained - gained.mean(-1, keepdim=True)


def head_contributions(
    z: Float[Tensor, "row head d_head"],
    W_O: Float[Tensor, "head d_head d_model"],
    directions: Float[Tensor, "row d_model"],
) -> Float[Tensor, "row head"]:
    """Directions . (z W_O) of every head, without making the results [row head d_model]."""
    read = torch.einsum("hdm,rm->rhd", W_O, directions)
    return (z * read).sum(-1)


def before_norm(
    slopes: Float[Tensor, "*row reader d_model"],
    stream: Float[Tensor, "*row d_model"],
    gain: Float[Tensor, " d_model"],
    eps: float,
) -> Float[Tensor, "*row reader d_model"]:
    """Derivatives by a LayerNorm's input, for several readers of its output that share it.

    Args:
        slopes: derivatives by the output, each reader's own.
        stream: the input.
        gain: of the norm.
        eps: of the norm.
    """
    scale = norm_scale(stream, eps)[..., None]
    normalized = ((stream - stream.mean(-1, keepdim=True)) / scale)[..., None, :]
    gained = slopes * gain
    along = (gained * normalized).mean(-1, keepdim=True) * normalized
    return (gained - gained.mean(-1, keepdim=True) - along) / scale[..., None]
