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
        self, labels: Int[Tensor, "*set example"], n_class: int, strengths: Sequence[int | float]
    ) -> Iterator[tuple[Float[Tensor, "*set class d"], Float[Tensor, "*set class"]]]:
        """Weights and biases for each C, in float64; each C starts from the one before.

        Args:
            labels: 0 ... n_class - 1; a class may have no example. Several sets of labels are
                fitted in the same steps, which costs little more than one.
            n_class: number of classes.
            strengths: values of scikit-learn's C; best in rising order.
        """
        (n, d), lead = self.inside.shape, labels.shape[:-1]
        sets = labels.reshape(-1, n).to(self.inside.device, torch.long)
        weights = torch.zeros(len(sets), n_class, d, dtype=torch.float64)
        counts = torch.stack([torch.bincount(one, minlength=n_class) for one in sets])
        bias = (counts.cpu().double() + 0.5).log()
        bias = bias - bias.mean(1, keepdim=True)
        for strength in strengths:
            weights, bias = self._fit(sets, weights, bias, 1 / (strength * n))
            outside = weights @ self.basis.T.cpu()
            shift = bias - outside @ self.centre.double().cpu()
            yield outside.view(*lead, n_class, d), shift.view(*lead, n_class)

    def _fit(
        self,
        labels: Int[Tensor, "set example"],
        weights: Float[Tensor, "set class d"],
        bias: Float[Tensor, "set class"],
        penalty: float,
    ) -> tuple[Tensor, Tensor]:
        # nothing is read where features do not vary; steps would only blow up rounding errors there
        blind = self.spread <= self.spread.max() * torch.finfo(self.inside.dtype).eps
        curve = torch.where(blind, 0.0, (0.5 * self.spread + penalty).rsqrt()).cpu()
        n, (n_set, n_class) = labels.shape[1], bias.shape
        first = n_class * torch.arange(n_set, device=labels.device)
        right = labels.T + first  # columns of all sets' classes side by side
        minus = -torch.ones(n, n_set, dtype=self.inside.dtype, device=labels.device)

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            packed = torch.from_numpy(flat).view(n_set * n_class, -1)
            scaled, shift = packed[:, :-1] * curve, packed[:, -1:]
            logits = torch.addmm(shift.T.to(self.inside), self.inside, scaled.to(self.inside).T)
            logs = logits.view(n, n_set, n_class).log_softmax(2).view(n, -1)
            value = -float(logs.gather(1, right).sum(dtype=torch.float64)) / n
            wrong = logs.exp_().scatter_add_(1, right, minus)
            slope = (self.inside.T @ wrong).T.double().cpu() / n + penalty * scaled
            free = wrong.sum(0, dtype=torch.float64).cpu() / n
            value += 0.5 * penalty * float(scaled.square().sum())
            return value, torch.cat([slope * curve, free[:, None]], 1).flatten().numpy()

        begin = (weights / curve).nan_to_num(0)
        start = torch.cat([begin, bias[..., None]], 2).flatten().numpy()
        options = {"maxiter": STEPS, "ftol": 0.01 * self.tolerance, "gtol": self.tolerance}
        with threadpool_limits(limits=1, user_api="blas"):  # its threads would fight torch's
            result = minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
        packed = torch.as_tensor(result.x).view(n_set, n_class, -1)
        shift = packed[..., -1]
        return packed[..., :-1] * curve, shift - shift.mean(1, keepdim=True)
