"""Attention without a pattern: memory grows with the keys, not with queries times keys."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from bloomlab.model.alibi import AttentionBias, content
from bloomlab.model.pieces import Pieces
from bloomlab.model.scores import (
    attention_pattern,
    attention_scores,
    biased_scores,
    masked_scores,
)

BLOCK = 256  # queries that one call of a fused kernel takes at most
SCORES_AT_ONCE = 2**24  # scores that attention to shared keys holds at most
ROUNDED_BLOCK = 128  # the same for the blocked form of transformers' own operations


def fused_attention(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head key d_head"],
    v: Float[Tensor, "batch head key d_head"],
    *,
    bias: AttentionBias,
    slopes: Float[Tensor, " head"],
) -> Float[Tensor, "batch head query d_head"]:
    """What each head reads, as by `attention_scores` and `attention_pattern`, never holding them.

    The kernel is torch's fused attention. Few queries take the bias as a mask. Many take it along
    in extra dimensions of queries and keys, where the bias depends on the key only and the kernel
    computes it exactly; else in blocks of masks.
    """
    if bias.n_query <= BLOCK:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.additive(slopes))
    if rides_on_keys(bias):
        return riding(q, k, v, bias=bias, slopes=slopes)
    parts = [
        F.scaled_dot_product_attention(
            q[:, :, rows],
            k[:, :, : part.n_key],
            v[:, :, : part.n_key],
            attn_mask=part.additive(slopes),
        )
        for rows, part in bias.blocks(BLOCK)
    ]
    return torch.cat(parts, 2)


def rides_on_keys(bias: AttentionBias) -> bool:
    """Whether extra dimensions carry the bias without loss on this device.

    "exact" is relative to the query. In float32 a GPU may multiply in fewer bits.
    """
    wide = bias.dtype in (torch.float32, torch.float64)
    return bias.mode == "hf" and (bias.device.type == "cpu" or not wide)


def riding(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head key d_head"],
    v: Float[Tensor, "batch head key d_head"],
    *,
    bias: AttentionBias,
    slopes: Float[Tensor, " head"],
) -> Float[Tensor, "batch head query d_head"]:
    """Fused attention with ALiBi in extra dimensions: (q, x) . (k, y) = q . k + bias.

    The absolute bias is the same for every query, so it stands in y, exact in the dtype, and x
    undoes the kernel's scale: by 1 where q can be scaled beforehand without loss, else in three
    parts whose sum is sqrt(d_head).
    """
    batch, n_head, n_query, d_head = q.shape
    scale = 1 / math.sqrt(d_head)
    x, y = bias.once(("riding", content(slopes)), lambda: _extra(bias, slopes, d_head))
    if len(x) == 1:
        q, scale = q * scale, 1.0
    q = torch.cat([q, x.expand(batch, n_head, n_query, -1)], -1)
    k = torch.cat([k, y.expand(batch, -1, -1, -1)], -1)
    v = torch.cat([v, v[..., : len(x)]], -1)  # kernels want one width; dropped again below
    whole = bias.first == 0 and bias.n_key == n_query and bias.keys_seen is None
    if whole and bias.device.type != "cpu":  # the kernel's own causal form, no mask at all
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return z[..., :d_head]
    parts = [
        F.scaled_dot_product_attention(
            q[:, :, rows],
            k[:, :, : part.n_key],
            v[:, :, : part.n_key],
            attn_mask=part.mask(bias.mask_dtype),
            scale=scale,
        )[..., :d_head]
        for rows, part in bias.blocks(BLOCK)
    ]
    return torch.cat(parts, 2)


def rounded_attention(
    q: Float[Tensor, "batch head query d_head"],
    k: Float[Tensor, "batch head key d_head"],
    v: Float[Tensor, "batch head key d_head"],
    *,
    bias: AttentionBias,
    slopes: Float[Tensor, " head"],
) -> Float[Tensor, "batch head query d_head"]:
    """What each head reads, by transformers' operations on blocks of queries: the same bits.

    On a CPU in half precision this beats the fused kernel, and no score is rounded otherwise.
    """
    parts = []
    for rows, part in bias.blocks(ROUNDED_BLOCK):
        keys, alibi = k[:, :, : part.n_key], part.alibi(slopes)
        scores = attention_scores(q[:, :, rows], keys, bias=part, alibi=alibi)
        parts.append(attention_pattern(scores, v.dtype) @ v[:, :, : part.n_key])
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def shared_attention(
    q: Float[Tensor, "batch head query d_head"],
    pieces: Pieces,
    *,
    bias: AttentionBias,
    slopes: Float[Tensor, " head"],
) -> Float[Tensor, "batch head query d_head"]:
    """What each head reads from keys stored in pieces, some of them once for several rows.

    Rows that share a piece ask it together: their queries are one batch of queries.
    """
    n_row, n_head = q.shape[:2]
    size = max(1, min(BLOCK, SCORES_AT_ONCE // (n_row * n_head * bias.n_key)))
    parts = []
    for rows, part in bias.blocks(size):
        asked, alibi, scores, start = q[:, :, rows], part.alibi(slopes), [], 0
        for piece in pieces:
            columns = slice(start, min(start + piece.length, part.n_key))
            start += piece.length
            k = piece.k[:, :, : columns.stop - columns.start]
            if columns.stop > columns.start:
                stored, share = piece.rows, n_row // piece.rows
                onto = _shared_alibi(alibi, part, columns=columns, stored=stored, share=share)
                together = biased_scores(_together(asked, stored), k, bias=bias, alibi=onto)
                scores.append(_apart(together, n_row))
        pattern = attention_pattern(masked_scores(torch.cat(scores, -1), part), q.dtype)
        shares = pattern.split([len(s[0, 0, 0]) for s in scores], -1)
        read = [
            _apart(_together(p, piece.rows) @ piece.v[:, :, : p.shape[-1]], n_row)
            for p, piece in zip(shares, pieces, strict=False)
        ]
        parts.append(torch.stack(read).sum(0))
    return torch.cat(parts, 2)


def _shared_alibi(
    alibi: Tensor, bias: AttentionBias, *, columns: slice, stored: int, share: int
) -> Tensor:
    """The bias onto some columns for the queries of `_together`."""
    alibi = alibi[..., columns]
    if len(alibi) > 1 and share > 1:
        if not bias.once(("alike", columns.start, stored), lambda: _alike(bias, columns, stored)):
            return _together(alibi.expand(-1, -1, bias.n_query, -1), stored)
        alibi = alibi[::share]
    return alibi.repeat(1, 1, share, 1) if alibi.shape[2] > 1 else alibi


def _alike(bias: AttentionBias, columns: slice, stored: int) -> bool:
    """Whether the rows that share a stored row stand at the same positions."""
    positions = [bias.key_positions[:, columns]]
    if bias.mode == "exact":
        positions.append(bias.query_positions)
    groups = (rearrange(p, "(s r) t -> s r t", s=stored) for p in positions)
    return all(bool((g == g[:, :1]).all()) for g in groups)


def _together(rows: Tensor, stored: int) -> Tensor:
    """The queries of all rows that share a stored row, one after the other."""
    share = len(rows) // stored
    if share == 1:
        return rows
    return rearrange(rows, "(s r) h q x -> s h (r q) x", r=share)


def _apart(together: Tensor, n_row: int) -> Tensor:
    share = n_row // len(together)
    if share == 1:
        return together
    return rearrange(together, "s h (r q) x -> (s r) h q x", r=share)


def _extra(bias: AttentionBias, slopes: Tensor, d_head: int) -> tuple[Tensor, Tensor]:
    """What queries and keys get: [extra] and [#batch head key extra]."""
    exact = bias.dtype in (torch.float32, torch.float64) or math.log2(d_head) % 2 == 0
    rest, parts = 1.0 if exact else math.sqrt(d_head), []
    while rest and len(parts) < 3:
        parts.append(torch.tensor(rest, dtype=bias.dtype).item())
        rest -= parts[-1]
    y = bias.alibi(slopes).squeeze(2)[..., None]
    x = torch.tensor(parts, dtype=bias.dtype, device=bias.device)
    return x, y.expand(*y.shape[:-1], len(parts))
