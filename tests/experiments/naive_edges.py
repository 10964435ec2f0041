"""Patched edges the slow way: a whole forward from transformers' weights, edge by edge."""

import torch

from tests.straight import straight


def writes(values, n_layer, n_head):
    """What every writer wrote in a run, by name."""
    found = {"embed": values["hook_embed"]}
    for layer in range(n_layer):
        results = values[f"blocks.{layer}.attn.hook_result"]
        found |= {f"L{layer}H{head}": results[:, :, head] for head in range(n_head)}
        found[f"MLP{layer}"] = values[f"blocks.{layer}.hook_mlp_out"]
    return found


@torch.no_grad()
def patched_logits(hf, ids, other, edges, mask=None, *, frozen=False):
    """Logits of `ids` with some (sender, receiver) edges as in the run of `other`."""
    n_layer, n_head = hf.config.n_layer, hf.config.n_head
    base = straight(hf, ids, mask, gated=True)[1]
    theirs = writes(straight(hf, other, mask, gated=True)[1], n_layer, n_head)
    live, edits = {}, {}

    def noting(names):
        def note(value):
            some = value.unbind(2) if len(names) > 1 else [value]
            live.update(zip(names, some, strict=True))
            return value

        return note

    def adding(names):
        def add(value):
            value = value.clone()
            for i, name in enumerate(names):
                at = value[:, :, i] if len(names) > 1 else value
                for sender, receiver in edges:
                    if receiver == name:
                        at += theirs[sender] - live[sender]
            return value

        return add

    edits["hook_embed"] = noting(["embed"])
    for layer in range(n_layer):
        block, heads = f"blocks.{layer}", [f"L{layer}H{head}" for head in range(n_head)]
        for read in "qkv":
            edits[f"{block}.attn.hook_{read}_input"] = adding([f"{h}.{read}" for h in heads])
        edits[f"{block}.attn.hook_result"] = noting(heads)
        edits[f"{block}.hook_mlp_in"] = adding([f"MLP{layer}"])
        edits[f"{block}.hook_mlp_out"] = noting([f"MLP{layer}"])
        if frozen:
            for point in (f"{block}.ln1.hook_scale", f"{block}.ln2.hook_scale"):
                edits[point] = lambda value, point=point: base[point]
    edits[f"blocks.{n_layer - 1}.hook_resid_post"] = adding(["logits"])
    if frozen:
        edits["ln_final.hook_scale"] = lambda value: base["ln_final.hook_scale"]
    return straight(hf, ids, mask, edits=edits, gated=True)[0]
