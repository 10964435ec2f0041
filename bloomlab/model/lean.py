"""Decoding at the limit: one token a row, straight through the weights.

Module calls cost more than the arithmetic of a small model, and a large one is as fast as its
weights are read; so this does nothing else. The numbers, and what most hooks see, are a forward's.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

from bloomlab.model.alibi import AttentionBias, content
from bloomlab.model.attention import Attention
from bloomlab.model.block import MLP, Block, stepwise_gelu
from bloomlab.model.cache import KVCache
from bloomlab.model.embed import Embedding, Unembed
from bloomlab.model.hooks import HookPoint, hooked, is_hooked
from bloomlab.model.linear import Linear, Product, product, worth_packing
from bloomlab.model.marks import Marks
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
    return (
        _in_force(model)
        and all((part is model or type(part) in PLAIN) and _bare(part) for part in model.modules())
        and not any(map(is_hooked, _unpassed(model)))
    )


def _in_force(model: Any) -> bool:
    """Whether torch's modes and the model's own ask for numbers alone."""
    dropout = model.training and (model.config.hidden_dropout or model.config.attention_dropout)
    watched = torch_module._has_any_global_hook() or torch.is_grad_enabled()
    return not (dropout or watched or torch.is_autocast_enabled(model.device.type))


def _bare(part: nn.Module) -> bool:
    attached = part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__
    return isinstance(part, HookPoint) or not attached


def _unpassed(model: Any) -> list[HookPoint]:
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


class Layer(NamedTuple):
    """What one layer's step needs."""

    points: Points
    norms: tuple[Tensor, Tensor, Tensor, Tensor]  # gain and bias of ln1, then of ln2
    qkv: Product
    o: Product
    fc_in: Product
    fc_out: Product
    k: Float[Tensor, "batch head room d_head"]
    v: Float[Tensor, "batch head room d_head"]
    table: int  # which of the tables of biases
    head_mask: Float[Tensor, "#batch head 1"] | None


