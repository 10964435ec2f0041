"""A BLOOM written straight down from transformers' weights: what an edit at a hook must lead to."""

import torch
from einops import einsum, rearrange, repeat
from torch.nn import functional as F
from transformers.models.bloom.modeling_bloom import build_alibi_tensor

FORKS = ("hook_attn_in", "hook_q_input", "hook_k_input", "hook_v_input")


def straight(hf, ids, mask=None, *, edits=(), gated=False):
    """Logits, and every named value on the way; `edits` maps names to functions of the value.

    `gated` computes each head's inputs and results too; an edit at one of those needs it.
    """
    config, weights, edits = hf.config, dict(hf.named_parameters()), dict(edits)
    n_head, values = config.n_head, {}
    mask = torch.ones_like(ids) if mask is None else mask

    def point(name, value):
        values[name] = edits[name](value) if name in edits else value
        return values[name]

    def affine(name, x):
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(hook, name, x, branch_of=None):
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.square().mean(-1, keepdim=True) + config.layer_norm_epsilon).sqrt()
        if hook is None:
            if f"{branch_of}.hook_scale" in edits:  # set for the stream, it holds for branches too
                scale = values[f"{branch_of}.hook_scale"]
                scale = scale[:, :, None] if x.ndim > scale.ndim else scale
            return affine(name, centred / scale)
        scale = point(f"{hook}.hook_scale", scale)
        return affine(name, point(f"{hook}.hook_normalized", centred / scale))

    embedded = point("embed.hook_out", weights["transformer.word_embeddings.weight"][ids])
    embed_norm = "transformer.word_embeddings_layernorm"
    resid = point("hook_embed", norm("embed_ln", embed_norm, embedded))
    alibi = build_alibi_tensor(mask, n_head, resid.dtype)
    alibi = rearrange(alibi, "(b h) 1 k -> b h 1 k", h=n_head)
    alibi = repeat(alibi, "b h 1 k -> b h q k", q=ids.shape[1])
    seen = mask[:, None, None, :].bool() & torch.ones(alibi.shape[-2:], dtype=torch.bool).tril()
    for layer in range(config.n_layer):
        block, theirs = f"blocks.{layer}", f"transformer.h.{layer}"
        fused = (
            weights[f"{theirs}.self_attention.query_key_value.{p}"] for p in ("weight", "bias")
        )
        w_qkv, b_qkv = (
            rearrange(t, "(h three d) ... -> three h d ...", h=n_head, three=3) for t in fused
        )
        resid_pre = point(f"{block}.hook_resid_pre", resid)
        normed = norm(f"{block}.ln1", f"{theirs}.input_layernorm", resid_pre)
        heads_in = [repeat(normed, "b q m -> b q h m", h=n_head)] * 3
        if gated:
            fork = repeat(resid_pre, "b q m -> b q h m", h=n_head)
            shared = point(f"{block}.attn.hook_attn_in", fork)
            inputs = [point(f"{block}.attn.hook_{part}_input", shared) for part in "qkv"]
            if any(f"{block}.attn.{name}" in edits for name in FORKS):
                first = f"{theirs}.input_layernorm"
                heads_in = [norm(None, first, x, f"{block}.ln1") for x in inputs]
        q, k, v = (
            point(f"{block}.attn.hook_{part}", einsum(x, w, "b q h m, h d m -> b q h d") + b)
            for part, x, w, b in zip("qkv", heads_in, w_qkv, b_qkv, strict=True)
        )
        bias = point(f"{block}.attn.hook_alibi", alibi)
        scores = einsum(q, k, "b q h d, b k h d -> b h q k") / q.shape[-1] ** 0.5 + bias
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        scores = point(f"{block}.attn.hook_attn_scores", scores)
        pattern = point(f"{block}.attn.hook_pattern", scores.softmax(-1))
        z = point(f"{block}.attn.hook_z", einsum(pattern, v, "b h q k, b k h d -> b q h d"))
        w_o = rearrange(
            weights[f"{theirs}.self_attention.dense.weight"], "m (h d) -> h d m", h=n_head
        )
        result = einsum(z, w_o, "b q h d, h d m -> b q h m")
        if gated:
            result = point(f"{block}.attn.hook_result", result)
        attn_out = result.sum(2) + weights[f"{theirs}.self_attention.dense.bias"]
        attn_out = point(f"{block}.hook_attn_out", attn_out)
        post = config.apply_residual_connection_post_layernorm
        resid_mid = point(f"{block}.hook_resid_mid", attn_out + (normed if post else resid_pre))
        normed = norm(f"{block}.ln2", f"{theirs}.post_attention_layernorm", resid_mid)
        into_mlp = normed
        if gated:
            mlp_in = point(f"{block}.hook_mlp_in", resid_mid)
            if f"{block}.hook_mlp_in" in edits:
                second = f"{theirs}.post_attention_layernorm"
                into_mlp = norm(None, second, mlp_in, f"{block}.ln2")
        up, down = (f"{theirs}.mlp.{name}" for name in ("dense_h_to_4h", "dense_4h_to_h"))
        pre = F.linear(into_mlp, weights[f"{up}.weight"], weights[f"{up}.bias"])
        pre = point(f"{block}.mlp.hook_pre", pre)
        act = point(f"{block}.mlp.hook_post", F.gelu(pre, approximate="tanh"))
        out = F.linear(act, weights[f"{down}.weight"], weights[f"{down}.bias"])
        mlp_out = point(f"{block}.hook_mlp_out", out)
        resid = mlp_out + (normed if post else resid_mid)
        resid = point(f"{block}.hook_resid_post", resid)
    last = norm("ln_final", "transformer.ln_f", resid)
    return F.linear(last, hf.lm_head.weight), values
