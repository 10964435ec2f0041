"""Token ids -> labels a reader can tell apart, for plotly tick texts and for HTML."""

import html
import operator
import unicodedata
from bisect import bisect_right
from collections.abc import Iterable
from itertools import accumulate, groupby
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Int
from transformers.convert_slow_tokenizer import bytes_to_unicode

from bloomlab.errors import InputError

_BYTES = {char: byte for byte, char in bytes_to_unicode().items()}
_PICTURES = {chr(code): chr(0x2400 + code) for code in range(32)}  # U+2400: control pictures
_PICTURES |= {"\x7f": "␡", " ": "␣", "\n": "↵", "\t": "⇥"}
_RAISED = "⁰¹²³⁴"


@runtime_checkable
class HasTokens(Protocol):
    """Any tokenizer that names the tokens of ids, None for an id it lacks."""

    def convert_ids_to_tokens(self, ids: list[int]) -> Any:
        """The list of the tokens of `ids`."""
        ...


def printable_tokens(tokenizer: HasTokens, ids: Iterable[Any] | Int[Any, " pos"]) -> list[str]:
    """One visible, unescaped label per id; a list as long as `ids`.

    The ids are read as one text; for unrelated ids (a top-k list) call it once per id.
    Space is ␣, newline ↵, tab ⇥, another control character its picture (␀); whatever else shows
    no ink is its code point (⟨U+200D⟩). A character that several tokens share stands on each with
    its part number (語¹⁄², 語²⁄²); a byte of no character is ⟨e8⟩. A combining mark with no base in
    its token sits on ◌; a label with right-to-left letters is wrapped in U+2068 … U+2069. Special
    tokens stay as they are; an id without a token is ⟨id 250700⟩.

    Raises:
        InputError: Ids that are negative, not integers, or not one row of ids.
    """
    values = checked_ids(ids)
    tokens = tokenizer.convert_ids_to_tokens(values)
    added = getattr(tokenizer, "added_tokens_encoder", {})
    spelled = [
        bytes(map(_BYTES.__getitem__, token))
        if token is not None and token not in added and _BYTES.keys() >= set(token)
        else None
        for token in tokens
    ]
    labels: list[str] = []
    for has_bytes, run in groupby(range(len(values)), key=lambda pos: spelled[pos] is not None):
        if has_bytes:
            labels += _spell([spelled[pos] or b"" for pos in run])
            continue
        for pos in run:
            name = tokens[pos]
            labels += [f"⟨id {values[pos]}⟩"] if name is None else _spell([name.encode()])
    return labels


def token_labels(tokenizer: HasTokens, ids: Iterable[Any] | Int[Any, " pos"]) -> list[str]:
    """`printable_tokens`, HTML-escaped exactly once; a list as long as `ids`.

    Raises:
        InputError: Ids that are negative, not integers, or not one row of ids.
    """
    labels = printable_tokens(tokenizer, ids)
    # plotly decodes &lt; and numbers, but would print &quot; as six letters
    return [html.escape(label).replace("&quot;", "&#34;") for label in labels]


def checked_ids(ids: Any) -> list[int]:
    """The ids as a list of Python integers; `ids` is a list, or an array or tensor of one axis.

    Raises:
        InputError: Ids that are negative, not integers, or not one row of ids.
    """
    values = ids.tolist() if hasattr(ids, "tolist") else ids
    try:
        numbers = [-1 if isinstance(value, bool) else operator.index(value) for value in values]
    except TypeError as error:
        raise InputError(
            f"token ids must be one row of integers, got {ids!r:.80} ({error}). Pass a list of "
            "ints, or one row of a batch, such as input_ids[0]."
        ) from error
    wrong = [pos for pos, number in enumerate(numbers) if not 0 <= number < 2**32]
    if wrong:
        raise InputError(
            f"token id {list(values)[wrong[0]]!r} at position {wrong[0]} is no id: expected an "
            "integer from 0. Labels use -100 for 'ignore'; drop those ids first."
        )
    return numbers


def _spell(pieces: list[bytes]) -> list[str]:
    """One label per piece of one string of UTF-8."""
    ends = list(accumulate(map(len, pieces)))
    labels = [""] * len(pieces)
    on_base = [False] * len(pieces)  # can a combining mark sit on what the label ends with?
    start = 0
    for char in b"".join(pieces).decode("utf-8", "surrogateescape"):
        is_stray = "\udc80" <= char <= "\udcff"
        stop = start + (1 if is_stray else len(char.encode()))
        first, last = bisect_right(ends, start), bisect_right(ends, stop - 1)
        ink = f"⟨{ord(char) - 0xDC00:02x}⟩" if is_stray else _ink(char)
        for piece in range(first, last + 1):
            floats = unicodedata.category(char)[0] == "M" and not on_base[piece]
            labels[piece] += "◌" * floats + ink
            if last > first:
                labels[piece] += f"{_RAISED[piece - first + 1]}⁄{_RAISED[last - first + 1]}"
            on_base[piece] = ink == char and first == last
        start = stop
    return [_isolated(label) for label in labels]


def _ink(char: str) -> str:
    return _PICTURES.get(char) or (char if char.isprintable() else f"⟨U+{ord(char):04X}⟩")


def _isolated(label: str) -> str:
    is_rtl = any(unicodedata.bidirectional(char) in ("R", "AL", "AN") for char in label)
    return f"\u2068{label}\u2069" if is_rtl else label
