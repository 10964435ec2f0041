"""When decoding may go straight through the weights, and the hook points it still passes."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from bloomlab.model.attention import Attention
from bloomlab.model.block import MLP, Block
from bloomlab.model.embed import Embedding, Unembed
from bloomlab.model.hooks import HookPoint, hooked, is_hooked
from bloomlab.model.linear import Linear
from bloomlab.model.norm import LayerNorm

# What a model may consist of; anything else (an adapter, an offloaded layer) needs its own forward.
PLAIN = {HookPoint, nn.ModuleList, Embedding, Unembed, LayerNorm, Block, Attention, MLP, Linear}
HOME = "bloomlab.model.heads"  # of the models whose forward this repeats; a subclass may differ


def suits(model: Any) -> bool:
    """Whether a step may go straight through the weights: nothing else would be called.

    Hooks may sit at the points a LeanDecoder passes, see `Points`.
    """
    if model.config.slow_but_exact or type(model).__module__ != HOME:
        return False
    rounds_bias = model.alibi == "exact" and model.dtype in (torch.bfloat16, torch.float16)
    if rounds_bias and model.device.type != "cpu":  # a GPU's masks are as wide as the model
        return False
    return (
        only_numbers(model)
        and all((part is model or type(part) in PLAIN) and bare(part) for part in model.modules())
        and not any(map(is_hooked, unpassed(model)))
    )


def only_numbers(model: Any) -> bool:
    """Whether torch's modes and the model's ask for numbers alone: no gradients, no dropout."""
    dropout = model.training and (model.config.hidden_dropout or model.config.attention_dropout)
    watched = torch_module._has_any_global_hook() or torch.is_grad_enabled()
    return not (dropout or watched or torch.is_autocast_enabled(model.device.type))


def bare(part: nn.Module) -> bool:
    """Whether nothing is attached to a module itself; a hook point may have hooks."""
    attached = part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__
    return isinstance(part, HookPoint) or not attached


def unpassed(model: Any) -> list[HookPoint]:
    """The hook points at which a LeanDecoder would call no hook."""
    passed = {id(point) for block in model.blocks for point in points_of(block)}
    passed |= {id(model.embed.hook_out), id(model.hook_embed)}
    return [point for point in model.hook_dict.values() if id(point) not in passed]


class Points(NamedTuple):
    """Hook points of a block that a LeanDecoder passes; shapes as in a forward of one token."""

    resid_pre: HookPoint
    q: HookPoint
    k: HookPoint
    v: HookPoint
    z: HookPoint
    attn_out: HookPoint
    resid_mid: HookPoint
    pre: HookPoint
    post: HookPoint
    mlp_out: HookPoint
    resid_post: HookPoint


def points_of(block: Any) -> Points:
    """The points of a block."""
    attn, mlp = block.attn, block.mlp
    return Points(
        block.hook_resid_pre,
        *(attn.hook_q, attn.hook_k, attn.hook_v, attn.hook_z),
        *(block.hook_attn_out, block.hook_resid_mid),
        *(mlp.hook_pre, mlp.hook_post),
        *(block.hook_mlp_out, block.hook_resid_post),
    )


def passed(point: HookPoint, value: Tensor) -> Tensor:
    """`value` as the hooks of a point leave it; they see it with its axis of positions."""
    if point._forward_hooks or point._backward_hooks or point._forward_pre_hooks:
        return hooked(point, value[:, None])[:, 0]
    return value
