"""Our models for lm-eval, the evaluation harness (Gao et al.); needs `bloomlab[eval]`."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import StoppingCriteria

from bloomlab.errors import InputError, TokenizerError
from bloomlab.experiments.likelihoods import likelihoods, without_rows

try:
    from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]  # an extra
    from lm_eval.utils import (  # pyright: ignore[reportMissingImports]  # an extra
        get_rolling_token_windows,
        make_disjoint_window,
    )
except ImportError as error:
    raise ImportError("bloomlab.lm_eval needs lm-eval: pip install 'bloomlab[eval]'.") from error

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
FOR_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p")


class BloomLM(TemplateLM):
    """A language model of this package as lm-eval takes it.

    `lm_eval.simple_evaluate(model=BloomLM(model, interventions=[...]), tasks=[...])` evaluates it
    whole, pruned or steered. Numbers are those of lm-eval's own wrapper of transformers.

    Args:
        model: a BLOOM with a language-model head and a tokenizer, whole or pruned.
        interventions: in force at every request; as for `model.stream`. A scored text counts as
            prompt, all of it: `during("generation")` acts in `generate_until` alone.
        batch_size: texts per forward; with interventions texts are generated one by one, so that
            columns count from each text's beginning.
        max_length: tokens of context and continuation; longer texts lose their beginning. BLOOM
            was trained with 2048.
        max_gen_toks: tokens to generate where a task does not say.

    Raises:
        InputError: numbers below 1, or interventions on rows of a batch.
        TokenizerError: a model without a tokenizer.
    """

    def __init__(
        self,
        model: Any,
        *,
        interventions: Any = (),
        batch_size: int = 16,
        max_length: int = 2048,
        max_gen_toks: int = 256,
    ) -> None:
        super().__init__()
        sizes = {"batch_size": batch_size, "max_length": max_length, "max_gen_toks": max_gen_toks}
        for name, size in sizes.items():
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise InputError(f"{name} is {size!r}, expected a whole number from 1.")
        if model.tokenizer is None:
            raise TokenizerError("lm-eval asks in texts: set model.tokenizer first.")
        self.model, self.tokenizer = model, model.tokenizer
        self.interventions = without_rows(model, interventions)
        self.batch_size, self.max_length, self.max_gen_toks = batch_size, max_length, max_gen_toks

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has no context."""
        first = self.tokenizer.bos_token_id
        return self.eot_token_id if first is None else first

    @property
    def device(self) -> Any:
        """Where the weights are."""
        return self.model.device

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name in lm-eval's cache of requests."""
        return str(self.tokenizer.name_or_path or type(self.tokenizer).__name__).replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **unused: Any
    ) -> list[int]:
        """Ids of a text; BLOOM's tokenizer adds no special tokens."""
        return self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens))

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._fitting(context, continuation) for _, context, continuation in requests]
        found = likelihoods(
            self.model,
            pairs,
            interventions=self.interventions,
            batch_size=self.batch_size,
            progress=not disable_tqdm,
        )
        answers = [(one.log_prob, one.greedy) for one in found]
        for (texts, *_), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """A pair without the beginning that is too much."""
        if len(continuation) > self.max_length:
            raise InputError(
                f"a continuation has {len(continuation)} tokens, at most {self.max_length} fit; "
                "raise max_length."
            )
        return context[-(self.max_length + 1 - len(continuation)) :], continuation

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-probability of each whole text, in nats; long ones in windows of `max_length`."""
        windows, owners = [], []
        for number, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, rolling):
                windows.append((None, context, continuation))
                owners.append(number)
        totals = [0.0] * len(requests)
        scores = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for number, (log_prob, _) in zip(owners, scores, strict=True):
            totals[number] += log_prob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model says after each context, up to the first of the task's end strings."""
        asked = [(self._context(r.args), r.args[1], number) for number, r in enumerate(requests)]
        asked.sort(key=lambda one: (repr(one[1]), -len(one[0])))
        size = 1 if self.interventions else self.batch_size
        said: dict[int, str] = {}
        with tqdm(total=len(asked), disable=disable_tqdm) as bar:
            for _, same in groupby(asked, key=lambda one: repr(one[1])):
                rows = list(same)
                for start in range(0, len(rows), size):
                    batch = rows[start : start + size]
                    texts = self._generated([context for context, *_ in batch], batch[0][1])
                    said |= dict(zip([number for *_, number in batch], texts, strict=True))
                    bar.update(len(batch))
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, said[number])
        return [said[number] for number in range(len(requests))]

    def _context(self, arguments: Any) -> list[int]:
        room = self.max_length - _length(arguments[1], self.max_gen_toks)
        if room < 1:
            raise InputError(
                f"{self.max_length - room} tokens to generate leave no room for the context in "
                f"max_length={self.max_length}; raise it or ask for fewer."
            )
        return (self.tok_encode(arguments[0]) or [self.prefix_token_id])[-room:]

    def _generated(self, contexts: list[list[int]], given: dict[str, Any]) -> list[str]:
        options = {name: value for name, value in given.items() if name not in LENGTHS}
        until = options.pop("until", None) or []
        until = [until] if isinstance(until, str) else [text for text in until if text]
        temperature = options.pop("temperature", None) or 0.0
        if sample := options.pop("do_sample", temperature > 0):
            options["temperature"] = temperature or 1.0
        else:
            options = {name: v for name, v in options.items() if name not in FOR_SAMPLING}
        longest = max(map(len, contexts))
        pads = [longest - len(context) for context in contexts]
        rows = [[self.eot_token_id] * n + ids for n, ids in zip(pads, contexts, strict=True)]
        masks = [[0] * n + [1] * (longest - n) for n in pads]
        ids = self.model.generate(
            torch.tensor(rows, device=self.device),
            attention_mask=torch.tensor(masks, device=self.device),
            max_new_tokens=_length(given, self.max_gen_toks),
            do_sample=sample,
            eos_token_id=self.eot_token_id,
            stopping_criteria=[_Until(self.tokenizer, until, start=longest)] if until else [],
            interventions=self.interventions,
            **options,
        )
        return [self._text(row, until) for row in ids[:, longest:].tolist()]

    def _text(self, ids: list[int], until: Iterable[str]) -> str:
        ended = ids.index(self.eot_token_id) if self.eot_token_id in ids else len(ids)
        text = self.tokenizer.decode(ids[:ended], skip_special_tokens=True)
        for end in until:
            text = text.split(end)[0]
        return text


class _Until(StoppingCriteria):
    """Ends a row once its new text holds one of the strings."""

    def __init__(self, tokenizer: Any, until: list[str], *, start: int) -> None:
        self.tokenizer, self.until, self.start = tokenizer, until, start

    def __call__(self, input_ids: Tensor, scores: Any, **unused: Any) -> Any:
        texts = self.tokenizer.batch_decode(input_ids[:, self.start :])
        ended = [any(end in text for end in self.until) for text in texts]
        return torch.tensor(ended, device=input_ids.device)


def _length(options: dict[str, Any], default: int) -> int:
    """Tokens to generate, by the first of the names that tasks give it."""
    return next((int(options[name]) for name in LENGTHS if options.get(name)), default)
