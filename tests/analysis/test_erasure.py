"""Erasers: no covariance left, the smallest change, the directions that closed forms name."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from bloomlab.analysis.erasure import Eraser, inlp, leace, random_eraser
from bloomlab.errors import InputError, ShapeError


def gaussians(n=1500, d=8, n_class=3, seed=0, apart=1.5):
    """Classes with one covariance, far from round, and different means."""
    source = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_class, (n,), generator=source)
    mix = torch.randn(d, d, generator=source, dtype=torch.float64)
    means = torch.randn(n_class, d, generator=source, dtype=torch.float64) * apart
    noise = torch.randn(n, d, generator=source, dtype=torch.float64)
    return noise @ mix + means[labels] + 5, labels


def covariance(x, labels):
    one_hot = torch.nn.functional.one_hot(labels).double()
    return (x - x.mean(0)).T @ (one_hot - one_hot.mean(0)) / len(x)


def accuracy(x, labels):
    x = x / x.std(0)
    return LogisticRegression(max_iter=2000).fit(x, labels).score(x, labels)


@pytest.mark.parametrize("n_class", [2, 3, 5])
def test_leace_leaves_no_covariance_and_no_probe_above_the_majority(n_class):
    x, labels = gaussians(n_class=n_class)
    majority = float(torch.bincount(labels).max()) / len(labels)
    assert accuracy(x, labels) > majority + 0.1
    eraser = leace(x, labels)
    assert eraser.rank == n_class - 1
    assert covariance(eraser(x), labels).abs().max() < 1e-10
    assert accuracy(eraser(x), labels) <= majority + 1e-9


def test_leace_is_its_closed_form():
    x, labels = gaussians()
    eraser = leace(x, labels)
    a, z = x.numpy(), np.eye(3)[labels]
    values, vectors = np.linalg.eigh(np.cov(a.T))
    whiten = vectors @ np.diag(values**-0.5) @ vectors.T
    cross = whiten @ (a - a.mean(0)).T @ (z - z.mean(0))
    project = cross @ np.linalg.pinv(cross)
    expected = a - (a - a.mean(0)) @ (np.linalg.inv(whiten) @ project @ whiten).T
    assert eraser(x).numpy() == pytest.approx(expected, abs=1e-9)
    assert (x @ eraser.weights.T + eraser.bias).numpy() == pytest.approx(expected, abs=1e-9)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_leace_changes_less_than_the_orthogonal_projection_and_its_authors_package_agrees():
    from concept_erasure import LeaceEraser  # warns when it is imported

    x, labels = gaussians()
    one_hot = torch.nn.functional.one_hot(labels).double()
    options = {"svd_tol": 1e-8, "shrinkage": False, "constrain_cov_trace": False}
    theirs = LeaceEraser.fit(x, one_hot, **options)
    orthogonal = LeaceEraser.fit(x, one_hot, method="orth", svd_tol=1e-8)
    ours = leace(x, labels)(x)
    assert torch.allclose(ours, theirs(x), atol=1e-9)
    assert covariance(orthogonal(x), labels).abs().max() < 1e-10
    assert (ours - x).square().sum() < 0.8 * (orthogonal(x) - x).square().sum()


def test_leace_with_features_that_depend_on_each_other_and_labels_with_gaps():
    x, labels = gaussians()
    x = torch.cat([x, x[:, :2] * 2, torch.ones(len(x), 1)], 1)
    eraser = leace(x, labels * 7 - 3)
    assert eraser.rank == 2
    assert covariance(eraser(x), labels).abs().max() < 1e-10
    assert torch.allclose(eraser(eraser(x)), eraser(x), atol=1e-8)
    assert torch.allclose(eraser(x).mean(0), x.mean(0))


def test_inlp_takes_the_direction_that_separates_gaussians():
    """It is the inverse covariance times the difference of means (Fisher, 1936)."""
    x, labels = gaussians(n=40_000, n_class=2, apart=1.0)
    inside = torch.stack([x[labels == k] - x[labels == k].mean(0) for k in (0, 1)][:1])[0]
    spread = inside.T @ inside / len(inside)
    best = torch.linalg.solve(spread, x[labels == 1].mean(0) - x[labels == 0].mean(0))
    best = best / best.norm()
    eraser = inlp(x, labels, 1)
    lost = torch.eye(8, dtype=torch.float64) - eraser.weights
    assert eraser.rank == 1
    assert float(best @ lost @ best) > 0.99
    assert torch.allclose(eraser.weights @ eraser.weights, eraser.weights, atol=1e-10)


def test_the_first_direction_is_that_of_scikit_learn():
    x, labels = gaussians(n_class=2)
    scaled = (x - x.mean(0)) / x.std(0)
    theirs = LogisticRegression(C=2.0, tol=1e-8).fit(scaled, labels).coef_[0] / x.std(0).numpy()
    direction = torch.as_tensor(theirs / np.linalg.norm(theirs))
    lost = torch.eye(8, dtype=torch.float64) - inlp(x, labels, 1).weights
    assert float(direction @ lost @ direction) > 0.999


def test_inlp_goes_on_until_nothing_is_left():
    x, labels = gaussians()
    ranks = [inlp(x, labels, n).rank for n in (1, 2, 3, 4, 9)]
    assert ranks == [2, 4, 6, 8, 8]
    majority = float(torch.bincount(labels).max()) / len(labels)
    scores = [accuracy(inlp(x, labels, n)(x), labels) for n in (1, 3)]
    assert accuracy(x, labels) > scores[0] + 0.05
    assert scores[1] < majority + 0.05
    assert torch.allclose(inlp(x, labels, 4)(x), x.mean(0).expand_as(x), atol=1e-8)


def test_random_directions_of_the_same_rank_leave_labels_readable():
    x, labels = gaussians(d=40)
    eraser = leace(x, labels)
    control = random_eraser(eraser, seed=1)
    assert control.rank == eraser.rank == 2
    assert torch.linalg.matrix_rank(torch.eye(40) - control.weights.float(), rtol=1e-4) == 2
    assert torch.allclose(control.weights, control.weights.T)
    assert torch.allclose(control(x).mean(0), x.mean(0))
    assert accuracy(control(x), labels) > accuracy(x, labels) - 0.05
    assert not torch.allclose(control.weights, random_eraser(eraser, seed=2).weights)
    assert torch.equal(control.weights, random_eraser(eraser, seed=1).weights)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_vectors_keep_their_dtype_and_half_ones_are_erased_in_float32(dtype):
    x, labels = gaussians()
    eraser = leace(x, labels)
    given = x.to(dtype).view(3, 500, 8)
    got = eraser(given)
    assert got.dtype == dtype
    assert got.shape == given.shape
    assert torch.equal(got, eraser(given.float()).to(dtype))
    assert torch.allclose(got.double(), eraser(given.double()), rtol=1e-2, atol=0.2)


def test_wrong_input_is_refused():
    x, labels = gaussians()
    for erase in (leace, lambda x, labels: inlp(x, labels, 1)):
        with pytest.raises(InputError, match="1 classes"):
            erase(x, labels * 0)
        with pytest.raises(ShapeError, match="one for each vector"):
            erase(x, labels[:-1])
        with pytest.raises(InputError, match="NaN"):
            erase(x / 0, labels)
    with pytest.raises(InputError, match="n_iter is 0"):
        inlp(x, labels, 0)
    eye = Eraser(weights=torch.eye(8).double(), mean=torch.zeros(8).double(), rank=0)
    with pytest.raises(ShapeError, match="expected"):
        eye(torch.zeros(2, 7))


@pytest.mark.parametrize("labels", [["a", "b"], (0, 1), torch.zeros(2, 2)])
def test_labels_that_are_no_tensor_of_numbers_are_refused(labels):
    with pytest.raises(InputError, match="expected a tensor of one whole number"):
        leace(torch.randn(2, 3), labels)
