"""Which tokens each head promotes and suppresses: by its weights alone, and in a text."""

from collections.abc import Iterable
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.analysis.attribution import norm_scale
from bloomlab.analysis.circuits import Extremes, extremes
from bloomlab.errors import InputError
from bloomlab.experiments.attribution import kept_rows
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.head_circuits import find_head, head_writes, write_directions
from bloomlab.experiments.residual_stream import (
    LOGITS_AT_ONCE,
    asked_tokens,
    require_sum,
    require_unembedding,
    token_ids,
)
from bloomlab.experiments.sweep import rows_that_fit
from bloomlab.printable import printable_tokens


@torch.no_grad()
def head_tokens(model: Any, sources: Any, *, heads: Any = None, k: int = 10) -> pd.DataFrame:
    """The tokens that heads promote and suppress when they attend to given tokens.

    Rows of the OV circuit (Elhage et al., 2021), by the weights alone; see `ov_circuit`.

    Args:
        model: a BLOOM with an unembedding, whole or pruned.
        sources: tokens attended to: ids, texts, or one of either.
        heads: (layer, head) pairs; None: every head.
        k: tokens at either end.

    Returns:
        Columns layer, head, source, effect ("promoted" or "suppressed"), rank (0: most), token,
        label (if there is a tokenizer), value (logits times the final norm's scale).

    Raises:
        UnsupportedError: no unembedding, or a stream that is no sum.
        UnknownNameError: no such layer.
        InputError: no such head, no sources, tokens that are none, or k out of range.
    """
    named = _ready(model, "head_tokens", heads, k)
    ids = token_ids(model, sources)
    if not len(ids):
        raise InputError("sources is empty: expected tokens that heads attend to.")
    frames = [
        _frame(
            {"layer": layer, "head": head},
            {"source": ids.tolist()},
            _extremes(model, head_writes(model, layer, head, ids), k),
        )
        for layer, head in named
    ]
    return _labelled(model, frames)


@torch.no_grad()
def written_tokens(
    model: Any,
    tokens: Any,
    attention_mask: Any = None,
    *,
    positions: Any = -1,
    heads: Any = None,
    k: int = 10,
    progress: bool = True,
) -> pd.DataFrame:
    """The tokens that heads promote and suppress by what they write in given texts.

    Direct effects: the final LayerNorm is taken with the scale of the run.

    Args:
        model: a BLOOM with an unembedding, whole or pruned.
        tokens: texts, ids [batch pos] or a dict with `attention_mask`.
        attention_mask: [batch pos], 0 for padding.
        positions: where heads write; in each text, padding not counted: -1 the last, None all, or
            several.
        heads: (layer, head) pairs; None: every head.
        k: tokens at either end.
        progress: show a bar while it takes long.

    Returns:
        Columns layer, head, text, pos, effect ("promoted" or "suppressed"), rank (0: most), token,
        label (if there is a tokenizer), value (logits).

    Raises:
        UnsupportedError: no unembedding, or a stream that is no sum.
        UnknownNameError: no such layer.
        InputError: no such head, no data, no such position, or k out of range.
    """
    named = _ready(model, "written_tokens", heads, k)
    data = dataset(model, tokens, attention_mask)
    asked = asked_tokens(data.attended, positions)
    counted = data.attended.cumsum(-1) - 1
    frames: list[pd.DataFrame] = []
    for first, some in data.chunks(rows_that_fit(model, data), progress=progress):
        here = asked[first : first + len(some)]
        text = (first + here.nonzero()[:, 0]).tolist()
        pos = counted[first : first + len(some)][here].tolist()
        for layer, head, results in _results(model, some, here, named):
            found = _extremes(model, results, k)
            frames.append(_frame({"layer": layer, "head": head}, {"text": text, "pos": pos}, found))
    order = {pair: i for i, pair in enumerate(named)}
    return _labelled(
        model, sorted(frames, key=lambda f: order[f["layer"].iloc[0], f["head"].iloc[0]])
    )


