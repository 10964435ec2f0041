"""From logits to tokens: transformers' processors and warpers, and repeatable draws."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    MinPLogitsWarper,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from bloomlab.errors import InputError
from bloomlab.model.options import GenerationOptions


def processors(
    options: GenerationOptions,
    mask: Int[Tensor, "row pos"],
    *,
    ends: Sequence[int],
    least: int,
) -> LogitsProcessorList:
    """What changes the scores, in transformers' order: processors, the caller's own, warpers.

    Args:
        options: which of them.
        mask: of the prompts, a row for each row of text; padding is no repetition.
        ends: the tokens that end a row.
        least: length below which no row ends.
    """
    chosen: list[Any] = []
    if options.repetition_penalty != 1.0:
        padding = mask.int().argmax(-1)
        ignored = padding if bool(padding.any()) else None
        chosen.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty, ignored))
    if options.no_repeat_ngram_size:
        chosen.append(NoRepeatNGramLogitsProcessor(options.no_repeat_ngram_size))
    if least and ends:
        chosen.append(MinLengthLogitsProcessor(least, list(ends), device=str(mask.device)))
    chosen = merged(chosen, options.logits_processor)
    if options.do_sample:
        chosen += _warpers(options, keep=1 if options.num_beams == 1 else max(2, len(ends) + 1))
    return LogitsProcessorList(chosen)


def merged(built_in: Iterable[Any], own: Iterable[Any]) -> list[Any]:
    """Ours and the caller's, ours first; one of the caller's replaces ours of the same class."""
    own = list(own)
    first = [next((mine for mine in own if type(mine) is type(one)), one) for one in built_in]
    return [*first, *(mine for mine in own if all(mine is not one for one in first))]


def _warpers(options: GenerationOptions, *, keep: int) -> list[Any]:
    """What shapes the distribution to draw from; beams need several choices to go on with."""
    chosen: list[Any] = []
    if options.temperature != 1.0:
        chosen.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        chosen.append(TopKLogitsWarper(options.top_k, min_tokens_to_keep=keep))
    if options.top_p < 1:
        chosen.append(TopPLogitsWarper(options.top_p, min_tokens_to_keep=keep))
    if options.min_p is not None:
        chosen.append(MinPLogitsWarper(options.min_p, min_tokens_to_keep=keep))
    if options.typical_p < 1:
        chosen.append(TypicalLogitsWarper(options.typical_p, min_tokens_to_keep=keep))
    return chosen


class Draws:
    """Random choices, of which each row can have its own source.

    Args:
        options: the seed, the seeds or the generator.
        rows: how many rows will draw.
        device: where.

    Raises:
        InputError: seeds that are no whole numbers, or not one for each row.
    """

    def __init__(self, options: GenerationOptions, *, rows: int, device: torch.device) -> None:
        self._shared, self._own = options.generator, []
        if options.seed is None:
            return
        seeds = _seeds(options.seed, rows)
        self._own = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def race(self, scores: Float[Tensor, "row choice"]) -> Float[Tensor, "row choice"]:
        """Random times whose largest is the choice, whose n largest are n without replacement.

        Probability / Exponential(1): what torch.multinomial computes, without its checks, which
        would make the host wait for the device.
        """
        odds = scores.softmax(-1)
        noise = torch.empty_like(odds)
        if self._own:
            for row, generator in zip(noise, self._own, strict=True):
                row.exponential_(1, generator=generator)
        else:
            noise.exponential_(1, generator=self._shared)
        return odds / noise


def _seeds(seed: Any, rows: int) -> list[int]:
    given = seed.tolist() if hasattr(seed, "tolist") else seed
    several = isinstance(given, list | tuple)
    seeds = list(given) if several else [given]
    if not all(isinstance(one, int) and not isinstance(one, bool) for one in seeds):
        raise InputError(f"seed is {seed!r}, expected a whole number, or one for each row.")
    if several and len(seeds) != rows:
        raise InputError(f"{len(seeds)} seeds for {rows} rows; give one for each, or one number.")
    return seeds if several else [seeds[0] + row for row in range(rows)]
