"""Forwards without a hook."""

from collections.abc import Callable, Iterator
from typing import Any

from bloomlab.bench.models import Pair
from bloomlab.bench.plan import Plan, timed
from bloomlab.bench.timing import Row


def forward(pair: Pair, plan: Plan) -> Iterator[Row]:
    """A whole forward, logits of every token."""
    for pos in plan.lengths:
        ids = pair.ids(1, pos)
        yield _row(pair, plan, f"forward, {pos} tokens", lambda m, i=ids: m(i))


def prefill(pair: Pair, plan: Plan) -> Iterator[Row]:
    """A forward as before a generation: it fills a cache and gives the last token's logits."""
    for pos in plan.lengths:
        ids = pair.ids(1, pos)
        case = f"prefill, {pos} tokens"
        yield _row(pair, plan, case, lambda m, i=ids: m(i, use_cache=True, logits_to_keep=1))


def _row(pair: Pair, plan: Plan, case: str, run: Callable[[Any], object]) -> Row:
    calls = [lambda m=model: run(m) for model in (pair.ours, pair.theirs)]
    ours, theirs = timed(calls, plan)
    return Row(case=case, peer="transformers", ours=ours, theirs=theirs)
