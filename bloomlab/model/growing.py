"""Rows of text that grow by one token a step: the likeliest, a drawn or a given one."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import LogitsProcessorList

from bloomlab.errors import NumericalError
from bloomlab.model.decode import Decoder
from bloomlab.model.numerics import numerical_error
from bloomlab.model.plan import Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Grown:
    """What one step added.

    Attributes:
        token: the new token of each row.
        logits: the model's, raw.
        finished: which rows have ended.
        sound: whether there was a token to choose in every row: not after NaN.
    """

    token: Int[Tensor, " row"]
    logits: Float[Tensor, "row vocab"]
    finished: Bool[Tensor, " row"]
    sound: Bool[Tensor, ""]


def grow(
    plan: Plan, decoder: Any, *, forced: Int[Tensor, "row given"] | None = None
) -> Iterator[Grown]:
    """Fill a plan's text, a column each step; the host never waits for the device.

    Args:
        plan: what to fill and how.
        decoder: a Decoder or an Instrumented one; the prompt is read once for all copies.
        forced: tokens to take instead of chosen ones; they end no row.
    """
    text, start = plan.text, plan.start
    finished = torch.zeros(len(text), dtype=torch.bool, device=text.device)
    n_forced = 0 if forced is None else forced.shape[1]
    for length in range(start, text.shape[1]):
        if length == start:
            logits = decoder.advance(text[:: plan.copies, plan.skip : start])
            if plan.copies > 1:
                decoder.repeat(plan.copies)
                logits = logits.repeat_interleave(plan.copies, 0)
        else:
            logits = decoder.advance(text[:, length - 1 : length])
        scores = processed(plan.processors, text[:, :length], logits)
        ranks = scores if plan.draws is None else plan.draws.race(scores)
        best, token = ranks.max(-1)
        sound = best.isfinite().all()
        if forced is not None and length - start < n_forced:
            token = forced[:, length - start]
        if plan.stopping:
            token = token.masked_fill(finished, plan.pad)
        text[:, length] = token
        if plan.stopping and length - start >= n_forced:
            finished = finished | plan.stopping(text[:, : length + 1], scores)  # pyright: ignore[reportArgumentType]  # LongTensor stubs
        yield Grown(token=token, logits=logits, finished=finished, sound=sound)


def processed(
    processors: LogitsProcessorList,
    text: Int[Tensor, "row pos"],
    logits: Float[Tensor, "row vocab"],
) -> Float[Tensor, "row vocab"]:
    """The scores that processors make of logits, in float32 at least; the logits stay as they are.

    Processors may write to what they get.
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    return processors(text, logits.to(wide, copy=bool(processors)))  # pyright: ignore[reportArgumentType]  # LongTensor stubs


def broken(plan: Plan, decoder: Decoder, length: int, hooks: Any = None) -> NumericalError:
    """The error for a step that was not sound; takes the step back out of the cache.

    Args:
        plan: the generation it happened in.
        decoder: what read the text.
        length: length of the text then.
        hooks: gives the pairs that were attached at a step.
    """
    read, step = plan.skip if length == plan.start else length - 1, length - plan.start
    decoder.rewind(read + plan.offset)
    pairs = () if hooks is None else hooks(step)
    return numerical_error(decoder, plan.text[:, read:length], hooks=pairs, step=step)
