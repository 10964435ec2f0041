"""Generation with a key-value cache: one loop that yields steps, and `generate` around it."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    MinLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bloomlab.errors import InputError, UnknownArgumentError
from bloomlab.model.bloom import BloomModel, Inputs
from bloomlab.model.cache import KVCache

log = logging.getLogger("bloomlab")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One generated token for every row."""

    token: Int[Tensor, " batch"]
    logits: Float[Tensor, "batch vocab"]
    finished: Bool[Tensor, " batch"]


class Generation(BloomModel):
    """Greedy and sampled generation for a BLOOM with a language-model head."""

    @torch.no_grad()
    def generate(
        self,
        input_ids: Inputs | None = None,
        *,
        attention_mask: Any = None,
        max_new_tokens: int | None = None,
        max_length: int | None = None,
        min_new_tokens: int = 0,
        do_sample: bool = False,
        temperature: float | None = 1.0,
        top_k: int | None = 50,
        top_p: float | None = 1.0,
        repetition_penalty: float | None = 1.0,
        no_repeat_ngram_size: int = 0,
        num_return_sequences: int = 1,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        head_mask: Any = None,
        past_key_values: Any = None,
        use_cache: bool = True,
        logits_processor: Sequence[Any] = (),
        stopping_criteria: Sequence[Any] = (),
        generator: torch.Generator | None = None,
        **unknown: Any,
    ) -> Int[Tensor, "row pos"]:
        """The prompt followed by what the model says, [batch * num_return_sequences, pos].

        Rows that end early are filled with the padding token. Hooks that are attached stay in
        force; with the cache they see the new tokens of each step only.

        Args:
            input_ids: prompt ids [batch pos], padded on the left, or text.
            attention_mask: [batch pos], 0 for padding; without it, tokens equal to the padding
                token count as padding, as in transformers.
            max_new_tokens: how many tokens to add at most; 20 if `max_length` is not given either.
            max_length: the same, prompt included.
            min_new_tokens: no end-of-text before so many tokens.
            do_sample: draw tokens; otherwise take the likeliest.
            temperature: above 1 evens the odds, below 1 sharpens them; when sampling.
            top_k: draw from the k likeliest tokens (0: all); when sampling.
            top_p: draw from the likeliest tokens that make up this probability; when sampling.
            repetition_penalty: divides the logits of tokens already there (Keskar et al., 2019).
            no_repeat_ngram_size: forbid n-grams that occurred already; 0 allows all.
            num_return_sequences: samples per prompt.
            eos_token_id: token or tokens that end a row; None takes the config's, [] none.
            pad_token_id: fills ended rows; None takes the config's, or the end token.
            head_mask: as in a forward; in force at every step.
            past_key_values: a KVCache of the prompt's beginning; it grows.
            use_cache: False recomputes the whole text at every step.
            logits_processor: more of transformers' processors, after the built-in ones.
            stopping_criteria: transformers' criteria that end rows.
            generator: source of randomness; None takes torch's own.
            **unknown: refused.

        Raises:
            InputError: arguments out of range or that exclude each other.
        """
        for name in unknown:
            raise UnknownArgumentError("generate", name, inspect.signature(self.generate))
        temperature, top_p, repetition_penalty = (
            1.0 if value is None else value for value in (temperature, top_p, repetition_penalty)
        )
        top_k = top_k or 0
        if past_key_values is not None and not use_cache:
            raise InputError("past_key_values is given, but use_cache=False would not use it.")
        if past_key_values is not None and num_return_sequences > 1:
            past_key_values = past_key_values.fork(num_return_sequences)
        ids, mask = self._prompt(input_ids, attention_mask, pad_token_id)
        limit = self._limit(ids.shape[1], max_new_tokens, max_length)
        if num_return_sequences < 1 or (num_return_sequences > 1 and not do_sample):
            raise InputError(
                f"num_return_sequences={num_return_sequences}: expected at least 1, more than 1 "
                "only with do_sample=True (greedy rows would all be the same)."
            )
        ids, mask = (t.repeat_interleave(num_return_sequences, 0) for t in (ids, mask))
        if isinstance(head_mask, Tensor) and head_mask.ndim == 3 and len(head_mask) > 1:
            head_mask = head_mask.repeat_interleave(num_return_sequences, 0)
        if not do_sample and (temperature != 1.0 or top_k not in (0, 50) or top_p != 1.0):
            log.warning("temperature, top_k and top_p act with do_sample=True only.")
        eos = self.config.eos_token_id if eos_token_id is None else eos_token_id
        ends = [eos] if isinstance(eos, int) else list(eos or [])
        if not all(isinstance(end, int) for end in ends):
            raise InputError(f"eos_token_id is {eos!r}, expected a token id or several.")
        processors = _processors(
            prompt=ids,
            ends=ends,
            min_new_tokens=min_new_tokens,
            repetition_penalty=repetition_penalty,
            no_repeat_ngram_size=no_repeat_ngram_size,
        )
        processors.extend(logits_processor)
        if do_sample:
            processors.extend(_warpers(temperature=temperature, top_k=top_k, top_p=top_p))
        pad = next((i for i in (pad_token_id, self.config.pad_token_id, *ends) if i is not None), 0)
        tokens = [ids]
        for step in self._steps(
            ids,
            mask,
            limit=limit,
            processors=processors,
            stopping=StoppingCriteriaList(stopping_criteria),
            ends=ends,
            pad=pad,
            do_sample=do_sample,
            generator=generator,
            head_mask=head_mask,
            cache=(KVCache() if past_key_values is None else past_key_values)
            if use_cache
            else None,
        ):
            tokens.append(step.token[:, None])
        return torch.cat(tokens, -1)

    def _steps(
        self,
        ids: Int[Tensor, "batch pos"],
        mask: Int[Tensor, "batch pos"],
        *,
        limit: int,
        processors: LogitsProcessorList,
        stopping: StoppingCriteriaList,
        ends: Sequence[int],
        pad: int,
        do_sample: bool,
        generator: torch.Generator | None,
        head_mask: Tensor | None,
        cache: KVCache | None,
    ) -> Iterator[Step]:
        """One step per generated token; stops when every row has ended."""
        if cache is not None and cache._evicted:
            raise InputError(
                "past_key_values was thinned out by evict, so its tokens cannot be told apart from "
                "the prompt's; go on with forwards of the new tokens alone."
            )
        if cache is not None and len(cache) >= ids.shape[1]:
            raise InputError(
                f"past_key_values already holds all {ids.shape[1]} tokens of the prompt; the last "
                "one is needed for its logits: pass past_key_values=past.crop(-1)."
            )
        finished = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        end_ids = torch.tensor(ends, dtype=ids.dtype, device=ids.device)
        for _ in range(limit):
            logits = self(
                ids if cache is None else ids[:, len(cache) :],
                attention_mask=mask,
                head_mask=head_mask,
                past_key_values=cache,
                use_cache=cache is not None,
                logits_to_keep=1,
                return_type="logits",
            )[:, -1]
            wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
            scores = processors(ids, wide)  # pyright: ignore[reportArgumentType]  # LongTensor stubs
            if do_sample:
                token = torch.multinomial(scores.softmax(-1), 1, generator=generator)[:, 0]
            else:
                token = scores.argmax(-1)
            token = token.masked_fill(finished, pad)
            ids = torch.cat([ids, token[:, None]], -1)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], -1)
            finished = finished | torch.isin(token, end_ids)
            if stopping:
                finished = finished | stopping(ids, scores)
            yield Step(token=token, logits=logits, finished=finished)
            if bool(finished.all()):
                return

    def _prompt(self, inputs: Any, mask: Any, pad_token_id: int | None) -> tuple[Tensor, Tensor]:
        if inputs is None:
            raise InputError("generate needs a prompt: token ids [batch pos] or text.")
        if isinstance(inputs, str | list | tuple):
            inputs, own = self.to_tokens_and_mask(inputs)
            mask = own if mask is None else mask
        if not isinstance(inputs, Tensor) or inputs.ndim != 2 or not inputs.numel():
            raise InputError(
                "generate needs a prompt of at least one token a row, [batch pos], or text."
            )
        ids = inputs.to(self.device)
        if mask is None:
            pad = self.config.pad_token_id if pad_token_id is None else pad_token_id
            looks_padded = pad is not None and pad != self.config.eos_token_id
            mask = (ids != pad).long() if looks_padded else torch.ones_like(ids)
        mask = torch.as_tensor(mask, device=self.device).long()
        if mask.shape == ids.shape and not bool(mask[:, -1].all()):
            raise InputError(
                "the last prompt token of a row is padding; generation goes on from there. "
                "Pad on the left: tokenizer(texts, padding=True) does."
            )
        return ids, mask

    def _limit(self, prompt: int, max_new_tokens: int | None, max_length: int | None) -> int:
        if max_new_tokens is not None and max_length is not None:
            raise InputError("give max_new_tokens or max_length, not both.")
        limit = max_new_tokens if max_length is None else max_length - prompt
        limit = 20 if limit is None else limit
        if limit < 1:
            raise InputError(
                f"nothing to generate: max_new_tokens={max_new_tokens}, max_length={max_length} "
                f"for a prompt of {prompt} tokens."
            )
        return limit


