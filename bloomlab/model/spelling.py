"""Text that grows by tokens and never ends within a character."""

import codecs
from collections.abc import Sequence
from typing import Any

from transformers.convert_slow_tokenizer import bytes_to_unicode

_BYTES = {char: byte for byte, char in bytes_to_unicode().items()}


class Spelling:
    """What the tokens so far spell; bytes of an unfinished character wait for the rest.

    Each token is decoded once if the tokenizer is a byte-level BPE, as BLOOM's is. At the end the
    text is what `tokenizer.decode` makes of all tokens.

    Args:
        tokenizer: of the tokens; None: the text stays empty.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._ids = tokenizer, []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._by_bytes = type(getattr(backend, "decoder", None)).__name__ == "ByteLevel"
        self.text = ""

    def add(self, ids: Sequence[int], *, last: bool = False) -> str:
        """The text after more tokens; the `last` ones bring out what still waits."""
        if self._tokenizer is None:
            return ""
        if self._by_bytes:
            spelled = b"".join(map(_spelled, self._tokenizer.convert_ids_to_tokens(list(ids))))
            self.text += self._decoder.decode(spelled, last)
        else:
            self._ids += ids
            whole = self._tokenizer.decode(self._ids)
            self.text = whole if last else whole.rstrip("\ufffd")
        return self.text


def _spelled(token: str | None) -> bytes:
    """The bytes a token stands for; none for an id without a token."""
    if token is None:
        return b""
    known = _BYTES.keys() >= set(token)
    return bytes(map(_BYTES.__getitem__, token)) if known else token.encode()
