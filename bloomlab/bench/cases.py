"""Every benchmark by its name."""

from collections.abc import Iterator, Sequence

from bloomlab.bench import forwards, generation, inspection, loading, memory
from bloomlab.bench.models import Pair
from bloomlab.bench.plan import Plan
from bloomlab.bench.timing import Row
from bloomlab.errors import UnknownNameError

CASES = {
    "forward": forwards.forward,
    "prefill": forwards.prefill,
    "decode": generation.decode,
    "hooked": generation.hooked,
    "run_with_cache": inspection.run_with_cache,
    "trace": inspection.trace,
    "forks": memory.forks,
    "memory": memory.peak,
    "load": loading.loading,
}


def chosen(names: Sequence[str]) -> list[str]:
    """The names, checked; none is all.

    Raises:
        UnknownNameError: no such benchmark.
    """
    for name in names:
        if name not in CASES:
            raise UnknownNameError("benchmark", name, CASES)
    return list(names) or list(CASES)


def rows(pair: Pair, plan: Plan, names: Sequence[str] = ()) -> Iterator[Row]:
    """The rows of the named benchmarks (none: all), each as soon as it is measured."""
    for name in chosen(names):
        yield from CASES[name](pair, plan)
