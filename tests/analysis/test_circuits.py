"""Circuits by small matrices against the large ones."""

import numpy as np
import pytest
import torch

from bloomlab.analysis.circuits import (
    copying_score,
    extremes,
    ov_eigenvalues,
    qk_eigenvalues,
    random_composition,
)

VOCAB, WIDTH, D_HEAD, HEADS = 13, 8, 3, 2


def drawn(*shapes, seed=0):
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(*shape, generator=source, dtype=torch.float64) for shape in shapes]


def same_spectrum(small, dense):
    """Whether the largest eigenvalues of `dense` are those of `small`, and all others zero."""
    small, dense = list(small), sorted(dense, key=abs, reverse=True)
    assert np.abs(dense[len(small) :]).max() < 1e-10
    for value in dense[: len(small)]:
        nearest = min(small, key=lambda other: abs(other - value))
        assert abs(nearest - value) < 1e-10
        small.remove(nearest)


def test_small_eigenvalues_are_those_of_the_whole_vocabulary():
    reads, unembed = drawn((VOCAB, WIDTH), (WIDTH, VOCAB))
    W_Q, W_K, W_V = drawn(*[(HEADS, WIDTH, D_HEAD)] * 3, seed=1)
    (W_O,) = drawn((HEADS, D_HEAD, WIDTH), seed=2)
    ov = ov_eigenvalues(W_V, W_O, unembed @ reads)
    qk = qk_eigenvalues(W_Q, W_K, reads.T @ reads)
    for head in range(HEADS):
        dense = reads @ W_V[head] @ W_O[head] @ unembed
        same_spectrum(ov[head].tolist(), np.linalg.eigvals(dense.numpy()))
        dense = reads @ W_Q[head] @ W_K[head].T @ reads.T
        same_spectrum(qk[head].tolist(), np.linalg.eigvals(dense.numpy()))


def test_copying_is_one_for_identities_and_minus_one_for_their_negatives():
    eye = torch.eye(D_HEAD).to(torch.complex64)
    score = copying_score(torch.stack([eye.diag(), -eye.diag(), 0 * eye.diag()]))
    assert score[:2].tolist() == [1, -1]
    assert score[2].isnan()
    turning = torch.tensor([[1j, -1j, 0j]])
    assert copying_score(turning).item() == 0


def test_composition_of_randomly_turned_matrices_is_what_chance_says():
    a, b = drawn((WIDTH, 2), (WIDTH, 3))
    a, b = a @ a.T[:, :], b @ b.T
    source = torch.Generator().manual_seed(3)
    scores = []
    for _ in range(4000):
        q, r = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=source, dtype=torch.float64))
        turned = a @ (q * r.diagonal().sign()) @ b
        scores.append((turned.norm() / (a.norm() * b.norm())).item())
    root_mean_square = np.sqrt(np.mean(np.square(scores)))
    assert root_mean_square == pytest.approx(random_composition(WIDTH), rel=0.03)


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_extremes_are_the_ends_of_a_sorted_row(at_once):
    writes, unembed = drawn((5, WIDTH), (WIDTH, VOCAB))
    found = extremes(writes, lambda x: x @ unembed, 4, at_once=at_once)
    order = (writes @ unembed).sort(-1)
    assert torch.equal(found.lowest, order.indices[:, :4])
    assert torch.equal(found.highest, order.indices.flip(-1)[:, :4])
    torch.testing.assert_close(found.low, order.values[:, :4])
    torch.testing.assert_close(found.high, order.values.flip(-1)[:, :4])
