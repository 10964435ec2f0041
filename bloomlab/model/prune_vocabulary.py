"""Structural pruning of the vocabulary: 46% of bloom-560m are its embedding."""

import copy
from collections.abc import Iterable
from typing import Any

import torch

from bloomlab.errors import InputError
from bloomlab.model.config import BloomConfig
from bloomlab.model.kept import whole_number
from bloomlab.model.resized import picked_slopes, resized, weights_of
from bloomlab.model.vocabulary import smaller_tokenizer


@torch.no_grad()
def prune_vocabulary(model: Any, keep: Any) -> Any:
    """A model with the tokens that some texts need, and its tokenizer; the given one stays as is.

    Kept tokens are numbered anew, in the same order; a text that consists of them is tokenised as
    before, its hidden states and the logits of kept tokens are what they were (probabilities are
    shared among fewer). Special tokens, single bytes and the pieces of kept tokens stay too: any
    text can be read, if need be in smaller pieces. Without a tokenizer the given ids and the
    configuration's special ones stay.

    Args:
        model: a BLOOM of any class, whole or pruned.
        keep: a text, texts, or token ids.

    Raises:
        InputError: neither texts nor ids, none, or ids that no token has.
        UnsupportedError: a tokenizer that is no byte-level BPE.
    """
    ids = _ids(model, keep)
    tokenizer, config = model.tokenizer, copy.deepcopy(model.config)
    if wrong := sorted(one for one in ids if not 0 <= one < config.vocab_size):
        raise InputError(f"there is no token {wrong[0]}: ids run to {config.vocab_size - 1}.")
    if tokenizer is None:
        specials = {one for name in _special(config) for one in _several(getattr(config, name))}
        before = sorted(ids | {one for one in specials if 0 <= one < config.vocab_size})
    else:
        tokenizer, before = smaller_tokenizer(tokenizer, sorted(ids))
    now = {number: place for place, number in enumerate(before)}
    for name in _special(config):
        new = [now[one] for one in _several(getattr(config, name)) if one in now]
        single = not isinstance(getattr(config, name), list)
        setattr(config, name, (new[0] if new else None) if single else new)
    config.vocab_size = len(before)
    weights = weights_of(model)
    for name in ("embed.weight", "unembed.weight"):
        if name in weights:  # tied, there is one table
            weights[name] = weights[name].detach()[before]
    slopes = [block.attn.slopes for block in model.blocks]
    slopes = [picked_slopes(some, range(len(some))) for some in slopes]
    made = resized(model, config=config, weights=weights, slopes=slopes)
    made.tokenizer = tokenizer
    return made


def _ids(model: Any, keep: Any) -> set[int]:
    given = keep.tolist() if hasattr(keep, "tolist") else keep
    listed = [given] if isinstance(given, str | int) else given
    if not isinstance(listed, Iterable):
        raise InputError(f"keep is {keep!r:.80}, expected texts or token ids.")
    flat = [one for some in listed for one in (some if isinstance(some, list) else [some])]
    if not flat:
        raise InputError("keep is empty: no tokens would be left.")
    if all(isinstance(one, str) for one in flat):
        rows = model._need_tokenizer()(flat)["input_ids"]
        return {number for row in rows for number in row}
    try:
        return {whole_number(one) for one in flat}
    except TypeError:
        raise InputError(f"keep is {keep!r:.80}, expected texts or token ids.") from None


def _special(config: BloomConfig) -> list[str]:
    """The fields that hold ids of tokens."""
    named = [name for name in vars(config) if name.endswith("_token_id")]
    return [name for name in named if getattr(config, name) is not None]


def _several(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]
