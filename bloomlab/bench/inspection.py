"""Looking inside: every activation, and a trace."""

from collections.abc import Callable, Iterator

from bloomlab.bench.models import Pair
from bloomlab.bench.plan import Plan, cost, timed
from bloomlab.bench.timing import Row


def run_with_cache(pair: Pair, plan: Plan) -> Iterator[Row]:
    """Every activation of a forward; transformers keeps its patterns and hidden states only."""
    ids = pair.ids(1, plan.look)
    outputs = {"output_attentions": True, "output_hidden_states": True}
    yield inspection(pair, plan, "transformers, 2 outputs", lambda: pair.theirs(ids, **outputs))
    yield cost(
        f"run_with_cache, {plan.look} tokens",
        "plain forward",
        lambda: pair.ours.run_with_cache(ids),
        lambda: pair.ours(ids, use_cache=False),
        plan,
    )


def inspection(pair: Pair, plan: Plan, peer: str, call: Callable[[], object]) -> Row:
    """`run_with_cache` of everything against another library's way, on `pair.ids(1, plan.look)`."""
    ids = pair.ids(1, plan.look)
    ours, theirs = timed([lambda: pair.ours.run_with_cache(ids), call], plan)
    return Row(case=f"run_with_cache, {plan.look} tokens", peer=peer, ours=ours, theirs=theirs)


def trace(pair: Pair, plan: Plan) -> Iterator[Row]:
    """A trace of everything: its time against a plain forward, its bytes against all patterns."""
    ids = pair.ids(1, plan.look)
    yield cost(
        f"trace, {plan.look} tokens",
        "forward without logits",  # a trace makes none either
        lambda: pair.ours.trace(ids),
        lambda: pair.ours.backbone(ids, use_cache=False),
        plan,
    )
    ids = pair.ids(1, 2 * plan.look)
    size, width = pair.sizes, pair.ours.dtype.itemsize
    patterns = size.n_layer * size.n_head * ids.shape[1] ** 2 * width
    for what, keep in (("q and k", {"keep": ("q", "k")}), ("everything", {})):
        yield Row(
            case=f"trace of {what}, {ids.shape[1]} tokens",
            peer="all patterns",
            ours=(float(pair.ours.trace(ids, **keep).nbytes),),
            theirs=(float(patterns),),
            unit="B",
            kind="cost",
        )
