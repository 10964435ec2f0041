"""A linear probe: fitted on standardised features, chosen on others, read anywhere."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from bloomlab.analysis.linear_probe import KINDS, LinearProbe, ProbeFitter
from bloomlab.errors import InputError, ShapeError, UnknownNameError


def drawn(n=300, d=10, n_class=3, seed=0):
    source = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=source) * torch.logspace(-2, 2, d) + 5
    labels = ((features - 5) / torch.logspace(-2, 2, d))[:, :n_class].argmax(1)
    return features, labels


@pytest.mark.parametrize("kind", KINDS)
def test_labels_that_are_linear_in_the_features_are_read(kind):
    features, labels = drawn()
    strengths = {"logistic": [1000.0], "ridge": [1.0], "linear": None}[kind]
    fitter = ProbeFitter(features[:200], features[:0], kind=kind, strengths=strengths)
    one = fitter.fit(labels[:200], labels[:0], 3)
    right = (one.logits(features[200:]).argmax(-1) == labels[200:]).double().mean()
    assert right > (0.97 if kind == "logistic" else 0.9)


def test_a_ridge_probe_is_scikit_learns_classifier():
    features, labels = drawn()
    fitter = ProbeFitter(features[:200], features[:0], kind="ridge", strengths=[7.0])
    one = fitter.fit(labels[:200], labels[:0], 3)
    scaler = StandardScaler().fit(features[:200].numpy())
    other = RidgeClassifier(alpha=7.0).fit(scaler.transform(features[:200].numpy()), labels[:200])
    theirs = other.decision_function(scaler.transform(features[200:].numpy()))
    # scikit-learn's targets are -1 and 1, ours 0 and 1
    torch.testing.assert_close(
        one.logits(features[200:]).double() * 2 - 1,
        torch.tensor(theirs).double(),
        rtol=0,
        atol=1e-4,
    )


def test_the_strength_is_the_best_on_dev():
    features, labels = drawn(n=120, d=60)
    noisy = labels.clone()
    source = torch.Generator().manual_seed(1)
    noisy[:40] = torch.randint(3, (40,), generator=source)
    strengths = [1e-4, 1e-2, 1.0, 1e2]
    alone = [
        ProbeFitter(features[:60], features[:0], strengths=[s]).fit(noisy[:60], labels[:0], 3)
        for s in strengths
    ]
    right = [(one.logits(features[60:]).argmax(-1) == labels[60:]).sum().item() for one in alone]
    best = strengths[right.index(max(right))]
    chosen = ProbeFitter(features[:60], features[60:], strengths=strengths).fit(
        noisy[:60], labels[60:], 3
    )
    assert chosen.strength == best
    assert min(right) < max(right)


def test_the_gradient_is_that_of_a_logit_against_the_mean():
    features, labels = drawn()
    one = ProbeFitter(features, features[:0], strengths=[0.1]).fit(labels, labels[:0], 3)
    stream = features[:1].clone().requires_grad_()
    logits = one.logits(stream)
    (slope,) = torch.autograd.grad(logits[0, 2] - logits[0].mean(), stream)
    torch.testing.assert_close(one.gradient(2), slope[0])


def test_half_precision_streams_are_read_in_float32():
    features, labels = drawn()
    one = ProbeFitter(features, features[:0], strengths=[0.1]).fit(labels, labels[:0], 3)
    half = features.bfloat16()
    assert one.logits(half).dtype == torch.float32
    torch.testing.assert_close(one.logits(half), one.logits(half.float()))


@pytest.mark.parametrize("n_class", [2, 3])
@pytest.mark.parametrize("estimator", [LogisticRegression(C=0.3, max_iter=2000), RidgeClassifier()])
def test_a_classifier_of_scikit_learn_says_what_it_says_by_itself(estimator, n_class):
    features, labels = drawn()
    labels = labels % n_class
    one = ProbeFitter(features, features[:0], kind=estimator).fit(labels, labels[:0], n_class)
    scaled = ((features - features.mean(0)) / features.std(0, correction=0)).numpy()
    expected = clone(estimator).fit(scaled, labels.numpy())
    assert one.logits(features).argmax(-1).tolist() == expected.predict(scaled).tolist()
    assert not hasattr(estimator, "coef_")  # the given one is left as it was
    if isinstance(estimator, LogisticRegression):
        chances = one.logits(features).softmax(-1)
        np.testing.assert_allclose(chances, expected.predict_proba(scaled), atol=1e-5)


def test_a_class_that_a_classifier_never_saw_is_never_said():
    features, labels = drawn()
    fitter = ProbeFitter(features, features[:0], kind=LogisticRegression())
    one = fitter.fit(labels * 2, labels[:0], 5)
    assert set(one.logits(features).argmax(-1).tolist()) == {0, 2, 4}


@pytest.mark.parametrize("kind", [LogisticRegression, KMeans(2), 3])
def test_what_is_no_classifier_is_refused(kind):
    features, labels = drawn()
    with pytest.raises(InputError, match="is no classifier of scikit-learn"):
        ProbeFitter(features, features[:0], kind=kind)


def test_a_classifier_that_cannot_be_a_probe_is_refused():
    features, labels = drawn()
    with pytest.raises(InputError, match="not linear: it has no coef_"):
        ProbeFitter(features, features[:0], kind=KNeighborsClassifier()).fit(labels, labels[:0], 3)
    with pytest.raises(InputError, match="parameters of its own"):
        ProbeFitter(features, features[:0], kind=LogisticRegression(), strengths=[1.0])
    with pytest.raises(InputError, match="does not fit"):
        ProbeFitter(features, features[:0], kind=LogisticRegression()).fit(0 * labels, labels, 3)


@pytest.mark.parametrize("n_class", [3, 4])
def test_a_classifier_with_a_vector_for_each_pair_is_refused(n_class):
    source = torch.Generator().manual_seed(0)
    features = torch.randn(200, 10, generator=source)
    labels = features[:, :n_class].argmax(1)
    fitter = ProbeFitter(features, features[:0], kind=SVC(kernel="linear"))
    with pytest.raises(InputError, match="vectors that do not stand for its"):
        fitter.fit(labels, labels[:0], n_class)


@pytest.mark.parametrize(
    ("kind", "strengths", "match"),
    [("logistic", [0.0], "above 0"), ("ridge", [-1.0], "above 0"), ("linear", [1.0], "no penalty")],
)
def test_strengths_that_are_none_are_refused(kind, strengths, match):
    features, _ = drawn()
    with pytest.raises(InputError, match=match):
        ProbeFitter(features, features, kind=kind, strengths=strengths)


def test_what_cannot_be_is_refused():
    features, labels = drawn()
    with pytest.raises(UnknownNameError, match="kind of probe 'logistc'.*'logistic'"):
        ProbeFitter(features, features, kind="logistc")
    with pytest.raises(InputError, match="4 strengths and 0 dev examples"):
        ProbeFitter(features, features[:0])
    with pytest.raises(InputError, match="0 strengths"):
        ProbeFitter(features, features, strengths=[])
    one = LinearProbe(
        weights=torch.zeros(2, 3),
        bias=torch.zeros(2),
        mean=torch.zeros(3),
        scale=torch.ones(3),
        strength=1.0,
    )
    with pytest.raises(ShapeError, match=r"\(5, 4\), expected \[..., 3\]"):
        one.logits(torch.zeros(5, 4))
