"""What two runs have in common, by brute force."""

import itertools

import numpy as np
import pytest
import torch

import bloomlab as bl
from bloomlab.session.matching import common_places
from tests.session.oracles import EDITS


def longest_common(first, second):
    if not first or not second:
        return 0
    if first[-1] == second[-1]:
        return 1 + longest_common(first[:-1], second[:-1])
    return max(longest_common(first[:-1], second), longest_common(first, second[:-1]))


@pytest.mark.parametrize("seed", range(20))
def test_an_alignment_is_a_longest_common_subsequence(seed):
    rng = np.random.default_rng(seed)
    first, second = (list(rng.choice(list("abc"), rng.integers(0, 9))) for _ in range(2))
    found = common_places(first, second)
    assert all(first[a] == second[b] for a, b in found)
    for (a, b), (c, d) in itertools.pairwise(found):
        assert a < c
        assert b < d
    assert len(found) == longest_common(first, second)
    assert common_places(first, first) == [(i, i) for i in range(len(first))]


def test_runs_are_aligned_by_their_tokens(session):
    one, other = session.look("The cat sat on the mat."), session.look("Then the cat sat on a mat.")
    pairs = session.aligned(one, other)
    assert pairs == common_places(one.tokens, other.tokens)
    assert len(pairs) > 3


def test_next_tokens_of_two_runs_have_their_own_probabilities(session):
    session.edits = EDITS["all"]
    runs = session.run("clean"), session.run()
    labels, *values = session.next_of_two(*runs, k=6)
    pair_of = [run.logits().softmax(-1) for run in runs]
    best = torch.maximum(*pair_of).topk(6).indices
    assert labels == runs[0].labels(best)
    for found, expected in zip(values, pair_of, strict=True):
        assert found == pytest.approx(expected[best].tolist(), abs=1e-6)


def test_next_tokens_of_another_vocabulary_are_matched_by_what_they_spell(session):
    kept = [*range(4), *range(6, 8192)]
    tokenizer, model = session.model.tokenizer, session.model
    smaller = bl.prune_vocabulary(model, kept)
    other = bl.Session(smaller, session.prompt)
    labels, mine, its = session.next_of_two(session.run(), other.run(), k=6)
    assert smaller.tokenizer is not tokenizer
    assert mine == pytest.approx(its, rel=0.01)
    assert labels == session.run().next_tokens(6)[0]
