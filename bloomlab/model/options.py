"""The arguments of generation: declared, documented and checked in one place."""

import inspect
import logging
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers import GenerationConfig

from bloomlab.errors import InputError, UnknownArgumentError, UnsupportedError

log = logging.getLogger("bloomlab")

COUNTS = {  # smallest value allowed
    "max_new_tokens": 1,
    "max_length": 1,
    "min_new_tokens": 0,
    "min_length": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "top_k": 0,
    "no_repeat_ngram_size": 0,
}
RANGES = {  # what is allowed, in words and as a test
    "temperature": ("above 0", lambda x: x > 0),
    "top_p": ("0 to 1", lambda x: 0 <= x <= 1),
    "min_p": ("0 to 1", lambda x: 0 <= x <= 1),
    "typical_p": ("above 0, up to 1", lambda x: 0 < x <= 1),
    "repetition_penalty": ("above 0", lambda x: x > 0),
    "length_penalty": ("a number", lambda x: True),
}
OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "typical_p": 1.0, "repetition_penalty": 1.0}
OFF |= {"num_beams": 1, "num_return_sequences": 1, "length_penalty": 1.0, "early_stopping": False}
OFF |= {"no_repeat_ngram_size": 0, "logits_processor": (), "stopping_criteria": ()}
FOR_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed", "generator")
FOR_BEAMS = ("length_penalty", "early_stopping")
EXCLUSIVE = (
    ("max_new_tokens", "max_length"),
    ("min_new_tokens", "min_length"),
    ("seed", "generator"),
)
HARMLESS = ("bos_token_id", "transformers_version")  # settings that change no generated token


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationOptions:
    """How to generate; names and defaults are transformers', and None switches a thing off.

    Args:
        max_new_tokens: how many tokens to add at most; 20 if `max_length` is not given either.
        max_length: the same, prompt included.
        min_new_tokens: no end-of-text before so many tokens.
        min_length: the same, prompt included.
        do_sample: draw tokens; otherwise take the likeliest.
        num_beams: keep so many hypotheses of each prompt (beam search); 1: none beside the text.
        length_penalty: hypotheses are ranked by log-probability / length ** this; with beams.
        early_stopping: True ends with num_beams complete hypotheses, False when a better one is
            unlikely, "never" when it is impossible; with beams.
        num_return_sequences: rows per prompt: samples, or the best beams.
        temperature: above 1 evens the odds, below 1 sharpens them; when sampling.
        top_k: draw from the k likeliest tokens (0: all); when sampling.
        top_p: draw from the likeliest tokens that make up this probability; when sampling.
        min_p: draw from tokens at least so likely, relative to the likeliest; when sampling.
        typical_p: draw from tokens of about the expected information that make up this
            probability (Meister et al., 2023); when sampling.
        repetition_penalty: divides the logits of tokens already there (Keskar et al., 2019).
        no_repeat_ngram_size: forbid n-grams that occurred already; 0 allows all.
        eos_token_id: token or tokens that end a row; None takes the config's, [] none.
        pad_token_id: fills ended rows; None takes the config's, or the end token.
        stop_strings: text or texts that end a row once they are there.
        tokenizer: for stop_strings; None takes the model's.
        logits_processor: more of transformers' processors, after the built-in ones; one of the
            same class replaces a built-in one.
        stopping_criteria: more of transformers' criteria that end rows.
        seed: makes draws repeatable, and those of a row independent of the others: row i draws with
            `seed + i`; or one seed for each returned row (with beams, for each prompt).
        generator: one source of randomness for all rows; None takes torch's own.
        use_cache: False recomputes the whole text at every step.

    Raises:
        InputError: values out of range or that exclude each other.
    """

    max_new_tokens: Any = None
    max_length: Any = None
    min_new_tokens: Any = None
    min_length: Any = None
    do_sample: Any = False
    num_beams: Any = 1
    length_penalty: Any = 1.0
    early_stopping: Any = False
    num_return_sequences: Any = 1
    temperature: Any = 1.0
    top_k: Any = 50
    top_p: Any = 1.0
    min_p: Any = None
    typical_p: Any = 1.0
    repetition_penalty: Any = 1.0
    no_repeat_ngram_size: Any = 0
    eos_token_id: Any = None
    pad_token_id: Any = None
    stop_strings: Any = None
    tokenizer: Any = None
    logits_processor: Any = ()
    stopping_criteria: Any = ()
    seed: Any = None
    generator: Any = None
    use_cache: Any = True

    def __post_init__(self) -> None:
        for name, neutral in OFF.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, neutral)
        for name, least in COUNTS.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _count(name, value, least))
        for name, (words, allowed) in RANGES.items():
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _number(name, value, words, allowed))
        if self.early_stopping not in (True, False, "never"):
            raise InputError(
                f"early_stopping is {self.early_stopping!r}, expected True, False or 'never'."
            )
        if self.early_stopping != "never":
            object.__setattr__(self, "early_stopping", bool(self.early_stopping))
        for name in ("do_sample", "use_cache"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}, expected True or False.")
        if self.generator is not None and not isinstance(self.generator, torch.Generator):
            raise InputError(f"generator is {self.generator!r}, expected a torch.Generator.")
        for name in ("logits_processor", "stopping_criteria"):
            given = getattr(self, name) or ()
            if not isinstance(given, list | tuple):
                raise InputError(f"{name} is {given!r}, expected a list of transformers' own.")
        for one, other in EXCLUSIVE:
            if None not in (getattr(self, one), getattr(self, other)):
                raise InputError(f"give {one} or {other}, not both.")
        if self.num_beams > 1 and self.num_return_sequences > self.num_beams:
            raise InputError(
                f"num_return_sequences={self.num_return_sequences} of num_beams={self.num_beams}: "
                "there are no more than the beams to return."
            )
        if self.num_beams == 1 and self.num_return_sequences > 1 and not self.do_sample:
            raise InputError(
                f"num_return_sequences={self.num_return_sequences}: more than 1 needs "
                "do_sample=True or num_beams (greedy rows would all be the same)."
            )
        self._point_out(FOR_SAMPLING, acts=self.do_sample, needed="do_sample=True")
        self._point_out(FOR_BEAMS, acts=self.num_beams > 1, needed="num_beams above 1")

    def _point_out(self, names: tuple[str, ...], *, acts: Any, needed: str) -> None:
        idle = {f.name: (f.default, OFF.get(f.name)) for f in fields(self) if f.name in names}
        useless = [name for name, values in idle.items() if getattr(self, name) not in values]
        if useless and not acts:
            log.warning("%s: no effect without %s.", ", ".join(useless), needed)

    @property
    def callbacks(self) -> bool:
        """Whether code of the caller's runs between the steps."""
        return bool(self.logits_processor or self.stopping_criteria)

    def lengths(self, prompt: int) -> tuple[int, int]:
        """Least and largest length of a row, its prompt of so many tokens included."""
        most = self.max_length or prompt + (self.max_new_tokens or 20)
        least = prompt + self.min_new_tokens if self.min_new_tokens else self.min_length or 0
        if most <= prompt:
            raise InputError(
                f"nothing to generate: max_length={most} for a prompt of {prompt} tokens."
            )
        if least > most:
            raise InputError(f"a row of at least {least} and at most {most} tokens cannot be.")
        return least, most

    @classmethod
    def of(
        cls, function: Callable[..., Any], given: Mapping[str, Any], config: Any
    ) -> "GenerationOptions":
        """The options given to a function, and from a GenerationConfig where not given.

        Raises:
            UnknownArgumentError: an argument that is no option.
            UnsupportedError: a setting of the GenerationConfig that is none.
        """
        for name in given:
            if name not in cls.__dataclass_fields__:
                known = inspect.signature(function)
                raise UnknownArgumentError(function.__name__, name, known)
        settings = {} if config is None else _settings(config, cls.__dataclass_fields__)
        for one, other in (*EXCLUSIVE, *(pair[::-1] for pair in EXCLUSIVE)):
            if given.get(one) is not None:
                settings.pop(other, None)
        return cls(**{**settings, **given})


