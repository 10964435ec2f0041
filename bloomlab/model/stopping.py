"""When a row ends: end tokens, stop strings, the caller's criteria. All are transformers' own."""

from typing import Any

from transformers import EosTokenCriteria, StoppingCriteriaList, StopStringCriteria

from bloomlab.errors import InputError, TokenizerError
from bloomlab.model.options import GenerationOptions
from bloomlab.model.sampling import merged


def end_tokens(options: GenerationOptions, config: Any) -> list[int]:
    """The tokens that end a row: as given, or else the config's."""
    given = config.eos_token_id if options.eos_token_id is None else options.eos_token_id
    given = given.tolist() if hasattr(given, "tolist") else given
    ends = [given] if isinstance(given, int) else list(given or [])
    if not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        raise InputError(f"eos_token_id is {given!r}, expected a token id or several.")
    if options.eos_token_id is not None and not all(0 <= end < config.vocab_size for end in ends):
        raise InputError(
            f"eos_token_id is {given!r}, expected token ids from 0 to {config.vocab_size - 1}."
        )
    return ends


def padding_token(options: GenerationOptions, config: Any, ends: list[int]) -> int:
    """What fills ended rows: as given, or else the config's, or else an end token."""
    candidates = options.pad_token_id, config.pad_token_id, *ends, 0
    pad = next(token for token in candidates if token is not None)
    if not isinstance(pad, int) or not 0 <= pad < config.vocab_size:
        raise InputError(
            f"pad_token_id is {pad!r}, expected a token id from 0 to {config.vocab_size - 1}."
        )
    return pad


def criteria(
    options: GenerationOptions, *, ends: list[int], tokenizer: Any
) -> StoppingCriteriaList:
    """What says which rows end here; empty if nothing but the length does.

    Raises:
        InputError: stop strings that are no texts.
        TokenizerError: stop strings without a tokenizer.
    """
    chosen: list[Any] = []
    if options.stop_strings is not None:
        given = options.stop_strings
        texts = [given] if isinstance(given, str) else list(given)
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise InputError(f"stop_strings is {given!r}, expected a text or several, none empty.")
        tokenizer = tokenizer if options.tokenizer is None else options.tokenizer
        if tokenizer is None:
            raise TokenizerError(
                "stop_strings need a tokenizer, and this model has none. Pass tokenizer=, or set "
                "model.tokenizer; without one, end at tokens: eos_token_id=[...]."
            )
        chosen.append(StopStringCriteria(tokenizer, texts))
    if ends:
        chosen.append(EosTokenCriteria(list(ends)))
    return StoppingCriteriaList(merged(chosen, options.stopping_criteria))
