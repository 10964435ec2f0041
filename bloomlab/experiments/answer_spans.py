"""Answers as spans of tokens: examples to train on, and how well a model marks them.

A causal model reads from left to right, so the question stands before the text: only then do the
text's tokens know what was asked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from tqdm.auto import tqdm

from bloomlab.analysis.probes import resampled_interval
from bloomlab.errors import InputError
from bloomlab.experiments.question_answering import Questions

BETWEEN = "\n"  # question and text
ROWS = 32  # questions in a forward
SCORES = ("exact", "overlap")
COLUMNS = ("score", "n", "value", "low", "high", "chance")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Encoded:
    """A question and its text as tokens.

    Attributes:
        ids: of the question, then of the text.
        begin: column of the text's first token.
        starts: first character in the text of each of the text's tokens, without leading space.
        stops: character after its last.
        first: column of the answer's first token.
        last: column of its last.
    """

    ids: list[int]
    begin: int
    starts: Int[np.ndarray, " key"]
    stops: Int[np.ndarray, " key"]
    first: int
    last: int


def answer_examples(tokenizer: Any, questions: Questions) -> list[dict[str, Any]]:
    """Questions for span classification: input_ids, attention_mask, start_positions, end_positions.

    Each is the question, a line break and the text; positions are the columns of the answer's first
    and last token. Pad on the right (`tokenizer.padding_side = "right"`): padding on the left would
    move the columns.

    Raises:
        InputError: an answer without a token.
    """
    return [
        {
            "input_ids": one.ids,
            "attention_mask": [1] * len(one.ids),
            "start_positions": one.first,
            "end_positions": one.last,
        }
        for one in _encoded(tokenizer, questions)
    ]


def score_answers(
    model: Any,
    questions: Questions,
    *,
    longest: int = 16,
    level: float = 0.95,
    progress: bool = True,
) -> pd.DataFrame:
    """How well a model marks answers; a row for "exact" and one for "overlap".

    The marked span is the likeliest one of at most `longest` tokens in the text: the greatest sum
    of start and end logit. "exact" is the share of questions where it is the answer's, token for
    token. "overlap" is 2 |both| / (|marked| + |answer|) in characters, a mean over questions; it
    needs no rule of what a word is, other than SQuAD's F1.

    Columns: score; n questions; value, with the ends low and high of its bootstrap interval over
    paragraphs (questions about the same one are not independent); chance, what a span drawn evenly
    from the same ones would get.

    Args:
        model: a BloomForQuestionAnswering with its tokenizer.
        questions: such as `tasks.question_answering("en")`.
        longest: tokens of the longest span.
        level: of the intervals.
        progress: show a bar while it takes long.

    Raises:
        InputError: longest below 1, a level that is no share, or an answer without a token.
    """
    found, chance = [], []
    for one, first, last, best in _marked(model, questions, longest, progress):
        scores = _scores(one, first, last)
        found.append(scores[:, best])
        chance.append(scores.mean(1))
    even = np.stack(chance, 1).mean(1).tolist()
    paragraph = np.unique(questions.paragraphs, return_inverse=True)[1]
    rows = []
    for name, values, by_chance in zip(SCORES, np.stack(found, 1), even, strict=True):
        sums = torch.zeros(int(paragraph.max()) + 1, 2, dtype=torch.float64)
        pairs = np.stack([values, np.ones_like(values)], 1)
        sums.index_add_(0, torch.as_tensor(paragraph), torch.as_tensor(pairs))
        ends = resampled_interval(sums, lambda some: some[:, 0] / some[:, 1], level)
        rows.append((name, len(questions), float(values.mean()), *ends, by_chance))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def marked_answers(
    model: Any, questions: Questions, *, longest: int = 16, progress: bool = True
) -> list[str]:
    """What a model marks as the answer to each question; see `score_answers` for all else."""
    marked = _marked(model, questions, longest, progress)
    texts = zip(questions.contexts, marked, strict=True)
    return [
        text[one.starts[first[best]] : one.stops[last[best]]]
        for text, (one, first, last, best) in texts
    ]


def _marked(
    model: Any, questions: Questions, longest: int, progress: bool
) -> Iterator[tuple[_Encoded, Int[np.ndarray, " span"], Int[np.ndarray, " span"], int]]:
    """Each question, its spans' first and last tokens in the text, and the likeliest's number."""
    if longest < 1:
        raise InputError(f"longest is {longest}, expected 1 token or more.")
    encoded = list(_encoded(model.tokenizer, questions))
    starts = range(0, len(encoded), ROWS)
    for number in tqdm(starts, unit="batch", delay=2, disable=not progress):
        part = encoded[number : number + ROWS]
        width = max(len(one.ids) for one in part)
        pad = model.config.pad_token_id or 0  # not attended to, so any
        ids = torch.tensor([one.ids + [pad] * (width - len(one.ids)) for one in part])
        seen = torch.tensor([[1] * len(one.ids) + [0] * (width - len(one.ids)) for one in part])
        ids, seen = ids.to(model.device), seen.to(model.device)
        with torch.no_grad():
            output = model(ids, attention_mask=seen, use_cache=False)
        pairs = zip(output.start_logits.float().cpu(), output.end_logits.float().cpu(), strict=True)
        for one, (start, end) in zip(part, pairs, strict=True):
            n = len(one.starts)
            first, last = np.nonzero(np.triu(np.tri(n, k=longest - 1)))
            sums = start.numpy()[one.begin + first] + end.numpy()[one.begin + last]
            yield one, first, last, int(sums.argmax())


def _scores(
    one: _Encoded, first: Int[np.ndarray, " span"], last: Int[np.ndarray, " span"]
) -> Float[np.ndarray, "score span"]:
    """Exactness and overlap of spans with the answer."""
    answer = one.first - one.begin, one.last - one.begin
    exact = (first == answer[0]) & (last == answer[1])
    start, stop = one.starts[first], one.stops[last]
    left, right = one.starts[answer[0]], one.stops[answer[1]]
    both = np.clip(np.minimum(stop, right) - np.maximum(start, left), 0, None)
    return np.stack([exact.astype(float), 2 * both / np.maximum(stop - start + right - left, 1)])


def _encoded(tokenizer: Any, questions: Questions) -> Iterator[_Encoded]:
    texts = zip(questions.questions, questions.contexts, questions.spans, strict=True)
    for number, (question, text, (start, stop)) in enumerate(texts):
        whole = question + BETWEEN + text
        encoded = tokenizer(whole, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        at = len(question) + len(BETWEEN)
        stops = np.array([b for _, b in offsets])
        starts = np.array([b - len(whole[a:b].lstrip()) for a, b in offsets])
        begin = int(np.searchsorted(stops, at, side="right"))
        first = int(np.searchsorted(stops, at + start, side="right"))
        last = int(np.searchsorted(starts, at + stop, side="left")) - 1
        if first > last:
            raise InputError(
                f"question {number} ({question!r:.60}): no token has the answer, characters "
                f"{start} to {stop} of its text."
            )
        yield _Encoded(
            ids=encoded["input_ids"],
            begin=begin,
            starts=np.maximum(starts[begin:] - at, 0),
            stops=stops[begin:] - at,
            first=first,
            last=last,
        )
