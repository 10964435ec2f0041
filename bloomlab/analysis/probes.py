"""What a probe's score is worth: control labels and online code length.

Hewitt and Liang (2019, arXiv:1909.03368); Voita and Titov (2020, arXiv:2003.12298).
"""

# pyright: standard
# torch.unique and Tensor.tolist come without types

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.errors import InputError

PERCENT = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.25, 12.5, 25.0, 50.0, 100.0)  # Voita and Titov's

# (features, labels) seen so far, features of the next block -> log2 probabilities of these
Coder = Callable[[Tensor, Tensor, Tensor], Tensor]


def control_labels(
    types: Int[Tensor, " example"], labels: Int[Tensor, " example"], *, seed: int = 0
) -> Int[Tensor, " example"]:
    """A label for each example that depends on its type (of word) alone, at random.

    Each type draws once, from how often the labels occur (Hewitt and Liang's control task): a probe
    can know it only by heart.
    """
    source = torch.Generator().manual_seed(seed)
    kinds, place = torch.unique(types.cpu(), return_inverse=True)
    chances = torch.bincount(labels.cpu()).double()
    drawn = torch.multinomial(chances, len(kinds), replacement=True, generator=source)
    return drawn[place].to(labels)


def selectivity(accuracy: float, control_accuracy: float) -> float:
    """Accuracy on the labels less that on control labels (Hewitt and Liang, 2019)."""
    return accuracy - control_accuracy


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineCode:
    """How short labels become for one who has the features (Voita and Titov, 2020).

    Attributes:
        bits: length of the code.
        uniform: length of the code that knows nothing, n log2 classes.
        ends: how many examples each block ends with.
        blocks: bits of each block; the first is sent uniformly.
    """

    bits: float
    uniform: float
    ends: tuple[int, ...]
    blocks: tuple[float, ...]

    @property
    def compression(self) -> float:
        """Uniform code over this one; 1 = the features tell nothing."""
        return self.uniform / self.bits if self.bits else math.inf


def online_code(
    features: Float[Tensor, "example d"],
    labels: Int[Tensor, " example"],
    n_class: int,
    coder: Coder,
    *,
    percent: Sequence[int | float] = PERCENT,
) -> OnlineCode:
    """Bits to send the labels block by block, each by a probe fitted on all blocks before.

    L = t1 log2 K - sum_i log2 p(labels i+1 | probe of labels 1 ... i). A block's probabilities are
    mixed with 1 / (examples seen + 1) of the uniform ones, so that a class that was never seen
    costs a finite number of bits.

    Args:
        features: in the order in which they are sent; shuffle them.
        labels: 0 ... n_class - 1.
        n_class: number of classes, K.
        coder: fits a probe; log2 probabilities [next class] of what comes next.
        percent: ends of the blocks, in percent of the examples; the last is 100.

    Raises:
        InputError: fewer than two classes, or percentages that do not rise to 100.
    """
    if n_class < 2:
        raise InputError(f"a code of {n_class} classes has nothing to tell; expected 2 or more.")
    if list(percent) != sorted(percent) or not percent or percent[0] <= 0 or percent[-1] != 100:
        raise InputError(f"percent is {list(percent)}, expected rising numbers that end in 100.")
    n = len(labels)
    ends = sorted({max(1, round(n * share / 100)) for share in percent})
    blocks = [ends[0] * math.log2(n_class)]
    for start, stop in pairwise(ends):
        logs = coder(features[:start], labels[:start], features[start:stop]).double()
        sent = logs.gather(-1, labels[start:stop, None].long())[:, 0].exp2()
        mixed = (sent * start + 1 / n_class) / (start + 1)
        blocks.append(-float(mixed.log2().sum()))
    return OnlineCode(
        bits=sum(blocks), uniform=n * math.log2(n_class), ends=tuple(ends), blocks=tuple(blocks)
    )


def resampled_interval(
    counts: Float[Tensor, "text part"],
    statistic: Callable[[Float[Tensor, "draw part"]], Float[Tensor, " draw"]],
    level: float = 0.95,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Bootstrap interval over texts of a statistic of sums, such as a ratio or macro F1.

    Args:
        counts: what each text adds to the sums.
        statistic: a number for each draw's sums.
        level: share of the interval, 0 ... 1.
        draws: number of resampled sums; NaN ones are left out.
        seed: of the draws; the same texts for the same seed.

    Raises:
        InputError: a level that is no share.
    """
    if not 0 < level < 1:
        raise InputError(f"level is {level}, expected a share between 0 and 1, such as 0.95.")
    source = torch.Generator().manual_seed(seed)
    n = len(counts)
    chosen = torch.randint(n, (draws, n), generator=source)
    times = torch.zeros(draws, n, dtype=torch.float64)
    times.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
    values = statistic(times @ counts.double().cpu())
    values = values[~values.isnan()]
    if not len(values):
        return math.nan, math.nan
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(values.double(), ends).tolist()
    return low, high
