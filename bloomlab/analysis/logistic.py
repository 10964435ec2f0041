"""Multinomial logistic regression, many strengths of the penalty on the same features."""

# pyright: standard
# scipy and torch.linalg come without types

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits
from torch import Tensor

STEPS = 500  # of L-BFGS, at most


class LogisticProblem:
    """Features on which logistic regressions are fitted, prepared once.

    Minimises what scikit-learn's LogisticRegression does, sum |w|^2 / 2 + C sum cross-entropy (bias
    free), by L-BFGS in coordinates where the curvature of all directions is about one, so that a
    few tens of steps do. Two classes have a vector each, as if `LogisticRegression` had twice the
    C.

    Args:
        features: float32 or float64.
        tolerance: the largest slope, of the mean cross-entropy in nats by these coordinates, at
            which it stops.
    """

    def __init__(self, features: Float[Tensor, "example d"], *, tolerance: float = 1e-3) -> None:
        self.tolerance = tolerance
        self.centre = features.mean(0)
        centred = features - self.centre
        spread = (centred.T @ centred).double() / len(features)
        spread, self.basis = torch.linalg.eigh(spread)
        self.spread = spread.clamp(min=0)
        self.inside = centred @ self.basis.to(centred)

    def fit(
        self, labels: Int[Tensor, " example"], n_class: int, strengths: Sequence[int | float]
    ) -> Iterator[tuple[Float[Tensor, "class d"], Float[Tensor, " class"]]]:
        """Weights and biases for each C, in float64; each C starts from the one before.

        Args:
            labels: 0 ... n_class - 1; a class may have no example.
            n_class: number of classes.
            strengths: values of scikit-learn's C; best in rising order.
        """
        n, d = self.inside.shape
        labels = labels.to(self.inside.device)
        weights = torch.zeros(n_class, d, dtype=torch.float64)
        bias = (torch.bincount(labels, minlength=n_class).cpu().double() + 0.5).log()
        bias = bias - bias.mean()
        for strength in strengths:
            weights, bias = self._fit(labels, weights, bias, 1 / (strength * n))
            outside = weights @ self.basis.T.cpu()
            yield outside, bias - outside @ self.centre.double().cpu()

    def _fit(
        self, labels: Tensor, weights: Tensor, bias: Tensor, penalty: float
    ) -> tuple[Tensor, Tensor]:
        # nothing is read where features do not vary; steps would only blow up rounding errors there
        blind = self.spread <= self.spread.max() * torch.finfo(self.inside.dtype).eps
        curve = torch.where(blind, 0.0, (0.5 * self.spread + penalty).rsqrt()).cpu()
        n, rows = len(labels), torch.arange(len(labels), device=labels.device)

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            packed = torch.from_numpy(flat).view(len(bias), -1)
            scaled, shift = packed[:, :-1] * curve, packed[:, -1:]
            logits = torch.addmm(shift.T.to(self.inside), self.inside, scaled.to(self.inside).T)
            logs = logits.log_softmax(1)
            value = -float(logs[rows, labels].mean(dtype=torch.float64))
            wrong = logs.exp_()
            wrong[rows, labels] -= 1
            slope = (self.inside.T @ wrong).T.double().cpu() / n + penalty * scaled
            free = wrong.sum(0, dtype=torch.float64).cpu() / n
            value += 0.5 * penalty * float(scaled.square().sum())
            return value, torch.cat([slope * curve, free[:, None]], 1).flatten().numpy()

        start = torch.cat([(weights / curve).nan_to_num(0), bias[:, None]], 1).flatten().numpy()
        options = {"maxiter": STEPS, "ftol": 0.01 * self.tolerance, "gtol": self.tolerance}
        with threadpool_limits(limits=1, user_api="blas"):  # its threads would fight torch's
            result = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
        packed = torch.as_tensor(result.x).view(len(bias), -1)
        return packed[:, :-1] * curve, packed[:, -1] - packed[:, -1].mean()
