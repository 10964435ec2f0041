"""Ridge regression in closed form, many problems and many penalties at once."""

# pyright: standard
# torch.linalg comes without types

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class RidgeProblem:
    """Groups of features on which ridge regressions are fitted, decomposed once.

    Args:
        features: groups of the same examples, such as the heads of a layer.
    """

    def __init__(self, features: Float[Tensor, "*group example d"]) -> None:
        features = features.double()
        self.centre = features.mean(-2, keepdim=True)
        self.centred = features - self.centre
        spread = self.centred.mT @ self.centred
        self.spread, self.basis = torch.linalg.eigh(spread)

    def fit(
        self, targets: Float[Tensor, "example target"], penalties: Sequence[int | float]
    ) -> Iterator[tuple[Float[Tensor, "*group target d"], Float[Tensor, "*group target"]]]:
        """For each penalty the minimum of |y - Xw - b|^2 + penalty |w|^2, in float64.

        Args:
            targets: the same for each group.
            penalties: scikit-learn's alpha; 0 is least squares, of the smallest |w| if several do.
        """
        targets = targets.double()
        mean = targets.mean(0)
        inside = self.basis.mT @ (self.centred.mT @ (targets - mean))
        top = self.spread.amax(-1, keepdim=True)
        blind = self.spread <= top * self.spread.shape[-1] * torch.finfo(torch.float64).eps
        for penalty in penalties:
            shrunk = torch.where(blind, 0.0, (self.spread + penalty).reciprocal())
            weights = (self.basis @ (shrunk[..., None] * inside)).mT
            yield weights, mean - (weights * self.centre).sum(-1)
