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

from bloomlab.model.alibi import AttentionBias, content
from bloomlab.model.block import rounded_gelu
from bloomlab.model.cache import KVCache
from bloomlab.model.hooks import is_hooked
from bloomlab.model.linear import Product, gelu, product, worth_packing
from bloomlab.model.marks import Marks
from bloomlab.model.passing import Points, bare, only_numbers, passed, points_of, unpassed


class Layer(NamedTuple):
    """What one layer's step needs."""

    points: Points
    norms: tuple[Tensor, Tensor, Tensor, Tensor]  # gain and bias of ln1, then of ln2
    qkv: Product
    o: Product
    fc_in: Product
    fc_out: Product


class Products(NamedTuple):
    """The weights as functions that multiply by them."""

    layers: list[Layer]
    unembed: Product


def products(model: Any, *, rows: int, steps: int, pack: bool) -> Products:
    """What a step multiplies by.

    Args:
        model: a BLOOM with an unembedding that `suits`.
        rows: rows of text.
        steps: how many tokens will come at most.
        pack: whether copies of the weights in a faster order may be made, where they pay. They do
            not follow edits of the weights.
    """
    pack = pack and worth_packing(model, rows=rows, steps=steps)
    made = partial(product, rows=rows, pack=pack)
    layers = [
        Layer(
            points=points_of(block),
            norms=(block.ln1.weight, block.ln1.bias, block.ln2.weight, block.ln2.bias),
            qkv=made(block.attn.qkv.weight, block.attn.qkv.bias),
            o=made(block.attn.o.weight, block.attn.o.bias),
            fc_in=made(block.mlp.fc_in.weight, block.mlp.fc_in.bias),
            fc_out=made(block.mlp.fc_out.weight, block.mlp.fc_out.bias),
        )
        for block in model.blocks
    ]
    return Products(layers, made(model.unembed.W_U.T, None))


