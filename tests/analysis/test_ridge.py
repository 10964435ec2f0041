"""Ridge regression: scikit-learn's, for groups and penalties at once."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, Ridge

from bloomlab.analysis.ridge import RidgeProblem


@pytest.fixture
def drawn():
    source = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, 60, 7, generator=source) * torch.arange(1, 8) + 2
    return features, torch.randn(60, 4, generator=source)


def test_grouped_ridge_is_scikit_learns(drawn):
    features, targets = drawn
    penalties = (0.1, 5.0, 300.0)
    ours = RidgeProblem(features).fit(targets, penalties)
    for penalty, (weights, bias) in zip(penalties, ours, strict=True):
        for group in np.ndindex(2, 3):
            one = Ridge(alpha=penalty).fit(features[group].double().numpy(), targets.numpy())
            np.testing.assert_allclose(weights[group], one.coef_, atol=1e-10)
            np.testing.assert_allclose(bias[group], one.intercept_, atol=1e-10)


def test_no_penalty_is_least_squares_also_of_dependent_features(drawn):
    features, targets = drawn
    features = torch.cat([features, features[..., :2] * 2], -1)
    [(weights, bias)] = RidgeProblem(features).fit(targets, [0.0])
    one = LinearRegression().fit(features[1, 2].double().numpy(), targets.numpy())
    np.testing.assert_allclose(weights[1, 2], one.coef_, atol=1e-8)
    np.testing.assert_allclose(bias[1, 2], one.intercept_, atol=1e-8)
