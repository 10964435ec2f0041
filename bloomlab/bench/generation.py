"""Greedy generation: time per token, share of the memory bandwidth, cost of hooks."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bloomlab.bench.models import Pair
from bloomlab.bench.plan import Plan, cost, timed
from bloomlab.bench.timing import Row
from bloomlab.sizes import readable

CACHES = 2**28  # bytes; weights below may stay in a processor's caches, and are not read anew
READ = 2**29  # bytes read to measure a bandwidth


def decode(pair: Pair, plan: Plan) -> Iterator[Row]:
    """Greedy generation, seconds per token, prompt included; and its share of the bandwidth."""
    for batch in plan.batches:
        ids = pair.ids(batch, plan.prompt)
        ours, theirs = (_generation(model, ids) for model in (pair.ours, pair.theirs))
        same = torch.equal(ours(plan.new_tokens), theirs(plan.new_tokens))
        times = timed([partial(run, plan.new_tokens) for run in (ours, theirs)], plan)
        mine, other = (tuple(t / plan.new_tokens for t in turns) for turns in times)
        yield Row(
            case=f"generate, a token of {batch} row{'s' * (batch > 1)}",
            peer="transformers",
            ours=mine,
            theirs=other,
            note="same tokens" if same else "other tokens: rounding decides between near ties",
        )
    if pair.weight_bytes >= CACHES:
        yield _share_of_bandwidth(pair, plan)


def hooked(pair: Pair, plan: Plan) -> Iterator[Row]:
    """Generation with a hook in every layer, against the same without."""
    run = _generation(pair.ours, pair.ids(1, plan.prompt))
    hooks = [(f"blocks.{layer}.hook_resid_post", _look) for layer in range(pair.sizes.n_layer)]

    def hooked_run() -> Tensor:
        with pair.ours.hooks(fwd_hooks=hooks):
            return run(plan.new_tokens)

    yield cost(
        f"generate {plan.new_tokens}, a hook per layer",
        "no hooks",
        hooked_run,
        partial(run, plan.new_tokens),
        plan,
    )


def _share_of_bandwidth(pair: Pair, plan: Plan) -> Row:
    """Time of a token against that of reading once what it needs, at the best speed measured."""
    run = _generation(pair.ours, pair.ids(1, plan.prompt))
    read, moved, verb = _reader(pair.ours.device)
    calls = [partial(run, 1), partial(run, 1 + plan.new_tokens), read, read, read]
    first, whole, *reads = timed(calls, plan)
    per_token = tuple((b - a) / plan.new_tokens for a, b in zip(first, whole, strict=True))
    peak = moved / min(map(min, reads))
    past = plan.prompt + plan.new_tokens / 2  # on average
    needed = pair.weight_bytes + pair.sizes.cache * past * pair.ours.dtype.itemsize
    if not pair.sizes.tie_word_embeddings:  # of the embedding, a token reads one row
        needed -= pair.sizes.embedding * pair.ours.dtype.itemsize
    return Row(
        case="decode, a token of 1 row",
        peer=f"{verb} at {peak / 1e9:.0f} GB/s",
        ours=per_token,
        theirs=(needed / peak,) * len(per_token),
        kind="share",
        note=f"{readable(round(needed))} a token",
    )


def _reader(device: torch.device) -> tuple[Callable[[], object], int, str]:
    """A call that moves bytes as fast as the device can, how many, and what it does.

    A CPU reads (a sum, in all threads), a GPU copies, which reads and writes.
    """
    source = torch.ones(READ // 4, device=device)
    if device.type == "cpu":
        return source.sum, READ, "reading memory"
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2 * READ, "copying memory"


def _generation(model: Any, ids: Tensor) -> Callable[[int], Tensor]:
    """Greedy generation of exactly so many tokens."""
    mask = torch.ones_like(ids)
    return lambda count: model.generate(
        ids, attention_mask=mask, max_new_tokens=count, do_sample=False
    )


def _look(value: Tensor, hook: object) -> None:
    """A hook that edits nothing; the model cannot know that."""