class LeanDecoder:
    """Takes a cached text on, one token a row and step; the cache grows with every step.

    Args:
        model: a BLOOM with an unembedding that `suits`.
        cache: what to go on from; it gets room for all steps.
        steps: how many tokens will come at most.
        head_mask: as `layer_head_mask` gives it.
        multiply: the weights, from `products`; None: made here, without copies.
    """

    def __init__(
        self,
        model: Any,
        cache: KVCache,
        *,
        steps: int,
        head_mask: Float[Tensor, "#batch layer head"] | None = None,
        multiply: Products | None = None,
    ) -> None:
        self.model, self.cache, self.rows = model, cache, cache.n_rows
        self.rooms = cache.reserve(steps)
        self.capacity = self.rooms[0].k.shape[2]
        self.marks: Marks | None = None
        if cache.has_padding:
            ahead = self.capacity - len(cache)
            self.marks = cache.marks.followed_by(cache.valid.new_ones(self.rows, ahead))
        config = model.config
        self.n_heads, self.width = [b.attn.n_head for b in model.blocks], (config.hidden_size,)
        self.eps, self.post_norm_skip = (
            config.layer_norm_epsilon,
            config.apply_residual_connection_post_layernorm,
        )
        self.d_head = config.d_head
        self.scale = 1 / math.sqrt(self.d_head)
        self.embed_ln, self.ln_final = model.embed_ln, model.ln_final
        if multiply is None:
            multiply = products(model, rows=self.rows, steps=steps, pack=False)
        self.multiply = multiply
        self.head_masks: list[Tensor | None] = [None] * config.n_layer
        if head_mask is not None:
            masks = head_mask.to(self.rooms[0].k.dtype).unbind(1)
            kept = [b.attn.kept(mask) for b, mask in zip(model.blocks, masks, strict=True)]
            self.head_masks = [mask[:, :, None] for mask in kept]
        self._unpassed, self._mode = unpassed(model), model.alibi
        self._slopes = [(block, content(block.attn.slopes)) for block in model.blocks]
        self._parts = [(part, _made_of(part)) for part in model.modules()]
        self._tabulate(model)

    def holds(self, cache: KVCache) -> bool:
        """Whether this is the decoder's cache, as the decoder left it, with room for a token."""
        return cache is self.cache and len(cache) < self.capacity and cache.fills(self.rooms)

    def is_current(self) -> bool:
        """Whether the model is the one of the beginning, with no hook that would not be called."""
        return (
            only_numbers(self.model)
            and not any(map(is_hooked, self._unpassed))
            and all(bare(part) and _made_of(part) == known for part, known in self._parts)
            and self.model.alibi == self._mode
            and all(content(block.attn.slopes) == one for block, one in self._slopes)
        )

    def advance(self, ids: Int[Tensor, " batch"]) -> Float[Tensor, "batch vocab"]:
        """Logits after one more token a row, which the cache then holds."""
        column = len(self.cache)
        if self.rounded:
            for table, shown in zip(self.tables, self._shown, strict=True):
                shown[..., column] = table[..., column]
            biases = self._shown
        else:
            biases = [table[..., : column + 1] for table in self.tables]
        logits = self.step(ids, column, biases)
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
        for i, layer in enumerate(self.multiply.layers):
            room, points, (gain1, bias1, gain2, bias2) = self.rooms[i], layer.points, layer.norms
            resid = passed(points.resid_pre, resid)
            normed = torch.layer_norm(resid, width, gain1, bias1, eps)
            shape = (rows, self.n_heads[i], 3, self.d_head)
            q, k, v = layer.qkv(normed).view(shape).unbind(2)
            q, k, v = passed(points.q, q), passed(points.k, k), passed(points.v, v)
            if isinstance(column, int):
                room.k.select(2, column).copy_(k)
                room.v.select(2, column).copy_(v)
            else:
                room.k.index_copy_(2, column, k[:, :, None])
                room.v.index_copy_(2, column, v[:, :, None])
            seen = room.k.narrow(2, 0, end), room.v.narrow(2, 0, end)
            z = self._read(q, *seen, biases[self._which[i]])
            if (mask := self.head_masks[i]) is not None:
                z = z * mask
            attn_out = layer.o(passed(points.z, z).flatten(1))
            attn_out = passed(points.attn_out, attn_out)
            resid = passed(points.resid_mid, (normed if post else resid) + attn_out)
            normed = torch.layer_norm(resid, width, gain2, bias2, eps)
            pre = passed(points.pre, layer.fc_in(normed))
            activated = rounded_gelu(pre) if self.rounded else gelu(pre)
            mlp_out = passed(points.mlp_out, layer.fc_out(passed(points.post, activated)))
            resid = passed(points.resid_post, (normed if post else resid) + mlp_out)
        final = self.ln_final
        return self.multiply.unembed(torch.layer_norm(resid, width, final.weight, final.bias, eps))

    def _read(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        if not q.shape[1]:  # all heads were pruned
            return q
        if not self.rounded:
            read = F.scaled_dot_product_attention(q.unsqueeze(2), k, v, attn_mask=bias)
            return read.squeeze(2)
        query, keys, values = q.flatten(0, 1)[:, None], k.flatten(0, 1), v.flatten(0, 1)
        scores = torch.baddbmm(bias, query, keys.mT, alpha=self.scale)
        return (scores.softmax(-1) @ values).view(q.shape)

    def _tabulate(self, model: Any) -> None:
        """Write down ALiBi's bias and mask for every column to come, once for equal slopes."""
        marks = self.marks or Marks.of_rows(1, self.capacity, self.cache.device)
        bias = AttentionBias(
            query_positions=marks.positions[:, -1:],
            key_positions=marks.positions,
            keys_seen=self.marks and marks.valid,
            mode=model.config.alibi,
            dtype=model.dtype,
        )
        self.rounded = bias.rounded
        made = {key: bias.baked(block.attn.slopes) for block, key in self._slopes}
        self.tables, order = list(made.values()), list(made)
        self._which = [order.index(key) for _, key in self._slopes]
        if not self.rounded:
            return
        # Half-precision products of strided keys are slow. So all of the room is read every time,
        # the columns to come masked, and shown as they are written.
        size = (self.rows, -1, 1, self.capacity)
        self.tables = [table.expand(size).flatten(0, 1) for table in self.tables]
        later = torch.arange(self.capacity, device=self.cache.device) >= len(self.cache)
        lowest = torch.finfo(model.dtype).min
        self._shown = [table.masked_fill(later, lowest) for table in self.tables]
        self.clear_ahead()

    def clear_ahead(self) -> None:
        """Zero the columns to come: where they are read masked, 0 x nan would be nan."""
        for room in self.rooms:
            room.k[:, :, room.used :], room.v[:, :, room.used :] = 0, 0


def _made_of(part: nn.Module) -> list[object]:
    """Which modules and which memory a module has; equal for as long as nobody replaces any."""
    memory = [None if p is None else (id(p), p.data_ptr()) for p in part._parameters.values()]
    return [*map(id, part._modules.values()), *memory]
