"""Generation with a key-value cache: `generate` for the tokens, `stream` to watch them come."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.model.beams import BeamSearch
from bloomlab.model.bloom import Inputs
from bloomlab.model.decode import Decoder
from bloomlab.model.growing import broken, grow
from bloomlab.model.inputs import layer_head_mask
from bloomlab.model.instrument import Instrumented, check_interventions
from bloomlab.model.options import GenerationOptions, takes_options
from bloomlab.model.plan import Plan, make_plan
from bloomlab.model.prompt import Prompt, read_forced, read_prompt
from bloomlab.model.scoring import Scoring
from bloomlab.model.spelling import Spelling

LOOK_EVERY = 16  # steps between two looks at what the device found
N_TOP = 10


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Step:
    """One generated token for every row, and how it came about.

    Attributes:
        index: 0 for the token that follows the prompt.
        token: the new token of each row.
        logits: the model's for it, before processors.
        text: what each row spells so far, without the prompt. It never ends within a character:
            the rest comes with the next tokens, or as the tokenizer decodes it when the row ends.
            Empty texts if the model has no tokenizer.
        seconds: time the step took.
        finished: which rows have ended.
        trace: what the whole run left behind so far; with `trace=True`.
    """

    index: int
    token: Int[Tensor, " batch"]
    logits: Float[Tensor, "batch vocab"]
    text: list[str]
    seconds: float
    finished: Bool[Tensor, " batch"]
    trace: Any = None

    @property
    def top(self) -> tuple[Int[Tensor, "batch top"], Float[Tensor, "batch top"]]:
        """Ids and probabilities of the ten likeliest tokens, before processors."""
        wide = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        best = wide.softmax(-1).topk(min(N_TOP, wide.shape[-1]))
        return best.indices, best.values


class Generation(Scoring):
    """Greedy, sampled, beam and forced generation for a BLOOM with a language-model head."""

    @takes_options
    @torch.no_grad()
    def generate(
        self,
        input_ids: Inputs | None = None,
        *,
        attention_mask: Any = None,
        head_mask: Any = None,
        past_key_values: Any = None,
        interventions: Any = (),
        streamer: Any = None,
        generation_config: Any = None,
        **options: Any,
    ) -> Int[Tensor, "row pos"]:
        """The prompt followed by what the model says, [batch * num_return_sequences, pos].

        The tokens are those of transformers for the same arguments (but rows that end by a
        criterion are padded from there even without end tokens, and a padding token 0 pads beams).
        Hooks that are attached stay in force; with the cache they see the new tokens of each step
        only, and the prompt once, whatever num_beams and num_return_sequences.

        Args:
            input_ids: prompt ids [batch pos], padded on the left, or text.
            attention_mask: [batch pos], 0 for padding; without it, tokens equal to the padding
                token count as padding, as in transformers.
            head_mask: as in a forward; in force at every step.
            past_key_values: a KVCache of the prompt's beginning. It grows by what the model reads:
                all but the last token (not with several rows a prompt, which fork it). After
                `evict` it cannot be compared with a prompt: `input_ids` are then only the new
                tokens that follow it.
            interventions: as in `stream`; not with beams or a streamer.
            streamer: one of transformers', for a single row a prompt; gets every token.
            generation_config: transformers' GenerationConfig for what is not given otherwise.
            **options: GenerationOptions.

        Raises:
            InputError: arguments out of range or that exclude each other; no memory for so much.
            CacheError: a cache of other rows, another shape or dtype; it stays as it was.
            NumericalError: logits that are NaN or infinite, and where they first are.
        """
        chosen = GenerationOptions.of(self.generate, options, generation_config)
        prompt = self._prompt(input_ids, attention_mask, past_key_values, chosen)
        if interventions := check_interventions(self, interventions):
            if chosen.num_beams > 1 or streamer is not None:
                raise InputError("interventions act in a generation without beams or a streamer.")
            steps = self.stream(
                input_ids,
                attention_mask=attention_mask,
                head_mask=head_mask,
                past_key_values=past_key_values,
                interventions=interventions,
                generation_config=generation_config,
                **options,
            )
            text = prompt.ids.repeat_interleave(chosen.num_return_sequences, 0)
            return torch.cat([text, *(step.token[:, None] for step in steps)], -1)
        head_mask = self._full_mask(head_mask, prompt)
        copies = max(chosen.num_beams, chosen.num_return_sequences)
        if copies > 1:
            prompt = prompt.repeated(1)  # the caller's cache is left alone
            if streamer is not None:
                raise InputError("a streamer shows one row: num_beams and num_return_sequences 1.")
        plan = make_plan(self, prompt, chosen, copies=copies)
        decoder = prompt.decoder(
            self, head_mask, until=plan.until, alone=not chosen.callbacks and streamer is None
        )
        if chosen.num_beams > 1:
            return BeamSearch(plan, decoder).run()
        must_look = streamer is not None or past_key_values is not None
        must_look = must_look or (self.device.type == "cpu" and bool(plan.stopping))
        return _grown(plan, decoder, look_every=1 if must_look else LOOK_EVERY, streamer=streamer)

    @takes_options
    def stream(
        self,
        input_ids: Inputs | None = None,
        *,
        attention_mask: Any = None,
        head_mask: Any = None,
        past_key_values: Any = None,
        forced: Any = None,
        trace: bool = False,
        interventions: Any = (),
        generation_config: Any = None,
        **options: Any,
    ) -> Iterator[Step]:
        """A `Step` for each new token, as soon as it is there; the same tokens as `generate`'s.

        Step 0 reads the prompt, step t > 0 token t - 1. Between two steps nothing is attached to
        the model and the cache holds whole steps, so the loop may be left or interrupted anywhere.

        Args:
            input_ids: prompt ids [batch pos], padded on the left, or text.
            attention_mask: [batch pos], 0 for padding; as in `generate`.
            head_mask: as in a forward; in force at every step.
            past_key_values: a KVCache of the prompt's beginning; as in `generate`.
            forced: tokens to take instead of chosen ones: text, ids [pos] or [batch pos]. They end
                no row. With max_new_tokens above their number the model goes on from there.
            trace: also record queries, keys, values and residual stream: `step.trace`.
            interventions: pairs of hook name and function, in force at every step; or objects
                with `hooks(start, step)`, the pairs for one step (`start` is the first column it
                reads; 0 at every step with use_cache=False), and `enters_cache`: if False, later
                steps see this step's keys and values as if it had not acted (which costs a second
                forward; the trace knows both).
            generation_config: transformers' GenerationConfig for what is not given otherwise.
            **options: GenerationOptions.

        Raises:
            InputError: arguments out of range or that exclude each other; num_beams.
            CacheError: a cache of other rows, another shape or dtype; it stays as it was.
            NumericalError: logits that are NaN or infinite, and where they first are.
        """
        chosen = GenerationOptions.of(self.stream, options, generation_config)
        if chosen.num_beams > 1:
            raise InputError(
                f"num_beams={chosen.num_beams}: beams are ranked at the end, so there is nothing "
                "to stream. Use generate, or num_beams=1."
            )
        prompt = self._prompt(input_ids, attention_mask, past_key_values, chosen)
        head_mask = self._full_mask(head_mask, prompt)
        if (n := chosen.num_return_sequences) > 1:  # every step has all rows
            prompt = prompt.repeated(n)
            if head_mask is not None and len(head_mask) > 1:
                head_mask = head_mask.repeat_interleave(n, 0)
        given = read_forced(self, forced, len(prompt.ids))
        if given is not None and chosen.max_new_tokens is None and chosen.max_length is None:
            chosen = replace(chosen, max_new_tokens=given.shape[1])
        plan = make_plan(self, prompt, chosen, copies=1)
        if given is not None and given.shape[1] > plan.text.shape[1] - plan.start:
            raise InputError(
                f"{given.shape[1]} forced tokens, but max_new_tokens or max_length leaves room for "
                f"{plan.text.shape[1] - plan.start}; leave it out to take just these."
            )
        if trace and prompt.cache is not None and len(prompt.cache):
            raise InputError(
                "trace=True records from the first token, but past_key_values holds "
                f"{len(prompt.cache)} already: leave past_key_values out."
            )
        if trace and prompt.cache is not None and prompt.cache.policy is not None:
            raise InputError(
                "trace=True cannot follow a cache whose policy drops tokens; use one without."
            )
        decoder = Instrumented(
            prompt.decoder(self, head_mask, until=plan.until),
            interventions=check_interventions(self, interventions),
            recorder=import_module("bloomlab.trace").Recorder(self) if trace else None,
        )
        tokenizer = self.tokenizer if chosen.tokenizer is None else chosen.tokenizer
        return _steps(plan, decoder, forced=given, tokenizer=tokenizer)

    def _full_mask(self, head_mask: Any, prompt: Prompt) -> Tensor | None:
        return layer_head_mask(
            head_mask, batch=len(prompt.ids), config=self.config, device=self.device
        )

    def _prompt(self, inputs: Any, mask: Any, past: Any, options: GenerationOptions) -> Prompt:
        return read_prompt(
            self,
            inputs,
            attention_mask=mask,
            pad_token_id=options.pad_token_id,
            past=past,
            use_cache=options.use_cache,
        )


def _grown(
    plan: Plan, decoder: Decoder, *, look_every: int, streamer: Any
) -> Int[Tensor, "row pos"]:
    """A plan's text, up to where all rows have ended."""
    text, unseen = plan.text, []
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise InputError(f"streamer is {streamer!r}, expected one of transformers' streamers.")
    try:
        if streamer is not None:
            streamer.put(text[:, : plan.start].cpu())
        for length, grown in enumerate(grow(plan, decoder), plan.start):
            if streamer is not None:
                streamer.put(grown.token.cpu())
            ended = grown.finished.all() if plan.stopping else ~grown.sound
            unseen.append(torch.stack((grown.sound, ended)))
            if len(unseen) < look_every and length + 1 < text.shape[1]:
                continue
            first = length + 1 - len(unseen)
            for at, (sound, finished) in enumerate(torch.stack(unseen).tolist(), first):
                if not sound:
                    raise broken(plan, decoder, at)
                if finished:
                    return text[:, : at + 1]
            unseen.clear()
        return text
    finally:
        if streamer is not None:
            streamer.end()


def _steps(
    plan: Plan, decoder: Instrumented, *, forced: Tensor | None, tokenizer: Any
) -> Iterator[Step]:
    spellings = [Spelling(tokenizer) for _ in plan.text]
    ended = [False] * len(spellings)
    steps, index = grow(plan, decoder, forced=forced), 0
    while True:
        begun = time.perf_counter()
        with torch.no_grad():  # not around a yield: the caller's own code may need gradients
            grown = next(steps)
            if not bool(grown.sound):
                raise broken(plan, decoder.decoder, plan.start + index, decoder.edits)
        full = plan.start + index + 1 == plan.text.shape[1]
        tokens, finished = grown.token.tolist(), grown.finished.tolist()
        for row, spelling in enumerate(spellings):
            if not ended[row]:
                spelling.add([tokens[row]], last=full or finished[row])
        ended = finished
        yield Step(
            index=index,
            token=grown.token,
            logits=grown.logits,
            text=[spelling.text for spelling in spellings],
            seconds=time.perf_counter() - begun,
            finished=grown.finished,
            trace=None if decoder.recorder is None else decoder.recorder.trace,
        )
        if full or all(ended):
            return
        index += 1