def takes_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a function of **options: signature and docstring name them all."""
    own = [p for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD]
    options = inspect.signature(GenerationOptions).parameters.values()
    function.__signature__ = inspect.Signature([*own, *options])  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
    listed = inspect.getdoc(GenerationOptions) or ""
    start, end = listed.index("Args:\n") + len("Args:\n"), listed.index("\n\nRaises:")
    mine = inspect.getdoc(function) or ""
    function.__doc__ = mine.replace("    **options: GenerationOptions.", listed[start:end])
    return function


def _settings(config: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(config, GenerationConfig):
        raise InputError(
            f"generation_config is a {type(config).__name__}, expected a GenerationConfig."
        )
    usual, found = GenerationConfig(), {}
    for name, value in vars(config).items():
        if name in known:
            found |= {} if value is None else {name: value}
            continue
        private = name.startswith("_") or name in HARMLESS
        if not private and value is not None and value != getattr(usual, name, None):
            raise UnsupportedError(
                f"generation_config sets {name}={value!r}, which is not supported here. "
                "Reset it to None; a logits_processor or stopping_criteria may do the same."
            )
    return found


def _count(name: str, value: Any, least: int) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < least:
        raise InputError(f"{name} is {value!r}, expected a whole number from {least}.")
    return number


def _number(name: str, value: Any, words: str, allowed: Callable[[float], bool]) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or not allowed(number):
        raise InputError(f"{name} is {value!r}, expected {words}.")
    return number
