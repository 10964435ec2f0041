"""Questions whose answers stand in a text (XQuAD; Artetxe et al., 2020, arXiv:1910.11856)."""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bloomlab.errors import InputError
from bloomlab.experiments.task_files import Source, bad_line, find_file, read_text

PART = "xquad"
PATTERN = r"xquad\.([a-z]+)\.json"
SENTENCE_END = re.compile(r"[.!?…؟](?=\s)|[。！？।]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Questions:
    """Questions, and texts in which their answers stand.

    Attributes:
        language: its code, such as "en".
        ids: of the questions; translations of each other have the same.
        paragraphs: number of the paragraph that each is about, from 0; split by it, so that what is
            tested was never read in training.
        questions: what is asked.
        contexts: the text with the answer.
        spans: (start, stop) characters of the answer in its text.
    """

    language: str
    ids: tuple[str, ...]
    paragraphs: tuple[int, ...]
    questions: tuple[str, ...]
    contexts: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        """Number of questions."""
        return len(self.questions)

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers as they stand in the texts."""
        pairs = zip(self.contexts, self.spans, strict=True)
        return tuple(text[start:stop] for text, (start, stop) in pairs)

    def about(self, paragraphs: Iterable[int]) -> "Questions":
        """The questions about some paragraphs, in the same order.

        Raises:
            InputError: there are none.
        """
        wanted = set(paragraphs)
        kept = [i for i, number in enumerate(self.paragraphs) if number in wanted]
        if not kept:
            raise InputError(
                f"no question is about the paragraphs {sorted(wanted)!r:.60}; they are about "
                f"{min(self.paragraphs)} to {max(self.paragraphs)}."
            )
        names = ("ids", "paragraphs", "questions", "contexts", "spans")
        return replace(
            self, **{name: tuple(getattr(self, name)[i] for i in kept) for name in names}
        )


def question_answering(
    language: str = "en", source: Source = None, *, sentences: bool = False
) -> Questions:
    """Questions about paragraphs, paragraph after paragraph, each with its answer's place.

    Args:
        language: code in the file's name, xquad.en.json.
        source: a folder of files in SQuAD's form, or one such file; None: 159 questions about
            the same 30 short paragraphs in en, es and zh, which the package has.
        sentences: give each question the sentence (or sentences) that its answer stands in, not
            the whole paragraph: far fewer tokens, and an easier task. Sentences end at . ! ? … ؟
            before a space, and at 。 ！ ？ ।.

    Raises:
        InputError: no such folder or file, or a bad one; names the file and the question.
        UnknownNameError: no file of the language.
    """
    file = find_file(source, PART, PATTERN, language)
    try:
        whole = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise bad_line(file, error.lineno, f"is not JSON: {error.msg}") from error
    rows = [
        (*_checked(file, text, row, number), paragraph)
        for number, (paragraph, text, row) in enumerate(_rows(file, whole), 1)
    ]
    if not rows:
        raise InputError(f"{file} has no questions.")
    if sentences:
        rows = [(*row[:2], *_sentence(*row[2:4]), row[4]) for row in rows]
    ids, questions, contexts, spans, paragraphs = zip(*rows, strict=True)
    return Questions(
        language=language,
        ids=ids,
        paragraphs=paragraphs,
        questions=questions,
        contexts=contexts,
        spans=spans,
    )


def _rows(file: Path, whole: Any) -> Iterator[tuple[int, Any, dict[str, Any]]]:
    """Number and text of the paragraph, and the entry of each question."""
    number = 0
    try:
        for article in whole["data"]:
            for paragraph in article["paragraphs"]:
                for row in paragraph["qas"]:
                    yield number, paragraph["context"], row
                number += 1
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{file} is not in SQuAD's form {{'data': [{{'paragraphs': [{{'context': ..., 'qas': "
            f"[...]}}]}}]}}: {error}."
        ) from error


def _checked(file: Path, text: Any, row: Any, number: int) -> tuple[str, str, str, tuple[int, int]]:
    """Id, question, text and span of the first answer."""
    try:
        question, answer = row["question"].strip(), row["answers"][0]
        said, start = answer["text"], answer["answer_start"]
        if question and said and text[start : start + len(said)] == said:
            return str(row.get("id", number)), question, text, (start, start + len(said))
    except (AttributeError, IndexError, KeyError, TypeError):
        pass  # the same fault: no such field, or of another kind
    raise InputError(
        f"{file}, question {number} is {row!r:.120}, expected a `question` and `answers` whose "
        "first `text` stands in the paragraph at `answer_start`."
    )


def _sentence(text: str, span: tuple[int, int]) -> tuple[str, tuple[int, int]]:
    """The sentences of a text that hold a span, and where it stands in them."""
    ends = [found.end() for found in SENTENCE_END.finditer(text)]
    start = max((end for end in ends if end <= span[0]), default=0)
    stop = min((end for end in ends if end >= span[1]), default=len(text))
    start += len(text[start:]) - len(text[start:].lstrip())
    return text[start:stop], (span[0] - start, span[1] - start)
