"""One full forward of transformers' model for every ablation: the slow way, and the oracle."""

import contextlib

import torch
from torch.nn import functional as F

from tests.tiny import pair

N = 9
MASKS = {
    "none": None,
    "left": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1], [1] * 9],
    "ragged": [[0, 0, 1, 1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1, 1, 1, 1], [1] * 9],
}
LIMIT = {torch.float64: 1e-10, torch.float32: 1e-5}
SINGLES = [((layer, head),) for layer in range(3) for head in range(6)]


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


def mask_of(name):
    return None if MASKS[name] is None else torch.tensor(MASKS[name])


def double_pair(**fields):
    """transformers forces its softmax into float32; in float64 ours is compared with ours."""
    return pair(dtype=torch.float64, **fields)


def loop(ours, ids, mask, sets, value=None, columns=slice(None)):
    """Effects on the cross-entropy by one full forward of ours each, edited by a hook at z."""

    def loss(heads):
        def hook_of(layer, own):
            def edit(z, hook):
                for head in own:
                    new = 0.0 if value is None else value(layer, head)
                    z[:, columns, head] = new[:, columns] if isinstance(new, torch.Tensor) else new

            return (f"blocks.{layer}.attn.hook_z", edit)

        layers = sorted({layer for layer, _ in heads})
        hooks = [hook_of(layer, [h for at, h in heads if at == layer]) for layer in layers]
        logits = ours.run_with_hooks(
            ids, attention_mask=mask, fwd_hooks=hooks, return_type="logits"
        )
        return cross_entropy(logits, ids, mask)

    with torch.no_grad():
        clean = loss(())
        return torch.stack([loss(heads) - clean for heads in sets])


def value_of(ours, ids, mask, kind, *, per_position=False, seed=0):
    """What an ablated head writes, by its definition."""
    if kind == "zero":
        return None
    _, cache = ours.run_with_cache(ids, attention_mask=mask)
    seen = (torch.ones_like(ids) if mask is None else mask).bool()
    if kind == "mean":
        if per_position:
            counts = seen[..., None].sum(0)
            return lambda layer, head: (
                (cache["z", layer][:, :, head] * seen[..., None]).sum(0) / counts
            )[None]
        return lambda layer, head: (
            cache["z", layer][:, :, head][seen].mean(0)[None, None].expand(1, N, -1)
        )
    n = len(ids)
    source = torch.Generator().manual_seed(seed)
    donor = (torch.arange(n) + torch.randint(1, n, (n,), generator=source)) % n
    assert (donor != torch.arange(n)).all()

    def theirs(layer, head):
        z, new = cache["z", layer][:, :, head], []
        for i in range(n):
            given, row, count = z[donor[i]][seen[donor[i]]], [], 0
            for column in range(N):
                count += int(seen[i, column])
                row.append(given[max(count - 1, 0) % len(given)])
            new.append(torch.stack(row))
        return torch.stack(new)

    return theirs
