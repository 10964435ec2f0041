"""A byte-level BPE tokenizer with fewer tokens: same pieces for texts that need no others."""

import copy
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from bloomlab.errors import InputError, UnsupportedError

Pair = tuple[str, str]


def smaller_tokenizer(tokenizer: Any, ids: Sequence[int]) -> tuple[Any, list[int]]:
    """A tokenizer of fewer tokens, numbered anew in the same order, and the ids they had.

    Beside the given tokens it has every single byte, all special and added ones, and what the given
    ones are merged from. A text whose tokens are all among them is tokenised as before: the merges
    that built each of them are there, in their order, and no other can come first. Other texts
    fall into smaller pieces, down to bytes, so that every text can still be told from its ids.

    Args:
        tokenizer: a byte-level BPE tokenizer on the `tokenizers` library.
        ids: of the tokens to keep.

    Raises:
        InputError: ids that no token has.
        UnsupportedError: another kind of tokenizer.
    """
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe, after = parts["model"], parts.get("post_processor") or {"type": "ByteLevel"}
    affixes = bpe.get("continuing_subword_prefix") or bpe.get("end_of_word_suffix")
    if bpe.get("type") != "BPE" or affixes or after["type"] != "ByteLevel":
        raise UnsupportedError(
            f"a {bpe.get('type')} tokenizer with a {after['type']} post-processor; only plain "
            "byte-level BPE, as BLOOM's is, can be made smaller."
        )
    vocab: dict[str, int] = bpe["vocab"]
    added: dict[str, int] = {token["content"]: token["id"] for token in parts["added_tokens"]}
    named = {number: token for token, number in (vocab | added).items()}
    if unknown := sorted(set(ids) - set(named)):
        raise InputError(f"no token has the id {unknown[0]}; they run from 0 to {max(named)}.")
    wanted = [named[number] for number in ids if named[number] not in added]
    pairs = [_pair(one) for one in bpe["merges"]]
    used = _used(wanted, {pair: rank for rank, pair in enumerate(pairs)})
    kept = {*wanted, *added, *(part for pair in used for part in (*pair, "".join(pair)))}
    kept |= {byte for byte in bytes_to_unicode().values() if byte in vocab}
    kept |= {bpe["unk_token"]} if bpe.get("unk_token") else set()
    before = sorted((vocab | added)[token] for token in kept)
    now = {number: place for place, number in enumerate(before)}
    bpe["vocab"] = {token: now[number] for token, number in vocab.items() if token in kept}
    bpe["merges"] = [list(pair) for pair in pairs if pair in used]
    for token in parts["added_tokens"]:
        token["id"] = now[token["id"]]
    parts["padding"] = None  # holds an id; set again with every call
    smaller = copy.deepcopy(tokenizer)
    smaller._tokenizer = Tokenizer.from_str(json.dumps(parts))
    return smaller, before


def _used(tokens: Iterable[str], ranks: dict[Pair, int]) -> set[Pair]:
    """The merges by which tokens come about from their bytes."""
    found: set[Pair] = set()
    for token in tokens:
        parts, steps = list(token), []
        while len(parts) > 1:
            known = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
            if not known:
                break
            _, place = min(known)
            steps.append((parts[place], parts[place + 1]))
            parts[place : place + 2] = ["".join(steps[-1])]
        if parts == [token]:  # else no text leads to it
            found.update(steps)
    return found


def _pair(merge: Any) -> Pair:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
