"""Peers timed in turn in one process, and what a comparison says."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

WARM = 0.2  # share of the measuring time that goes, at most, into more than one warm-up turn


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One comparison: what was measured of us and of a peer, turn by turn.

    Attributes:
        case: what was done, with its size.
        peer: what it is compared with.
        ours: our seconds (or bytes) of each turn.
        theirs: the peer's in the same turns.
        unit: "s" or "B".
        kind: how to read the ratio. "speed" is theirs / ours, above 1 we are better; "cost" is
            ours / theirs, what a feature costs; "share" is theirs / ours, of a limit.
        note: what else was seen.
    """

    case: str
    peer: str
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    unit: Literal["s", "B"] = "s"
    kind: Literal["speed", "cost", "share"] = "speed"
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        """The ratio of every turn, as `kind` says; neighbours in time, so they share the noise."""
        pairs = zip(self.ours, self.theirs, strict=True)
        return [self._ratio(ours, theirs) for ours, theirs in pairs]

    @property
    def ratio(self) -> float:
        """Median of the turns' ratios."""
        return statistics.median(self.ratios)

    @property
    def quartiles(self) -> tuple[float, float]:
        """First and third quartile of the turns' ratios; the ratio itself of a single turn."""
        if len(self.ratios) < 2:
            return self.ratio, self.ratio
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    @property
    def best(self) -> float:
        """Ratio of the smallest values: what an undisturbed machine would say."""
        return self._ratio(min(self.ours), min(self.theirs))

    def _ratio(self, ours: float, theirs: float) -> float:
        above, below = (ours, theirs) if self.kind == "cost" else (theirs, ours)
        return above / below if below else float("inf")


def interleaved(
    calls: Sequence[Callable[[], object]], *, seconds: float, least: int = 5
) -> list[tuple[float, ...]]:
    """Seconds that each call took in each turn: one tuple a call, all of the same length.

    Every turn makes all calls, starting with another one each time, so that a busy neighbour or a
    slow clock meets all alike. Turns that come before (caches, compilation) are not counted.

    Args:
        calls: what to time; called without arguments.
        seconds: for about how long.
        least: turns to make even if they take longer.
    """
    start = time.perf_counter()
    for call in calls:
        _timed(call)
    while time.perf_counter() - start < WARM * seconds:
        for call in calls:
            _timed(call)
    taken: list[list[float]] = [[] for _ in calls]
    end, turn = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or turn < least:
        for place in range(len(calls)):
            index = (place + turn) % len(calls)
            taken[index].append(_timed(calls[index]))
        turn += 1
    return [tuple(times) for times in taken]


def _timed(call: Callable[[], object]) -> float:
    """Seconds of a call whose result is thrown away, to the end of its work on a GPU."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else _nothing
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def _nothing() -> None:
    pass
