"""Logistic regression: scikit-learn's minimum, also in a path of strengths."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from bloomlab.analysis.logistic import LogisticProblem


def drawn(n=400, d=12, n_class=4, dtype=torch.float64, seed=0):
    source = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=source, dtype=dtype)
    features = torch.randn(n, d, generator=source, dtype=dtype) @ mixing + 3
    noise = torch.randn(n, n_class, generator=source, dtype=dtype)
    labels = (features @ torch.randn(d, n_class, generator=source, dtype=dtype) / 3 + noise).argmax(
        1
    )
    return features, labels


def theirs(features, labels, strength):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LogisticRegression(C=strength, tol=1e-10, max_iter=20000).fit(features, labels)


def test_the_minimum_is_scikit_learns():
    features, labels = drawn()
    strengths = (1e-3, 1e-1, 10.0)
    ours = LogisticProblem(features, tolerance=1e-8).fit(labels, 4, strengths)
    for strength, (weights, bias) in zip(strengths, ours, strict=True):
        other = theirs(features.numpy(), labels.numpy(), strength)
        np.testing.assert_allclose(weights, other.coef_, atol=2e-4)
        said = (features @ weights.T + bias).softmax(-1)
        np.testing.assert_allclose(said, other.predict_proba(features.numpy()), atol=2e-4)


def test_two_classes_are_scikit_learns_at_twice_the_strength():
    features, labels = drawn(n_class=2)
    [(weights, bias)] = LogisticProblem(features, tolerance=1e-8).fit(labels, 2, [0.01])
    other = theirs(features.numpy(), labels.numpy(), 0.02)
    np.testing.assert_allclose((weights[1] - weights[0]), other.coef_[0], atol=1e-4)
    assert (bias[1] - bias[0]).item() == pytest.approx(other.intercept_[0], abs=1e-3)


def test_the_usual_tolerance_costs_little_accuracy_in_float32():
    features, labels = drawn(n=2000, d=40, n_class=6, dtype=torch.float32)
    [(weights, bias)] = LogisticProblem(features).fit(labels, 6, [0.1])
    ours = ((features @ weights.float().T + bias.float()).argmax(1) == labels).double().mean()
    other = theirs(features.double().numpy(), labels.numpy(), 0.1)
    assert ours.item() == pytest.approx(other.score(features.numpy(), labels.numpy()), abs=0.005)


def test_a_class_without_examples_is_never_said():
    features, labels = drawn(n_class=3)
    [(weights, bias)] = LogisticProblem(features).fit(labels, 5, [1.0])
    said = (features @ weights.T + bias).softmax(-1)
    assert said[:, 3:].max() < 0.02
    assert said.isfinite().all()


def test_constant_features_are_no_trouble():
    features, labels = drawn()
    features[:, 3] = 0
    [(weights, _)] = LogisticProblem(features).fit(labels, 4, [1.0])
    assert weights.isfinite().all()
    assert weights[:, 3].abs().max() < 1e-6
