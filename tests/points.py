"""Every hook point with its shape, an edit, and a comparison of what two models have there."""

import torch

BATCH, POS, HEADS = 2, 9, 6
OUTER = {
    "embed.hook_out": "batch pos d_model",
    "embed_ln.hook_scale": "batch pos one",
    "embed_ln.hook_normalized": "batch pos d_model",
    "hook_embed": "batch pos d_model",
    "ln_final.hook_scale": "batch pos one",
    "ln_final.hook_normalized": "batch pos d_model",
}
INNER = {
    "hook_resid_pre": "batch pos d_model",
    "ln1.hook_scale": "batch pos one",
    "ln1.hook_normalized": "batch pos d_model",
    "attn.hook_q": "batch pos head d_head",
    "attn.hook_k": "batch pos head d_head",
    "attn.hook_v": "batch pos head d_head",
    "attn.hook_alibi": "batch head pos pos",
    "attn.hook_attn_scores": "batch head pos pos",
    "attn.hook_pattern": "batch head pos pos",
    "attn.hook_z": "batch pos head d_head",
    "hook_attn_out": "batch pos d_model",
    "hook_resid_mid": "batch pos d_model",
    "ln2.hook_scale": "batch pos one",
    "ln2.hook_normalized": "batch pos d_model",
    "mlp.hook_pre": "batch pos d_mlp",
    "mlp.hook_post": "batch pos d_mlp",
    "hook_mlp_out": "batch pos d_model",
    "hook_resid_post": "batch pos d_model",
}
GATED = {
    "attn.hook_attn_in": "batch pos head d_model",
    "attn.hook_q_input": "batch pos head d_model",
    "attn.hook_k_input": "batch pos head d_model",
    "attn.hook_v_input": "batch pos head d_model",
    "attn.hook_result": "batch pos head d_model",
    "hook_mlp_in": "batch pos d_model",
}
IN_BLOCKS = {f"blocks.{i}.{name}": axes for i in (0, 1) for name, axes in (INNER | GATED).items()}
SHAPES = OUTER | IN_BLOCKS
SIZES = {
    "batch": BATCH,
    "pos": POS,
    "head": HEADS,
    "d_head": 8,
    "d_model": 48,
    "d_mlp": 192,
    "one": 1,
}
LEFT = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1]])


def assert_same(ours, theirs, name="", *, seen=None, limit=1e-9):
    """Equal where the query is attended; scores of invisible keys are merely very low."""
    if seen is not None:
        if ours.shape[:2] != seen.shape:
            ours, theirs = ours.transpose(1, 2), theirs.transpose(1, 2)
        ours, theirs = ours[seen], theirs[seen]
    visible = theirs > -1e30
    assert torch.equal(ours > -1e30, visible), name
    ours, theirs = ours[visible], theirs[visible]
    assert ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1)) < limit, name


def halved(value, hook=None):
    """An edit of the first row that no LayerNorm undoes."""
    edited = value.clone()
    edited[0, ..., ::2] = edited[0, ..., ::2] * 0.5 + 0.1
    return edited


def halve(value, hook=None):
    """The same, in place."""
    value[0, ..., ::2] *= 0.5
    value[0, ..., ::2] += 0.1
