"""The structural probe finds a planted metric; distances and scores of trees by hand."""

import math

import pytest
import torch

from bloomlab.analysis.structural import (
    dspr,
    fit_structural_probe,
    structural_scores,
    tree_distances,
)
from bloomlab.errors import InputError, ShapeError


def random_tree(n, source):
    return [-1, *(int(torch.randint(i, (), generator=source)) for i in range(1, n))]


def planted(n_sentence=60, d=24, n_top=10, seed=0):
    """Words at the corners of a cube, an own edge a word: squared distances are those of the tree.

    The cube is turned, and stretched; other directions hold noise.
    """
    source = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d, d, generator=source))[0]
    vectors, trees = [], []
    for _ in range(n_sentence):
        n = int(torch.randint(5, n_top + 1, (), generator=source))
        parents = random_tree(n, source)
        corners = torch.zeros(n, n_top)
        for word in range(1, n):
            corners[word] = corners[parents[word]]
            corners[word, word] = 1
        noise = torch.randn(n, d - n_top, generator=source)
        vectors.append(torch.cat([corners * 3, noise], 1) @ basis)
        trees.append(tree_distances(parents))
    return vectors, trees


def test_a_planted_metric_is_recovered():
    vectors, trees = planted()
    probe = fit_structural_probe(vectors[:48], trees[:48], rank=10, epochs=80)
    scores = structural_scores([probe.distances(words) for words in vectors[48:]], trees[48:])
    assert scores.edges.sum() / scores.total.sum() > 0.98
    assert dspr(scores) > 0.95
    assert probe.losses[-1] < 0.15 < probe.losses[0]
    raw = structural_scores([torch.cdist(words, words) ** 2 for words in vectors[48:]], trees[48:])
    assert raw.edges.sum() / raw.total.sum() < 0.9


def test_random_vectors_tell_no_tree():
    _, trees = planted()
    source = torch.Generator().manual_seed(5)
    vectors = [torch.randn(len(tree), 24, generator=source) for tree in trees]
    probe = fit_structural_probe(vectors[:48], trees[:48], rank=10, epochs=10)
    scores = structural_scores([probe.distances(words) for words in vectors[48:]], trees[48:])
    assert scores.edges.sum() / scores.total.sum() < 0.5
    assert dspr(scores) < 0.4


def test_distances_of_a_tree_by_hand():
    found = tree_distances([1, -1, 1, 2])
    hand = [[0, 1, 2, 3], [1, 0, 1, 2], [2, 1, 0, 1], [3, 2, 1, 0]]
    assert found.tolist() == hand


def test_perfect_distances_have_perfect_scores_and_a_chain_the_counted_ones():
    star, chain = tree_distances([-1, 0, 0, 0, 0]), tree_distances([-1, 0, 1, 2, 3])
    whole = structural_scores([star, chain], [star, chain])
    assert whole.uuas.tolist() == [1, 1]
    assert whole.spearman.tolist() == pytest.approx([1, 1])
    wrong = structural_scores([chain], [star])
    assert wrong.edges.tolist() == [1]
    assert wrong.uuas.tolist() == [0.25]
    assert math.isnan(dspr(structural_scores([star[:4, :4]], [star[:4, :4]])))


def test_zero_distances_are_edges_too():
    pair = tree_distances([-1, 0])
    assert structural_scores([torch.zeros(2, 2)], [pair]).uuas.tolist() == [1]


def test_what_is_no_tree_is_refused():
    for parents, said in [
        ([-1, 5], "word 1 has the head 5"),
        ([-1, 1], "word 1 has the head 1"),
        ([-1, -1], "no tree"),
        ([-1, 2, 1], "no tree"),
    ]:
        with pytest.raises(InputError, match=said):
            tree_distances(parents)
    with pytest.raises(InputError, match="no sentence"):
        fit_structural_probe([], [])
    with pytest.raises(ShapeError, match=r"distances of sentence 0 has shape \(2, 2\)"):
        fit_structural_probe([torch.zeros(3, 4)], [torch.zeros(2, 2)])
