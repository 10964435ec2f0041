"""One generation, ready to start: the room for its text and the rules by which it grows."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from bloomlab.model.memory import check_memory
from bloomlab.model.options import GenerationOptions
from bloomlab.model.prompt import Prompt
from bloomlab.model.sampling import Draws, processors
from bloomlab.model.stopping import criteria, end_tokens, padding_token


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How rows of text grow.

    Attributes:
        text: prompts, a row for each copy, and room for what follows.
        start: length of the prompts.
        skip: columns of the prompts that a cache holds.
        offset: columns a thinned-out cache holds before the text.
        copies: rows of text for each prompt.
        options: what was asked for.
        processors: what changes the scores.
        stopping: what ends rows; empty if nothing but the length does.
        draws: source of random choices; None takes the likeliest.
        n_ends: number of tokens that end a row.
        pad: what ended rows go on with.
    """

    text: Int[Tensor, "row pos"]
    start: int
    skip: int
    offset: int
    copies: int
    options: GenerationOptions
    processors: LogitsProcessorList
    stopping: StoppingCriteriaList
    draws: Draws | None
    n_ends: int
    pad: int

    @property
    def until(self) -> int:
        """Columns of text and cache together, at most."""
        return self.offset + self.text.shape[1]


def make_plan(model: Any, prompt: Prompt, options: GenerationOptions, *, copies: int) -> Plan:
    """The plan for a model, a prompt and options.

    Raises:
        InputError: options that do not fit the model or the prompt, or more than memory holds.
        TokenizerError: stop strings without a tokenizer.
    """
    n, start = prompt.ids.shape
    least, most = options.lengths(start)
    n_row = n * copies
    check_memory(model, rows=n_row, prompt=start - prompt.skip, length=most, cached=prompt.skip)
    ends = end_tokens(options, model.config)
    pad = padding_token(options, model.config, ends)
    text = prompt.ids.new_full((n_row, most), pad)
    text[:, :start] = prompt.ids.repeat_interleave(copies, 0)
    mask = prompt.mask.repeat_interleave(copies, 0)
    draws = None
    if options.do_sample:
        n_source = n if options.num_beams > 1 else n_row
        draws = Draws(options, rows=n_source, device=text.device)
    return Plan(
        text=text,
        start=start,
        skip=prompt.skip,
        offset=prompt.seen.shape[1] - start,
        copies=copies,
        options=options,
        processors=processors(options, mask, ends=ends, least=least),
        stopping=criteria(options, ends=ends, tokenizer=model.tokenizer),
        draws=draws,
        n_ends=len(ends),
        pad=pad,
    )
