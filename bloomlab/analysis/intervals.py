"""How sure a mean is: its standard error, and the bootstrap (Efron, 1979)."""

import torch
from jaxtyping import Float
from torch import Tensor


def standard_error(values: Float[Tensor, "*lead example"]) -> Float[Tensor, "*lead"]:
    """Standard error of the mean over examples; NaN for a single one."""
    if values.shape[-1] == 1:
        return torch.full_like(values[..., 0], torch.nan)
    return values.std(-1) / values.shape[-1] ** 0.5


def ratio_of_means(
    values: Float[Tensor, "*lead example"], whole: Float[Tensor, " example"]
) -> tuple[Float[Tensor, "*lead"], Float[Tensor, "*lead"]]:
    """Mean of values over mean of a whole, and its standard error by the delta method.

    NaN where the whole is 0 on average; the error is NaN for a single example.
    """
    total = whole.mean()
    ratio = values.mean(-1) / torch.where(total == 0, torch.nan, total)
    return ratio, standard_error(values - ratio[..., None] * whole) / total.abs()


def bootstrap_mean(
    values: Float[Tensor, "*lead example"], level: float = 0.95, *, draws: int = 2000, seed: int = 0
) -> tuple[Float[Tensor, "*lead"], Float[Tensor, "*lead"]]:
    """Low and high end of the percentile interval of the mean over examples.

    Args:
        values: what is averaged; every leading entry is drawn with the same examples.
        level: share of the interval, 0 ... 1.
        draws: number of resampled means.
        seed: of the draws.

    Raises:
        ValueError: a level that is no share.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a share between 0 and 1, such as 0.95.")
    n = values.shape[-1]
    source = torch.Generator().manual_seed(seed)
    counts = torch.zeros(draws, n, dtype=values.dtype)
    chosen = torch.randint(n, (draws, n), generator=source)
    counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=values.dtype))
    means = values.cpu() @ counts.T / n
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=values.dtype)
    low, high = torch.quantile(means, ends, dim=-1)
    return low, high
