"""Rank correlations are those of their definitions."""

from itertools import combinations

import numpy as np
import pytest
import torch

from bloomlab.analysis.rankings import rank_correlations, top_overlap
from bloomlab.errors import InputError, ShapeError

A = np.array([[3.0, 1.0, 4.0], [1.0, 5.0, 9.0]])
B = np.array([[2.0, 7.0, 1.0], [8.0, 2.0, 8.0]])


def mean_ranks(x):
    return np.array([(x < one).sum() + ((x == one).sum() + 1) / 2 for one in x])


def tau_b(x, y):
    score, ties_x, ties_y = 0, 0, 0
    for i, j in combinations(range(len(x)), 2):
        score += np.sign(x[i] - x[j]) * np.sign(y[i] - y[j])
        ties_x += x[i] == x[j]
        ties_y += y[i] == y[j]
    n = len(x) * (len(x) - 1) / 2
    return score / np.sqrt((n - ties_x) * (n - ties_y))


def test_correlations_with_ties_are_those_of_the_definitions():
    found = rank_correlations({"a": A, "b": torch.from_numpy(B), "minus a": -A})
    assert found[["a", "b"]].to_numpy().tolist() == [
        ["a", "b"],
        ["a", "minus a"],
        ["b", "minus a"],
    ]
    x, y = A.ravel(), B.ravel()
    assert found.spearman[0] == pytest.approx(np.corrcoef(mean_ranks(x), mean_ranks(y))[0, 1])
    assert found.kendall[0] == pytest.approx(tau_b(x, y))
    assert found.spearman[1] == pytest.approx(-1)
    assert found.kendall[1] == pytest.approx(-1)
    assert found.heads.tolist() == [6, 6, 6]


def test_heads_without_a_score_do_not_count():
    holed = A.copy()
    holed[1, 2] = np.nan
    found = rank_correlations({"a": holed, "b": B})
    x, y = A.ravel()[:-1], B.ravel()[:-1]
    assert found.heads[0] == 5
    assert found.spearman[0] == pytest.approx(np.corrcoef(mean_ranks(x), mean_ranks(y))[0, 1])
    assert np.isnan(rank_correlations({"a": A, "b": np.ones((2, 3))}).spearman[0])


def test_the_overlap_of_the_top():
    found = top_overlap({"a": A, "b": B}, 2)
    assert found.overlap[0] == pytest.approx(0.5)  # 9 and 5 against the two eights
    assert top_overlap({"a": A, "b": B}, 6).overlap[0] == 1


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(InputError, match="expected two or more"):
        rank_correlations({"a": A})
    with pytest.raises(ShapeError, match="'b'"):
        rank_correlations({"a": A, "b": A.T})
    with pytest.raises(InputError, match="0 heads in common"):
        rank_correlations({"a": A, "b": np.full((2, 3), np.nan)})
    with pytest.raises(InputError, match="expected 1 to 6"):
        top_overlap({"a": A, "b": B}, 7)
