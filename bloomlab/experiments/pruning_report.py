"""What pruning saved: parameters, cache, and time, measured side by side."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.sizes import sizes_of


@torch.no_grad()
def pruning_report(
    model: Any, pruned: Any, *, length: int = 128, new: int = 16, rows: int = 1, turns: int = 5
) -> pd.DataFrame:
    """A table with a row for each quantity: `before`, `after`, and `saved`, the share that is gone.

    Heads, MLP neurons and parameters are counted; bytes of the weights and, per token, of the KV
    cache are those of the models' number format. Seconds are medians over turns in which both
    models run one after the other, so that a busy neighbour meets both: of one forward over a
    prompt of random ids, and (language models) of each token generated after it.

    Args:
        model: before.
        pruned: after, on the same device.
        length: tokens of the prompt.
        new: tokens to generate.
        rows: of the batch.
        turns: to take the median of.

    Raises:
        InputError: another device, or a number below one.
    """
    for name, count in {"length": length, "new": new, "rows": rows, "turns": turns}.items():
        if count < 1:
            raise InputError(f"{name} is {count}, expected one or more.")
    if model.device != pruned.device:
        raise InputError(f"the models are on {model.device} and {pruned.device}; expected one.")
    both = (model, pruned)
    vocabulary = min(one.config.vocab_size for one in both)
    source = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (rows, length), generator=source).to(model.device)
    mask = torch.ones_like(ids)
    table: dict[str, list[float]] = {
        name: [count(one) for one in both] for name, count in _COUNTS.items()
    }
    table[f"forward over {length} tokens (s)"] = _medians(
        [lambda one=one: one(ids, attention_mask=mask, use_cache=False) for one in both], turns
    )
    if all(hasattr(one, "generate") for one in both):
        times = _medians([_generation(one, ids, mask, new) for one in both], turns)
        table["generation per token (s)"] = times
    frame = pd.DataFrame.from_dict(table, orient="index", columns=["before", "after"])
    frame["saved"] = 1 - frame.after / frame.before
    return frame.rename_axis("quantity")


def _generation(model: Any, ids: Tensor, mask: Tensor, new: int) -> Callable[[], float]:
    """A function that generates, and gives the seconds from the first new token to the last."""

    def seconds() -> float:
        steps = model.stream(ids, attention_mask=mask, max_new_tokens=new + 1, eos_token_id=[])
        next(steps)
        _wait(model.device)
        start = time.perf_counter()
        count = sum(1 for _ in steps)
        _wait(model.device)
        return (time.perf_counter() - start) / count

    return seconds


def _medians(calls: Sequence[Callable[[], Any]], turns: int) -> list[float]:
    """Median seconds of each call: as it says itself, or as it takes; the first turn warms up."""
    taken: list[list[float]] = [[] for _ in calls]
    for turn in range(turns + 1):
        for times, call in zip(taken, calls, strict=True):
            start = time.perf_counter()
            said = call()
            if not isinstance(said, float):
                _wait(said[0].device)
                said = time.perf_counter() - start
            if turn:
                times.append(said)
    return [statistics.median(times) for times in taken]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _weights(model: Any) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


_COUNTS: dict[str, Callable[[Any], int]] = {
    "layers": lambda model: model.config.n_layer,
    "heads": lambda model: sum(map(len, model.kept_heads.values())),
    "MLP neurons": lambda model: sum(block.mlp.fc_in.out_features for block in model.blocks),
    "vocabulary": lambda model: model.config.vocab_size,
    "parameters": lambda model: sum(p.numel() for p in model.parameters()),
    "weights (bytes)": _weights,
    "KV cache (bytes per token)": lambda model: (
        sizes_of(model.config).cache * model.embed.weight.element_size()
    ),
}
