"""CoNLL-U files, the format of Universal Dependencies (Nivre et al., 2020, arXiv:2004.10643)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bloomlab.errors import InputError
from bloomlab.experiments.task_files import bad_line, read_text

N_COLUMN = 10  # ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS MISC


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentence:
    """A sentence and, for each of its words, what is said of it.

    Attributes:
        id: "# sent_id", or the number of the sentence in its file, from 1.
        text: "# text", or the words with the spaces between them.
        spans: (start, stop) characters; of the whole token for words that are fused into it.
        fused: whether a word is part of a token that is not its words one after the other.
        upos: universal part of speech; None for "_".
        relations: to the head; None for "_".
        heads: number of the head among the words, -1 for the root.
    """

    id: str
    text: str
    spans: tuple[tuple[int, int], ...]
    fused: tuple[bool, ...]
    upos: tuple[str | None, ...]
    relations: tuple[str | None, ...]
    heads: tuple[int, ...]


@dataclass
class _Draft:
    """The lines of one sentence, as far as read."""

    id: str
    text: str | None = None
    words: list[tuple[int, list[str]]] = field(default_factory=list)
    tokens: list[tuple[int, int, int, str, bool]] = field(default_factory=list)


def read_conllu(file: Path) -> list[Sentence]:
    """The sentences of a file; empty nodes ("8.1") are left out.

    Raises:
        InputError: a file without sentences, or a line that breaks the format; names it.
    """
    found: list[Sentence] = []
    draft = _Draft(id="1")
    number = 0
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            found += _finished(draft, file)
            draft = _Draft(id=str(len(found) + 1))
        elif line.startswith("#"):
            name, _, value = line[1:].partition("=")
            if name.strip() == "sent_id":
                draft.id = value.strip()
            elif name.strip() == "text":
                draft.text = value.strip()
        else:
            _add(draft, line.split("\t"), file, number)
    found += _finished(draft, file)
    if not found:
        raise InputError(f"{file} has no sentences.")
    return found


def _add(draft: _Draft, columns: list[str], file: Path, number: int) -> None:
    """Take a line of a word, a token of several words, or an empty node."""
    if len(columns) != N_COLUMN:
        raise bad_line(
            file, number, f"has {len(columns)} columns, expected {N_COLUMN} separated by tabs"
        )
    index, form, spaced = columns[0], columns[1], "SpaceAfter=No" not in columns[9].split("|")
    covered = draft.tokens[-1][1] if draft.tokens else 0
    if index.replace(".", "", 1).isdecimal() and "." in index:
        return
    first, _, last = index.partition("-")
    next_one = len(draft.words) + 1
    if "-" in index:
        if not (last.isdecimal() and first == str(next_one) and int(last) > next_one > covered):
            raise bad_line(file, number, f"has the ID {index!r}, expected {next_one}-...")
        draft.tokens.append((next_one, int(last), number, form, spaced))
        return
    if index != str(next_one):
        raise bad_line(file, number, f"has the ID {index!r}, expected {next_one}")
    if next_one > covered:
        draft.tokens.append((next_one, next_one, number, form, spaced))
    draft.words.append((number, columns))


def _finished(draft: _Draft, file: Path) -> Iterator[Sentence]:
    if not draft.words:
        return
    count = len(draft.words)
    first, last, number, *_ = draft.tokens[-1]
    if last > count:
        raise bad_line(file, number, f"spans words {first} to {last} of {count}")
    text = draft.text
    if text is None:
        text = "".join(form + " " * spaced for *_, form, spaced in draft.tokens).strip()
    spans, fused = _places(draft, text, file)
    yield Sentence(
        id=draft.id,
        text=text,
        spans=tuple(spans),
        fused=tuple(fused),
        upos=tuple(_given(columns[3]) for _, columns in draft.words),
        relations=tuple(_given(columns[7]) for _, columns in draft.words),
        heads=tuple(_head(columns[6], count, file, at) for at, columns in draft.words),
    )


def _places(draft: _Draft, text: str, file: Path) -> tuple[list[tuple[int, int]], list[bool]]:
    """Where each word stands in the text, and whether it is fused."""
    spans: list[tuple[int, int]] = []
    fused: list[bool] = []
    end = 0
    for first, last, number, form, _ in draft.tokens:
        start = end + len(text[end:]) - len(text[end:].lstrip())
        if not form or not text.startswith(form, start):
            raise bad_line(
                file, number, f"has the form {form!r}, but the text goes on with {text[end:]!r:.40}"
            )
        end = start + len(form)
        parts = [columns[1] for _, columns in draft.words[first - 1 : last]]
        whole = "".join(parts) == form
        at = start
        for part in parts:
            spans.append((at, at + len(part)) if whole else (start, end))
            at += len(part)
        fused += [not whole] * len(parts)
    return spans, fused


def _head(value: str, count: int, file: Path, number: int) -> int:
    if not value.isdecimal() or int(value) > count:
        raise bad_line(file, number, f"has the head {value!r}, expected 0 ... {count}")
    return int(value) - 1


def _given(value: str) -> str | None:
    return None if value == "_" else value
