"""One full forward of transformers' model for every ablation: the slow way, and the oracle."""

import contextlib

import torch
from torch.nn import functional as F


@contextlib.contextmanager
def z_edited(hf, edits):
    """Within, the input of each layer's output projection is edited.

    `edits` maps layer -> function of z [batch pos head d_head], which it may change in place.
    """
    n_head, handles = hf.config.n_head, []

    def hook(function):
        def edit(module, arguments):
            z = arguments[0].unflatten(-1, (n_head, -1)).clone()
            function(z)
            return (z.flatten(-2), *arguments[1:])

        return edit

    for layer, function in edits.items():
        dense = hf.transformer.h[layer].self_attention.dense
        handles.append(dense.register_forward_pre_hook(hook(function)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def zeroed(heads):
    """Edits that silence (layer, head) pairs."""
    return valued(heads, lambda layer, head: 0.0)


def valued(heads, value, columns=slice(None)):
    """Edits that set (layer, head) pairs to `value(layer, head)`, [batch pos d_head] or so."""

    def edit(layer, own):
        def function(z):
            for head in own:
                new = value(layer, head)
                z[:, columns, head] = new[:, columns] if isinstance(new, torch.Tensor) else new

        return function

    layers = sorted({layer for layer, _ in heads})
    return {layer: edit(layer, [h for at, h in heads if at == layer]) for layer in layers}


@torch.no_grad()
def logits_of(hf, ids, mask=None, edits=None):
    """Logits of one forward under edits."""
    with z_edited(hf, edits or {}):
        return hf(ids, attention_mask=mask).logits


@torch.no_grad()
def z_of(hf, ids, mask=None):
    """z of every layer, [layer batch pos head d_head]."""
    kept = {}
    edits = {
        layer: (lambda z, layer=layer: kept.update({layer: z.clone()}))
        for layer in range(hf.config.n_layer)
    }
    logits_of(hf, ids, mask, edits)
    return torch.stack([kept[layer] for layer in range(hf.config.n_layer)])


def cross_entropy(logits, ids, mask=None):
    """Mean over each example's attended next tokens."""
    losses = F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none")
    counts = torch.ones_like(ids[:, 1:]) if mask is None else mask[:, 1:] * mask[:, :-1]
    return (losses * counts).sum(-1) / counts.sum(-1)
