"""What two runs, maybe of two models, have in common: tokens of their texts, next tokens."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bloomlab.session.run import Run


def common_places(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """Places of a longest common subsequence, in order: the edit-distance alignment.

    Both lists in one table: its size is the product of their lengths without equal ends.
    """
    shorter, start = min(len(first), len(second)), 0
    while start < shorter and first[start] == second[start]:
        start += 1
    end = 0
    while end < shorter - start and first[-1 - end] == second[-1 - end]:
        end += 1
    ends = [(i, i) for i in range(start)]
    tail = [(len(first) - i, len(second) - i) for i in range(end, 0, -1)]
    numbers: dict[str, int] = {}
    a, b = (
        np.array([numbers.setdefault(one, len(numbers)) for one in some[start : len(some) - end]])
        for some in (first, second)
    )
    longest = np.zeros((len(a) + 1, len(b) + 1), dtype=np.int32)  # of the first i and j tokens
    for i, token in enumerate(a):
        with_both = longest[i, :-1] + (b == token)
        longest[i + 1, 1:] = np.maximum.accumulate(np.maximum(longest[i, 1:], with_both))
    i, j, middle = len(a), len(b), []
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            middle.append((start + i, start + j))
        elif longest[i - 1, j] >= longest[i, j - 1]:
            i -= 1
        else:
            j -= 1
    return [*ends, *reversed(middle), *tail]


def likeliest_of_two(first: Run, second: Run, k: int) -> tuple[list[str], list[float], list[float]]:
    """Labels of the k next tokens that are likeliest in either run, and their probabilities.

    Tokens of another vocabulary are matched by what they spell; 0 where it has no such token.
    """
    sizes = [run.logits().softmax(-1).cpu() for run in (first, second)]
    top = [one.topk(min(k, len(one))).indices.tolist() for one in sizes]
    pairs = [(token, _twin(token, first, second)) for token in top[0]]
    pairs += [(_twin(token, second, first), token) for token in top[1]]
    found: list[tuple[str, float, float]] = []
    for mine, its in dict.fromkeys(pairs):
        label = first.labels([mine]) if mine is not None else second.labels([its])
        before, after = (
            0.0 if token is None else float(size[token])
            for token, size in zip((mine, its), sizes, strict=True)
        )
        found.append((label[0], before, after))
    found.sort(key=lambda one: -max(one[1:]))
    best = found[:k]
    return [one[0] for one in best], [one[1] for one in best], [one[2] for one in best]


def _twin(token: int, run: Run, other: Run) -> int | None:
    """The id of the same token in another run's vocabulary."""
    mine: Any = run.model.tokenizer
    its: Any = other.model.tokenizer
    if mine is its:
        return token
    name = mine.convert_ids_to_tokens([token])[0]
    twin = None if name is None else its.convert_tokens_to_ids(name)
    known = twin is not None and its.convert_ids_to_tokens([twin])[0] == name
    return twin if known and twin < other.model.config.vocab_size else None
