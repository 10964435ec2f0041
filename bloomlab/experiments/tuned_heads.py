"""Heads of a task model: how far training moved them, and what the task loses without each."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.experiments.head_ablation import Ablation
from bloomlab.experiments.heads import head_sets
from bloomlab.experiments.replacements import Zero
from bloomlab.experiments.task_losses import TaskLoss, TaskSweep

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


def ablate_task_heads(
    model: Any,
    examples: Sequence[dict[str, Any]],
    collate: Callable[[list[dict[str, Any]]], Any],
    *,
    rows: int | None = None,
    progress: bool = True,
) -> Ablation:
    """What silencing each head alone adds to the loss of a task model, in nats per label.

    A positive effect: the task is done worse without the head. It is that of every example alone,
    whatever it is padded with: a mean over its labels, then over examples. The model is left as
    it was.

    Args:
        model: a BLOOM with a head for any task, whole; no hooks attached.
        examples: as `text_examples`, `word_examples` or `answer_examples` give them; better ones
            that were not trained on, each with a label.
        collate: makes a padded batch of some, such as transformers' DataCollatorWithPadding; on the
            right for answers.
        rows: rows in a forward; None: by free memory.
        progress: show a bar while it takes long.

    Returns:
        An `Ablation`: `matrix` [layer head]; `frame` with layer, head, effect, stderr.

    Raises:
        InputError: no examples, or one without a label or with labels that are no classes; answers
            padded on the left; a model without a task head, or with hooks.
        UnsupportedError: heads were pruned; says what to do.
    """
    if not examples:
        raise InputError("there are no examples. Give at least one.")
    training = model.training
    loss = TaskLoss(model, collate(list(examples)))
    sweep, sets = TaskSweep(model, loss), head_sets(model, None)
    model.eval()
    try:
        effects, clean = sweep.run(loss.data, sets, Zero(), rows=rows, progress=progress)
    finally:
        model.train(training)
    return Ablation(
        sets=sets,
        effects=effects,
        clean=clean,
        metric=loss.name,
        kind="zero",
        evaluations=sweep.evaluations,
        shape=(model.config.n_layer, model.config.n_head),
    )


def _squares(weights: Tensor) -> Float[Tensor, " head"]:
    """Sum over everything but the head."""
    return weights.detach().double().cpu().square().flatten(1).sum(1)
