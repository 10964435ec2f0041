"""How much a benchmark measures, and for how long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from bloomlab.bench.timing import Row, interleaved


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much to measure, and for how long.

    Attributes:
        lengths: tokens of the forwards.
        batches: rows of the generations.
        prompt: tokens before a generation.
        new_tokens: tokens to generate.
        look: tokens of what is recorded.
        long: tokens of the forward whose memory is measured.
        prefix: tokens of the prefix that is forked.
        forks: how many forks.
        seconds: measuring time of a row.
        least: turns of a row, however long they take.
    """

    lengths: tuple[int, ...] = (128, 512, 1024, 2048)
    batches: tuple[int, ...] = (1, 8)
    prompt: int = 32
    new_tokens: int = 64
    look: int = 512
    long: int = 2048
    prefix: int = 1000
    forks: int = 384
    seconds: float = 10.0
    least: int = 5


QUICK = Plan(
    lengths=(32, 128),
    prompt=8,
    new_tokens=8,
    look=64,
    long=256,
    prefix=64,
    forks=8,
    seconds=0.2,
    least=3,
)


@torch.no_grad()
def timed(calls: Sequence[Callable[[], object]], plan: Plan) -> list[tuple[float, ...]]:
    """`interleaved` without gradients, for as long as the plan says."""
    return interleaved(calls, seconds=plan.seconds, least=plan.least)


def cost(
    case: str, peer: str, call: Callable[[], object], plain: Callable[[], object], plan: Plan
) -> Row:
    """What a call costs over a plain one."""
    ours, theirs = timed([call, plain], plan)
    return Row(case=case, peer=peer, ours=ours, theirs=theirs, kind="cost")
