"""Structural pruning of whole layers and of MLP neurons."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from bloomlab.errors import InputError, ShapeError
from bloomlab.model.compensation import check_compensation, folded, mean_activations
from bloomlab.model.kept import chosen_by_layer, whole_number
from bloomlab.model.resized import picked_slopes, resized, weights_of


@torch.no_grad()
def prune_layers(model: Any, layers: Any) -> Any:
    """A shallower model without some layers, of the same class; the given one is left alone.

    The stream skips them. Those that stay are numbered anew, in hook names too, as a checkpoint
    has them; `config.kept_layers` holds the numbers they had in the whole model.

    Args:
        model: a BLOOM of any class, whole or pruned.
        layers: one or several, numbered as in `model`.

    Raises:
        InputError: layers that are not there, or all of them.
    """
    gone, config = _layers(layers, model.config.n_layer), copy.deepcopy(model.config)
    stay = [layer for layer in range(config.n_layer) if layer not in gone]
    if not stay:
        raise InputError(f"all {config.n_layer} layers: a BLOOM has at least one; leave one.")
    before = config.kept_layers or list(range(config.n_layer))
    config.n_layer, config.kept_layers = len(stay), [before[layer] for layer in stay]
    for field in ("kept_heads", "kept_neurons"):
        if (some := getattr(config, field)) is not None:
            setattr(config, field, [some[layer] for layer in stay])
    weights = {}
    for name, value in weights_of(model).items():
        kind, _, rest = name.partition(".")
        layer, _, rest = rest.partition(".")
        if kind != "blocks":
            weights[name] = value
        elif int(layer) in stay:
            weights[f"blocks.{stay.index(int(layer))}.{rest}"] = value
    slopes = [model.blocks[layer].attn.slopes for layer in stay]
    slopes = [picked_slopes(some, range(len(some))) for some in slopes]
    return resized(model, config=config, weights=weights, slopes=slopes)


@torch.no_grad()
def prune_neurons(
    model: Any,
    neurons: Any,
    *,
    compensate: str = "zero",
    data: Any = None,
    values: Any = None,
) -> Any:
    """A model with narrower MLPs, of the same class; the given one is left alone.

    It computes what the model with these neurons at 0 (or a constant) at `mlp.hook_post` does.
    Numbers are those of the whole model, `config.kept_neurons` lists the ones that stay.

    Args:
        model: a BLOOM of any class, whole or pruned.
        neurons: {layer: its neurons to prune}, or (layer, neuron) pairs.
        compensate: as in `prune_heads`: "zero", "mean" or "constant", folded into the MLP's output
            bias.
        data: for "mean", as in `prune_heads`.
        values: for "constant": of every neuron [layer neuron] by number, after the GELU.

    Raises:
        InputError: neurons that are not there or were pruned before, none at all; an unknown
            compensation, or one without what it needs.
        ShapeError: values of another shape.
    """
    check_compensation(compensate, data, values)
    config = copy.deepcopy(model.config)
    n_layer, n_whole = config.n_layer, 4 * config.hidden_size
    kept = config.kept_neurons or [list(range(n_whole)) for _ in range(n_layer)]
    chosen = chosen_by_layer(neurons, dict(enumerate(kept)), kind="neuron")
    if values is not None and (
        not isinstance(values, Tensor) or values.shape != (n_layer, n_whole)
    ):
        got = values.shape if isinstance(values, Tensor) else ()
        raise ShapeError("values", got=got, expected=f"{(n_layer, n_whole)}: [layer neuron]")
    names = {layer: f"blocks.{layer}.mlp.hook_post" for layer in chosen}
    means = mean_activations(model, list(names.values()), data) if compensate == "mean" else {}
    weights = weights_of(model)
    for layer, gone in chosen.items():
        lost = set(gone)
        stay = [i for i, neuron in enumerate(kept[layer]) if neuron not in lost]
        out = [i for i, neuron in enumerate(kept[layer]) if neuron in lost]
        name, mlp = f"blocks.{layer}.mlp", model.blocks[layer].mlp
        weights[f"{name}.fc_in.weight"] = mlp.fc_in.weight[stay]
        weights[f"{name}.fc_in.bias"] = mlp.fc_in.bias[stay]
        weights[f"{name}.fc_out.weight"] = mlp.fc_out.weight[:, stay]
        written = means[names[layer]][out] if means else None
        written = values[layer, gone] if values is not None else written
        if written is not None:
            bias = folded(mlp.fc_out.bias, mlp.fc_out.weight[:, out], written)
            weights[f"{name}.fc_out.bias"] = bias
        kept[layer] = [kept[layer][i] for i in stay]
    config.kept_neurons = kept
    slopes = [block.attn.slopes for block in model.blocks]
    slopes = [picked_slopes(some, range(len(some))) for some in slopes]
    return resized(model, config=config, weights=weights, slopes=slopes)


def _layers(layers: Any, n_layer: int) -> set[int]:
    given = layers.tolist() if hasattr(layers, "tolist") else layers
    try:
        found = {whole_number(one) for one in (given if isinstance(given, Iterable) else [given])}
    except TypeError:
        raise InputError(f"layers is {layers!r:.80}, expected numbers of layers.") from None
    if not found:
        raise InputError("no layers to prune.")
    if wrong := sorted(found - set(range(n_layer))):
        raise InputError(f"there is no layer {wrong[0]}; they run from 0 to {n_layer - 1}.")
    return found