def _processors(
    *,
    prompt: Tensor,
    ends: Sequence[int],
    min_new_tokens: int,
    repetition_penalty: float,
    no_repeat_ngram_size: int,
) -> LogitsProcessorList:
    """What changes logits whether sampling or not, in transformers' order."""
    chosen = LogitsProcessorList()
    if repetition_penalty != 1.0:
        chosen.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if no_repeat_ngram_size:
        chosen.append(NoRepeatNGramLogitsProcessor(no_repeat_ngram_size))
    if min_new_tokens and ends:
        least = prompt.shape[1] + min_new_tokens
        chosen.append(MinLengthLogitsProcessor(least, list(ends), device=str(prompt.device)))
    return chosen


def _warpers(*, temperature: float, top_k: int, top_p: float) -> LogitsProcessorList:
    """What shapes the distribution to draw from, in transformers' order."""
    if temperature <= 0 or top_k < 0 or not 0 < top_p <= 1:
        raise InputError(
            f"temperature={temperature}, top_k={top_k}, top_p={top_p}: expected temperature > 0, "
            "top_k >= 0 and 0 < top_p <= 1."
        )
    chosen = LogitsProcessorList()
    if temperature != 1.0:
        chosen.append(TemperatureLogitsWarper(temperature))
    if top_k:
        chosen.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chosen.append(TopPLogitsWarper(top_p))
    return chosen
