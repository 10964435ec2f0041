"""Whole forwards under edits written by hand, with model hooks: what sessions must agree with."""

import copy

import numpy as np
import torch
from jaxtyping import TypeCheckError

from bloomlab.errors import InputError
from bloomlab.session import Edits

WRONG_TYPE = (InputError, TypeCheckError)  # the second where annotations are checked first


def edits_of(n_layer=2, n_head=6, *, scale=(), mean=(), slopes=()):
    """Edits from {(layer, head): factor} and heads that are averaged."""
    ones = np.ones((n_layer, n_head), dtype=np.float32)
    arrays = {"scale": ones.copy(), "mean": ones == 0, "slopes": ones.copy()}
    chosen = {"scale": dict(scale), "mean": dict.fromkeys(mean, True), "slopes": dict(slopes)}
    for name, factors in chosen.items():
        for place, value in factors.items():
            arrays[name][place] = value
    return Edits(**arrays)


EDITS = {
    "off": edits_of(scale={(0, 1): 0, (1, 4): 0}),
    "half": edits_of(scale={(1, 0): 0.5}),
    "double": edits_of(scale={(0, 0): 2, (0, 5): 0.5, (1, 2): 2}),
    "mean": edits_of(mean=[(0, 2), (0, 3), (1, 5)]),
    "slopes": edits_of(slopes={(0, 1): 0, (1, 4): 3}),
    "late slopes": edits_of(slopes={(1, 0): 0.25, (1, 1): 0.25}),
    "all": edits_of(scale={(0, 0): 0, (1, 3): 2}, mean=[(0, 4)], slopes={(0, 0): 2, (1, 5): 0.5}),
}


def by_hand(model, phases, means):
    """Hooks for edits in phases, {first column: edits}; a phase ends where the next begins."""
    starts = sorted(phases)
    spans = [(slice(a, b), phases[a]) for a, b in zip(starts, [*starts[1:], None], strict=True)]

    def hooks(layer, block):
        def write(z, hook):  # batch query head d_head
            z = z.clone()
            for columns, edits in spans:
                for place, head in enumerate(block.attn.heads):
                    if edits.mean[layer, head]:
                        z[:, columns, place] = means[layer][place]
                    z[:, columns, place] *= float(edits.scale[layer, head])
            return z

        def lean(alibi, hook):  # batch head query key
            alibi = alibi.clone()
            for columns, edits in spans:
                for place, head in enumerate(block.attn.heads):
                    alibi[:, place, columns] *= float(edits.slopes[layer, head])
            return alibi

        yield f"blocks.{layer}.attn.hook_z", write
        yield f"blocks.{layer}.attn.hook_alibi", lean

    return [pair for layer, block in enumerate(model.blocks) for pair in hooks(layer, block)]


@torch.no_grad()
def means_of(model, ids):
    """Mean output [head d_head] of every layer's heads in the unedited run."""
    _, cache = model.run_with_cache(ids)
    return [cache[f"blocks.{i}.attn.hook_z"][0].mean(0) for i in range(len(model.blocks))]


@torch.no_grad()
def whole(model, ids, edits=None, *, phases=None, means=None):
    """Logits and cache of one forward over the whole text, under edits or phases of them."""
    phases = phases or ({} if edits is None else {0: edits})
    hooks = by_hand(model, phases, means or means_of(model, ids)) if phases else []
    with model.hooks(fwd_hooks=hooks):
        return model.run_with_cache(ids)


def patterns_of(cache, model):
    """Patterns [layer head query key] of a cache; 0 for pruned heads."""
    n_layer, n = len(model.blocks), cache["blocks.0.attn.hook_pattern"].shape[-1]
    found = np.zeros((n_layer, model.config.n_head, n, n), dtype=np.float32)
    for layer, block in enumerate(model.blocks):
        pattern = cache[f"blocks.{layer}.attn.hook_pattern"][0].float()
        found[layer, list(block.attn.heads)] = pattern.numpy()
    return found


def streams_of(cache, model):
    """The stream [1 pos d_model] before each layer and after the last."""
    last = len(model.blocks) - 1
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(last + 1)]
    return [cache[name] for name in [*names, f"blocks.{last}.hook_resid_post"]]


def with_slopes(model, edits):
    """A copy whose slopes are changed for good."""
    changed = copy.deepcopy(model)
    for layer, block in enumerate(changed.blocks):
        block.attn.slopes = block.attn.slopes * torch.tensor(edits.slopes[layer])
    return changed


def is_untouched(model):
    """Whether no hook is attached anywhere."""
    points = model.hook_dict.values()
    return not any(point._forward_hooks or point._backward_hooks for point in points)