class LeanDecoder:
    """Takes a cached text on, one token a row and step; the cache grows with every step.

    Args:
        model: a BLOOM with an unembedding that `suits`.
        cache: what to go on from; it gets room for all steps.
        steps: how many tokens will come at most.
        head_mask: as `layer_head_mask` gives it.
        pack: whether copies of the weights in a faster order may be made, where they pay. They do
            not follow edits of the weights.
    """

    def __init__(
        self,
        model: Any,
        cache: KVCache,
        *,
        steps: int,
        head_mask: Float[Tensor, "#batch layer head"] | None = None,
        pack: bool = False,
    ) -> None:
        self.model = model
        self.cache, self.rooms, self.rows = cache, cache.reserve(steps), cache.n_rows
        self.capacity = len(cache) + steps
        self.marks: Marks | None = None
        if cache.has_padding:
            ahead = torch.ones(self.rows, steps, dtype=torch.bool, device=cache.device)
            self.marks = cache.marks.followed_by(ahead)
        config = model.config
        self.n_head, self.width, self.eps = (
            config.n_head,
            (config.hidden_size,),
            config.layer_norm_epsilon,
        )
        self.scale = 1 / math.sqrt(config.hidden_size // config.n_head)
        self.post_norm_skip = config.apply_residual_connection_post_layernorm
        self.embed_ln, self.ln_final = model.embed_ln, model.ln_final
        made = partial(
            product, rows=self.rows, pack=pack and worth_packing(model, rows=self.rows, steps=steps)
        )
        self._unpassed, self._mode = _unpassed(model), model.alibi
        self._slopes = [(block, content(block.attn.slopes)) for block in model.blocks]
        self._parameters = [
            (part._parameters, name, value)
            for part in model.modules()
            for name, value in part._parameters.items()
        ]
        self.unembed = made(model.unembed.W_U.T, None)
        self.tables, which = self._tables([block.attn.slopes for block in model.blocks], model)
        self.layers = [
            Layer(
                points=points_of(block),
                norms=(block.ln1.weight, block.ln1.bias, block.ln2.weight, block.ln2.bias),
                qkv=made(block.attn.qkv.weight, block.attn.qkv.bias),
                o=made(block.attn.o.weight, block.attn.o.bias),
                fc_in=made(block.mlp.fc_in.weight, block.mlp.fc_in.bias),
                fc_out=made(block.mlp.fc_out.weight, block.mlp.fc_out.bias),
                k=room.k,
                v=room.v,
                table=table,
                head_mask=None if head_mask is None else head_mask[:, i, :, None].to(room.k.dtype),
            )
            for i, (block, room, table) in enumerate(
                zip(model.blocks, self.rooms, which, strict=True)
            )
        ]

    def holds(self, cache: KVCache) -> bool:
        """Whether this is the decoder's cache, as the decoder left it, with room for a token."""
        return cache is self.cache and len(cache) < self.capacity and cache.fills(self.rooms)

    def is_current(self) -> bool:
        """Whether the model is the one of the beginning, with no hook that would not be called."""
        return (
            _in_force(self.model)
            and not any(map(is_hooked, self._unpassed))
            and all(held.get(name) is value for held, name, value in self._parameters)
            and self.model.alibi == self._mode
            and all(content(block.attn.slopes) == one for block, one in self._slopes)
        )

    def advance(self, ids: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
        """Logits after one more token a row, which the cache then holds."""
        column = len(self.cache)
        logits = self.step(ids, column, [table[..., : column + 1] for table in self.tables])
        self.keep()
        return logits

    def reorder(self, rows: Int[Tensor, " batch"], *, since: int) -> None:
        """Go on with these rows in this order, which are alike before the column `since`."""
        new = slice(since, len(self.cache))
        for room in self.rooms:
            room.k[:, :, new], room.v[:, :, new] = room.k[rows, :, new], room.v[rows, :, new]

    def keep(self) -> None:
        """Make the column that was just written part of the cache."""
        end = len(self.cache) + 1
        pieces = [(room.grown_to(end),) for room in self.rooms]
        self.cache._grow(pieces, rows=self.rows, new=1, marks=self.marks and self.marks.first(end))

    def step(
        self,
        ids: Int[Tensor, " batch"],
        column: int | Int[Tensor, " one"],
        biases: list[Tensor],
    ) -> Float[Tensor, "batch vocab"]:
        """Logits after one more token a row, its keys and values written to `column`.

        As many columns are attended to as the biases have.
        """
        rows, post = self.rows, self.post_norm_skip
        width, eps = self.width, self.eps
        resid = passed(self.model.embed.hook_out, F.embedding(ids, self.model.embed.weight))
        resid = torch.layer_norm(resid, width, self.embed_ln.weight, self.embed_ln.bias, eps)
        resid = passed(self.model.hook_embed, resid)
        end = biases[0].shape[-1]
        for layer in self.layers:
            points, (gain1, bias1, gain2, bias2) = layer.points, layer.norms
            resid = passed(points.resid_pre, resid)
            normed = torch.layer_norm(resid, width, gain1, bias1, eps)
            q, k, v = layer.qkv(normed).view(rows, self.n_head, 3, -1).unbind(2)
            q, k, v = passed(points.q, q), passed(points.k, k), passed(points.v, v)
            if isinstance(column, int):
                layer.k.select(2, column).copy_(k)
                layer.v.select(2, column).copy_(v)
            else:
                layer.k.index_copy_(2, column, k[:, :, None])
                layer.v.index_copy_(2, column, v[:, :, None])
            seen = layer.k.narrow(2, 0, end), layer.v.narrow(2, 0, end)
            z = self._read(q, *seen, biases[layer.table])
            if layer.head_mask is not None:
                z = z * layer.head_mask
            attn_out = layer.o(passed(points.z, z).reshape(rows, -1))
            attn_out = passed(points.attn_out, attn_out)
            resid = passed(points.resid_mid, (normed if post else resid) + attn_out)
            normed = torch.layer_norm(resid, width, gain2, bias2, eps)
            pre = passed(points.pre, layer.fc_in(normed))
            gelu = stepwise_gelu(pre) if self.rounded else F.gelu(pre, approximate="tanh")
            mlp_out = passed(points.mlp_out, layer.fc_out(passed(points.post, gelu)))
            resid = passed(points.resid_post, (normed if post else resid) + mlp_out)
        final = self.ln_final
        return self.unembed(torch.layer_norm(resid, width, final.weight, final.bias, eps))

    def _read(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        if not self.rounded:
            read = F.scaled_dot_product_attention(q.unsqueeze(2), k, v, attn_mask=bias)
            return read.squeeze(2)
        rows = bias.expand(len(q), self.n_head, 1, -1).flatten(0, 1)
        scores = torch.baddbmm(rows, q.flatten(0, 1)[:, None], k.flatten(0, 1).mT, alpha=self.scale)
        return (scores.softmax(-1) @ v.flatten(0, 1)).view(q.shape)

    def _tables(self, slopes: list[Tensor], model: Any) -> tuple[list[Tensor], list[int]]:
        """ALiBi's bias and mask for every column to come, and which of them each layer takes."""
        marks = self.marks or Marks.of_rows(1, self.capacity, self.cache.device)
        bias = AttentionBias(
            query_positions=marks.positions[:, -1:],
            key_positions=marks.positions,
            keys_seen=self.marks and marks.valid,
            mode=model.config.alibi,
            dtype=model.dtype,
        )
        self.rounded = bias.rounded
        made: dict[object, Tensor] = {}
        for one in slopes:
            made[content(one)] = bias.baked(one)
        order = list(made)
        return [made[key] for key in order], [order.index(content(one)) for one in slopes]
