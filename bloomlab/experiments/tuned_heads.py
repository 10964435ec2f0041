"""Heads of a task model: how far training moved them, and what the task loses without each."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.errors import InputError
from bloomlab.experiments.probe_labels import NO_LABEL

WEIGHTS = ("W_Q", "W_K", "W_V", "W_O")


def head_changes(before: Any, after: Any) -> Float[Tensor, "layer head"]:
    """How far training moved each head: |after - before| / |before| of its weights, a share.

    The norm is that of W_Q, W_K, W_V and W_O together (Frobenius), without biases. NaN for heads
    that were pruned.

    Args:
        before: a BLOOM of any class.
        after: one with the same heads.

    Raises:
        InputError: models of other layers, heads or widths.
    """
    kept = [[tuple(block.attn.heads) for block in model.blocks] for model in (before, after)]
    if kept[0] != kept[1] or before.config.hidden_size != after.config.hidden_size:
        got, expected = (
            f"{len(heads)} layers, {sum(map(len, heads))} heads, width {model.config.hidden_size}"
            for heads, model in zip(reversed(kept), (after, before), strict=True)
        )
        raise InputError(f"`after` has {got}, expected those of `before`: {expected}.")
    found = torch.full((len(before.blocks), before.config.n_head), torch.nan, dtype=torch.float64)
    for layer, (old, new) in enumerate(zip(before.blocks, after.blocks, strict=True)):
        pairs = [(getattr(old.attn, name), getattr(new.attn, name)) for name in WEIGHTS]
        moved = torch.stack([_squares(theirs - ours) for ours, theirs in pairs]).sum(0)
        whole = torch.stack([_squares(ours) for ours, _ in pairs]).sum(0)
        found[layer, list(kept[0][layer])] = (moved / whole).sqrt()
    return found


@torch.no_grad()
def ablate_task_heads(
    model: Any,
    examples: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], Any],
    *,
    rows: int = 32,
) -> Float[Tensor, "layer head"]:
    """What silencing each head alone adds to the loss of a task model, in nats per label.

    A positive number: the task is done worse without the head. The model is left as it was.

    Args:
        model: a BLOOM with a head for any task, and what it was trained on or, better, was not.
        examples: as `text_examples`, `word_examples` or `answer_examples` give them.
        collate: makes a padded batch of some, such as transformers' DataCollatorWithPadding.
        rows: examples in a forward.

    Raises:
        InputError: no examples, or a batch without a label.
    """
    if not examples:
        raise InputError("there are no examples. Give at least one.")
    training = model.training
    batches = [
        {name: value.to(model.device) for name, value in collate(list(some)).items()}
        for some in (examples[i : i + rows] for i in range(0, len(examples), rows))
    ]
    sizes = [_labels(batch) for batch in batches]
    n_layer, n_head = model.config.n_layer, model.config.n_head

    def loss(mask: Tensor) -> float:
        losses = [float(model(**batch, head_mask=mask).loss) for batch in batches]
        return sum(map(float.__mul__, losses, map(float, sizes))) / sum(sizes)

    model.eval()
    try:
        clean = loss(torch.ones(n_layer, n_head, device=model.device))
        found = torch.zeros(n_layer, n_head, dtype=torch.float64)
        for place in tqdm(range(n_layer * n_head), desc="heads", delay=2):
            mask = torch.ones(n_layer, n_head, device=model.device)
            mask.view(-1)[place] = 0
            found.view(-1)[place] = loss(mask) - clean
    finally:
        model.train(training)
    return found


def _squares(weights: Tensor) -> Float[Tensor, " head"]:
    """Sum over everything but the head."""
    return weights.detach().double().cpu().square().flatten(1).sum(1)


def _labels(batch: dict[str, Tensor]) -> int:
    """How many labels the loss of a batch is a mean of."""
    labels = batch["labels"] if "labels" in batch else batch["start_positions"]
    n = int((labels != NO_LABEL).sum())
    if not n:
        raise InputError("a batch has no label: every one is -100.")
    return n
