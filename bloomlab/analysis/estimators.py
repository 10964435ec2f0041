"""Linear classifiers of scikit-learn as probes."""

# pyright: standard
# scikit-learn comes without types

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.errors import InputError

SAME = 0.99  # share of predictions that a class's vector must give as the classifier does


def check_classifier(estimator: Any) -> None:
    """Raise unless this is a classifier of scikit-learn.

    Raises:
        InputError: it is none.
    """
    from sklearn.base import is_classifier  # takes a second; most probes need none of it

    known = hasattr(estimator, "__sklearn_tags__") and not isinstance(estimator, type)
    if not known or not is_classifier(estimator):
        raise InputError(f"{estimator!r:.60} is no classifier of scikit-learn.")


class EstimatorProblem:
    """Features on which a scikit-learn classifier with `coef_` and `intercept_` is fitted.

    Args:
        features: what it is fitted on.
        estimator: LogisticRegression, RidgeClassifier, LinearSVC, SGDClassifier ...; cloned for
            each fit, its own parameters count.

    Raises:
        InputError: something else than a classifier of scikit-learn.
    """

    def __init__(self, features: Float[Tensor, "example d"], estimator: Any) -> None:
        check_classifier(estimator)
        self.features = features.cpu().numpy()
        self.estimator = estimator

    def fit(
        self, labels: Int[Tensor, "set example"], n_class: int, strengths: Sequence[int | float]
    ) -> Iterator[tuple[Float[Tensor, "set class d"], Float[Tensor, "set class"]]]:
        """Weights and biases, once for each of `strengths`, which otherwise go unused.

        Two classes have half the vector each, of opposite signs; a class without examples is never
        chosen.

        Raises:
            InputError: a classifier that is not linear, has no vector for each class, or does not
                take these labels.
        """
        for _ in strengths:
            weights, bias = zip(*(self._fit(one, n_class) for one in labels), strict=True)
            yield torch.stack(weights), torch.stack(bias)

    def _fit(self, labels: Int[Tensor, " example"], n_class: int) -> tuple[Tensor, Tensor]:
        from sklearn.base import clone

        try:
            fresh: Any = clone(self.estimator)
            fitted: Any = fresh.fit(self.features, labels.cpu().numpy())
        except ValueError as error:
            raise InputError(f"{self.estimator!r:.60} does not fit: {error}") from error
        if not hasattr(fitted, "coef_"):
            raise InputError(f"{self.estimator!r:.60} is not linear: it has no coef_.")
        coef = torch.tensor(fitted.coef_, dtype=torch.float64).reshape(-1, self.features.shape[1])
        shift = torch.tensor(fitted.intercept_, dtype=torch.float64).reshape(-1).expand(len(coef))
        if len(coef) == 1:
            coef, shift = torch.cat([-coef, coef]) / 2, torch.cat([-shift, shift]) / 2
        said = fitted.predict(self.features)
        same = 0.0
        if len(coef) == len(fitted.classes_):
            ours = (torch.as_tensor(self.features).double() @ coef.T + shift).argmax(-1).numpy()
            same = float((fitted.classes_[ours] == said).mean())
        if same < SAME:
            raise InputError(
                f"{self.estimator!r:.60} has {len(coef)} vectors that do not stand for its "
                f"{len(fitted.classes_)} classes one by one, as LinearSVC's do."
            )
        weights = coef.new_zeros(n_class, coef.shape[1])
        bias = shift.new_full((n_class,), -torch.inf)
        seen = torch.as_tensor(fitted.classes_)
        weights[seen], bias[seen] = coef, shift
        return weights, bias
