"""Do two rankings of heads agree? Rank correlations and overlaps of scores, by name.

Scores may come from other methods, tasks, languages or seeds. Michel et al. (2019,
arXiv:1905.10650, section 4.4) compare importance across domains this way.
"""

# pyright: standard
# pandas and scipy come without types

from collections.abc import Mapping
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from bloomlab.errors import InputError, ShapeError

Scores = Mapping[str, Tensor | np.ndarray]


def rank_correlations(scores: Scores) -> pd.DataFrame:
    """One row for each pair of scores: a, b, spearman, kendall (tau-b), p-values, heads.

    Heads whose score is NaN in either do not count; ties get their mean rank. A correlation is NaN
    where a score is the same for all heads.

    Args:
        scores: [layer head] each, by name.

    Raises:
        InputError: fewer than two scores; a pair with fewer than two heads in common.
        ShapeError: scores of different shapes.
    """
    flat, rows = _flat(scores), []
    for a, b in combinations(flat, 2):
        both = np.isfinite(flat[a]) & np.isfinite(flat[b])
        n_head = int(both.sum())
        if n_head < 2:
            raise InputError(f"{a!r} and {b!r} have {n_head} heads in common, expected 2 or more.")
        x, y = flat[a][both], flat[b][both]
        constant = bool((x == x[0]).all() or (y == y[0]).all())
        nothing = (float("nan"), float("nan"))
        spearman = nothing if constant else _numbers(stats.spearmanr(x, y))
        kendall = nothing if constant else _numbers(stats.kendalltau(x, y))
        rows.append((a, b, spearman[0], kendall[0], spearman[1], kendall[1], n_head))
    names = ["a", "b", "spearman", "kendall", "spearman_p", "kendall_p", "heads"]
    return pd.DataFrame(rows, columns=names)


def top_overlap(scores: Scores, k: int) -> pd.DataFrame:
    """Which share of the `k` heads of largest score two rankings have in common: a, b, overlap.

    By lot it is `k` / heads. Of equal scores the earlier head counts as larger; NaN counts least.

    Raises:
        InputError: fewer than two scores; `k` below 1 or above the number of heads.
        ShapeError: scores of different shapes.
    """
    flat = _flat(scores)
    n_head = len(next(iter(flat.values())))
    if isinstance(k, bool) or not 1 <= k <= n_head:
        raise InputError(f"k is {k!r}, expected 1 to {n_head} heads.")
    top = {
        name: set(np.argsort(-values, kind="stable")[:k].tolist()) for name, values in flat.items()
    }
    rows = [(a, b, len(top[a] & top[b]) / k) for a, b in combinations(top, 2)]
    return pd.DataFrame(rows, columns=["a", "b", "overlap"])


def _numbers(found: object) -> tuple[float, float]:
    statistic, p_value = np.asarray(found, dtype=np.float64).tolist()
    return statistic, p_value


def _flat(scores: Scores) -> dict[str, Float[np.ndarray, " head"]]:
    if len(scores) < 2:
        raise InputError(f"{len(scores)} scores, expected two or more to compare.")
    arrays: dict[str, np.ndarray] = {}
    for name, value in scores.items():
        given = value.detach().double().cpu().numpy() if isinstance(value, Tensor) else value
        arrays[name] = np.asarray(given, dtype=np.float64)
    first = next(iter(arrays.values())).shape
    for name, array in arrays.items():
        if array.shape != first or array.ndim != 2:
            raise ShapeError(f"scores {name!r}", got=array.shape, expected=f"{first}: [layer head]")
    return {name: array.ravel() for name, array in arrays.items()}
