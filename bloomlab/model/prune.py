"""Structural pruning of heads: a smaller model that computes what the masked one does.

Which heads can go: Michel et al. (2019, arXiv:1905.10650), Voita et al. (2019, arXiv:1905.09418).
"""

import copy
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import ShapeError
from bloomlab.model.compensation import check_compensation, folded, mean_activations
from bloomlab.model.config import BloomConfig
from bloomlab.model.kept import chosen_by_layer
from bloomlab.model.resized import picked_slopes, resized, weights_of

log = logging.getLogger("bloomlab")


@torch.no_grad()
def prune_heads(
    model: Any,
    heads: Any,
    *,
    compensate: str = "zero",
    data: Any = None,
    values: Any = None,
) -> Any:
    """A smaller model without some heads, of the same class; the given one is left alone.

    It computes what the model with these heads ablated does (`head_mask`, or a constant at
    `hook_z`), in fewer operations and with a smaller cache; numbers differ only by the order of
    sums (with `slow_but_exact`, where the parts of a sum are cut is another too). The heads that
    stay keep their ALiBi slopes and their numbers: in `head_mask`, interventions, traces, labels.
    On the head axis of a hook's value entry i is head `model.kept_heads[layer][i]`.

    A layer may lose all heads, then it writes its output bias; all layers may, then each position
    knows its own token alone, which the log says.

    Args:
        model: a BLOOM of any class, whole or pruned.
        heads: {layer: its heads to prune}, or (layer, head) pairs; numbers of the whole model.
        compensate: what stands for what a head wrote: "zero" nothing; "mean" its mean over `data`;
            "constant" the given `values`. It goes into the output bias, through W_O; in half
            precision the bias is rounded once more.
        data: for "mean": text, texts, ids [batch pos], or a dict of ids and attention mask; only
            attended tokens count, in runs of the model as it is given.
        values: for "constant": z of every head [layer head d_head], by number; those of heads
            that stay are not looked at.

    Raises:
        InputError: heads that are not there or were pruned before, none at all; an unknown
            compensation, or one without what it needs.
        ShapeError: values of another shape.
    """
    check_compensation(compensate, data, values)
    numbers = {layer: block.attn.heads for layer, block in enumerate(model.blocks)}
    chosen = chosen_by_layer(heads, numbers, kind="head")
    written = _written(model, chosen, compensate, data, values)
    weights = weights_of(model)
    slopes, config = [], copy.deepcopy(model.config)
    config.kept_heads = [list(some) for some in numbers.values()]
    for layer, block in enumerate(model.blocks):
        gone, attn = chosen.get(layer, []), block.attn
        stay = [i for i, head in enumerate(attn.heads) if head not in gone]
        slopes.append(picked_slopes(attn.slopes, stay))
        if not gone:
            continue
        config.kept_heads[layer] = [attn.heads[i] for i in stay]
        name, shape = f"blocks.{layer}.attn", (attn.n_head, attn.d_head)
        # the rows of a head's q, k and v lie together
        rows = (attn.n_head, 3 * attn.d_head)
        weights[f"{name}.qkv.weight"] = attn.qkv.weight.unflatten(0, rows)[stay].flatten(0, 1)
        weights[f"{name}.qkv.bias"] = attn.qkv.bias.unflatten(0, rows)[stay].flatten()
        columns = attn.o.weight.unflatten(1, shape)
        weights[f"{name}.o.weight"] = columns[:, stay].flatten(1)
        if layer in written:
            lost = columns[:, attn.index(gone)].flatten(1)
            weights[f"{name}.o.bias"] = folded(attn.o.bias, lost, written[layer].flatten())
    if not any(config.kept_heads):
        log.warning(
            "no head is left in any of the %d layers. What remains: embedding, MLPs, norms and the "
            "attention's output biases; a position sees no other token than its own.",
            config.n_layer,
        )
    return resized(model, config=_plain(config), weights=weights, slopes=slopes)


def _written(
    model: Any, chosen: Mapping[int, list[int]], compensate: str, data: Any, values: Any
) -> dict[int, Float[Tensor, "pruned d_head"]]:
    """What the pruned heads of each layer are taken to have read."""
    if compensate == "mean":
        names = {layer: f"blocks.{layer}.attn.hook_z" for layer in chosen}
        means = mean_activations(model, list(names.values()), data)
        return {
            layer: means[names[layer]][model.blocks[layer].attn.index(gone)]
            for layer, gone in chosen.items()
        }
    if values is None:
        return {}
    config = model.config
    expected = (config.n_layer, config.n_head, config.d_head)
    if not isinstance(values, Tensor) or values.shape != expected:
        got = values.shape if isinstance(values, Tensor) else ()
        raise ShapeError("values", got=got, expected=f"{expected}: [layer head d_head]")
    return {layer: values[layer, gone] for layer, gone in chosen.items()}


def _plain(config: BloomConfig) -> BloomConfig:
    """Without the list of heads where all are there."""
    every: Iterable[list[int]] = config.kept_heads or []
    if all(len(some) == config.n_head for some in every):
        config.kept_heads = None
    return config