def _results(
    model: Any, data: Dataset, asked: Tensor, heads: list[tuple[int, int]]
) -> Iterable[tuple[int, int, Float[Tensor, "row d_model"]]]:
    """What each head writes at the asked tokens, over the final norm's scale."""
    wide = torch.promote_types(model.dtype, torch.float32)
    seen: dict[str, Tensor] = {}
    stream = f"blocks.{len(model.blocks) - 1}.hook_resid_post"
    names = [stream, *{f"blocks.{layer}.attn.hook_z" for layer, _ in heads}]
    mask = None if data.mask is None else data.mask.long()
    with model.hooks(fwd_hooks=[(name, kept_rows(seen, asked, wide)) for name in names]):
        model.backbone(data.tokens, attention_mask=mask, use_cache=False)
    scale = norm_scale(seen[stream], model.ln_final.eps)[:, None]
    for layer, head in heads:
        attn, at = find_head(model, layer, head)
        yield (
            layer,
            head,
            seen[f"blocks.{layer}.attn.hook_z"][:, at] @ attn.W_O[at].to(wide) / scale,
        )


def _ready(model: Any, function: str, heads: Any, k: int) -> list[tuple[int, int]]:
    """The heads that were asked for, all else checked."""
    require_unembedding(model)
    require_sum(model, function)
    if not 1 <= k <= model.config.vocab_size:
        raise InputError(f"k is {k}, expected 1 to {model.config.vocab_size}.")
    every = [(i, h) for i, block in enumerate(model.blocks) for h in block.attn.heads]
    try:
        named = [(int(layer), int(head)) for layer, head in (every if heads is None else heads)]
    except (TypeError, ValueError):
        raise InputError(f"heads is {heads!r:.80}, expected (layer, head) pairs.") from None
    if not named:
        raise InputError(f"heads is {heads!r}: no heads to look at.")
    for layer, head in named:
        find_head(model, layer, head)
    return named


def _extremes(model: Any, writes: Float[Tensor, "row d_model"], k: int) -> Extremes:
    size = model.config.vocab_size
    step = max(1, LOGITS_AT_ONCE // writes.shape[-1])  # directions of all tokens would be large

    def read_out(some: Tensor) -> Tensor:
        parts = [
            some @ write_directions(model, slice(first, first + step)).T
            for first in range(0, size, step)
        ]
        return torch.cat(parts, -1)

    return extremes(writes, read_out, k, at_once=max(1, LOGITS_AT_ONCE // size))


def _frame(constant: dict[str, int], rows: dict[str, list[int]], found: Extremes) -> pd.DataFrame:
    """One row for each written row, effect and rank."""
    k = found.high.shape[1]
    parts = []
    for effect, ids, values in (
        ("promoted", found.highest, found.high),
        ("suppressed", found.lowest, found.low),
    ):
        index = {name: [one for one in v for _ in range(k)] for name, v in rows.items()}
        columns = {
            **index,
            "effect": effect,
            "rank": list(range(k)) * len(ids),
            "token": ids.flatten().numpy(),
            "value": values.flatten().numpy(),
        }
        parts.append(pd.DataFrame(columns))
    frame = pd.concat(parts).sort_values([*rows, "effect", "rank"], ignore_index=True)
    for place, (name, value) in enumerate(constant.items()):
        frame.insert(place, name, value)
    return frame


def _labelled(model: Any, frames: list[pd.DataFrame]) -> pd.DataFrame:
    frame = pd.concat(frames, ignore_index=True)
    if model.tokenizer is not None:
        ids: list[int] = frame["token"].tolist()
        names = {i: printable_tokens(model.tokenizer, [i])[0] for i in set(ids)}
        frame.insert(len(frame.columns) - 1, "label", [names[i] for i in ids])
    return frame
