"""A pruned model in the shape of a whole one, zeros for what is gone: for stock transformers."""

import copy
from typing import Any

import torch
from torch import Tensor

from bloomlab.model.alibi import alibi_slopes
from bloomlab.model.resized import resized, weights_of


@torch.no_grad()
def whole(model: Any) -> Any:
    """A model that computes the same with all heads and neurons, the pruned ones' weights zero.

    Saved, it is a checkpoint for stock transformers. Pruned layers and vocabulary stay away: those
    are other numbers in a stock configuration.
    """
    config, weights, slopes = copy.deepcopy(model.config), weights_of(model), []
    for layer, block in enumerate(model.blocks):
        attn, mlp = block.attn, block.mlp
        heads, d_head = list(attn.heads), attn.d_head
        own = alibi_slopes(config.n_head)
        own[heads] = attn.slopes.detach().to(own)
        slopes.append(own)
        if attn.n_head < config.n_head:
            name, n, rows = f"blocks.{layer}.attn", config.n_head, 3 * d_head
            parts = attn.qkv.weight.view(attn.n_head, rows, config.hidden_size)
            weights[f"{name}.qkv.weight"] = _spread(parts, heads, n).flatten(0, 1)
            parts = attn.qkv.bias.view(attn.n_head, rows)
            weights[f"{name}.qkv.bias"] = _spread(parts, heads, n).flatten()
            parts = attn.o.weight.view(config.hidden_size, attn.n_head, d_head).transpose(0, 1)
            columns = _spread(parts, heads, n).transpose(0, 1)
            weights[f"{name}.o.weight"] = columns.flatten(1)
        if config.kept_neurons is not None:
            name, kept, n = (
                f"blocks.{layer}.mlp",
                config.kept_neurons[layer],
                4 * config.hidden_size,
            )
            weights[f"{name}.fc_in.weight"] = _spread(mlp.fc_in.weight, kept, n)
            weights[f"{name}.fc_in.bias"] = _spread(mlp.fc_in.bias, kept, n)
            weights[f"{name}.fc_out.weight"] = _spread(mlp.fc_out.weight.T, kept, n).T.contiguous()
    config.kept_heads = config.kept_neurons = None
    return resized(model, config=config, weights=weights, slopes=slopes)


def _spread(parts: Tensor, places: list[int], n: int) -> Tensor:
    """Parts [part ...] at their places among n, zeros between."""
    wide = parts.new_zeros(n, *parts.shape[1:])
    wide[places] = parts
    return wide
