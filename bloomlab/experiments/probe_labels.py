"""Labels of tokens, of words or spans, or of texts, laid onto the tokens of a model."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from bloomlab.errors import InputError, ShapeError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.spans import Spans

NO_LABEL = -100  # in tensors of labels, as in transformers


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Examples with labels.

    Attributes:
        data: the texts' tokens.
        spans: the tokens of each example.
        labels: numbers of classes.
        classes: their names, sorted.
        types: equal for examples of the same token, the same word (spans) or the same text.
        unit: "token", "span" or "text".
    """

    data: Dataset
    spans: Spans
    labels: Int[Tensor, " example"]
    classes: tuple[Any, ...]
    types: Int[Tensor, " example"]
    unit: str


def label_examples(
    model: Any,
    texts: Any,
    labels: Any,
    *,
    spans: Any = None,
    attention_mask: Any = None,
    fitting: bool = True,
) -> Labelled:
    """Texts and labels as examples; what has the label None is left out.

    Args:
        model: a BLOOM; with a tokenizer, if texts are text.
        texts: texts, ids [batch pos] or a dict with `attention_mask`.
        labels: names or whole numbers, one a text; or a list for each text: one for each token
            that is no padding, or, with `spans`, one a span. Labels of tokens may be a tensor
            [batch pos] too, -100 for none.
        spans: for each text (start, stop) characters, or its words in order; see `word_spans`.
        attention_mask: [batch pos], 0 for padding.
        fitting: whether probes are to be fitted on them; else any classes will do.

    Raises:
        InputError: labels that do not match (names the text), spans without a token, no labels;
            for fitting fewer than two classes, or classes with one example, which `without_rare`
            drops.
        TokenizerError: spans, but no tokenizer.
    """
    data = dataset(model, texts, attention_mask)
    given = _by_text(data, labels)
    if len(given) != len(data):
        raise InputError(f"there are {len(data)} texts and {len(given)} labels or lists of labels.")
    nested = [isinstance(one, list) for one in given]
    if any(nested) != all(nested):
        raise InputError(f"text {nested.index(not nested[0])} has labels of another form.")
    if spans is not None:
        if not all(nested):
            raise InputError("with spans, labels are a list for each text, one label a span.")
        found, flat, words = spans_of(model, data, texts, given, spans)
        numbers = {word: i for i, word in enumerate(dict.fromkeys(words))}
        types, unit = torch.tensor([numbers[word] for word in words], dtype=torch.long), "span"
    elif all(nested):
        found, flat = _of_tokens(data, given)
        types, unit = data.tokens.cpu()[found.text, found.first], "token"
    else:
        found, flat, unit = Spans.of_texts(data.attended), given, "text"
        types = found.text
    kept = torch.tensor([label is not None for label in flat], dtype=torch.bool)
    found = Spans(text=found.text[kept], first=found.first[kept], last=found.last[kept])
    names = [label for label in flat if label is not None]
    classes = _classes(names, found, fitting=fitting)
    at = {name: i for i, name in enumerate(classes)}
    return Labelled(
        data=data,
        spans=found,
        labels=torch.tensor([at[name] for name in names]),
        classes=classes,
        types=types[kept],
        unit=unit,
    )


def word_spans(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Where words stand in a text, one after the other: (start, stop) characters.

    Raises:
        InputError: a word that is not in the rest of the text.
    """
    found, end = [], 0
    for word in words:
        start = text.find(word, end)
        if start < 0 or not word:
            raise InputError(f"the word {word!r} is not in {text!r:.60} after character {end}.")
        end = start + len(word)
        found.append((start, end))
    return found


def without_rare(labels: Sequence[Any], least: int = 2) -> list[Any]:
    """The same labels (or lists of labels), None in place of those that occur less often."""
    flat = [x for one in labels for x in (one if isinstance(one, list | tuple) else [one])]
    count = Counter(flat)

    def kept(label: Any) -> Any:
        return label if count[label] >= least else None

    nested = [isinstance(one, list | tuple) for one in labels]
    pairs = zip(labels, nested, strict=True)
    return [[kept(x) for x in one] if many else kept(one) for one, many in pairs]


def _by_text(data: Dataset, labels: Any) -> list[Any]:
    if isinstance(labels, Tensor | np.ndarray):
        values = torch.as_tensor(labels)
        if values.is_floating_point():
            raise InputError("labels are real numbers, expected names or whole numbers of classes.")
        if values.ndim == 2:
            if values.shape != data.tokens.shape:
                expected = f"{list(data.tokens.shape)}, as the tokens"
                raise ShapeError("labels", got=values.shape, expected=expected)
            rows = zip(values.tolist(), data.attended.tolist(), strict=True)
            pairs = [zip(row, seen, strict=True) for row, seen in rows]
            return [[None if x == NO_LABEL else x for x, on in row if on] for row in pairs]
        labels = values.tolist()
    nested = [list(one) if isinstance(one, list | tuple) else one for one in labels]
    return [[*map(_plain, one)] if isinstance(one, list) else _plain(one) for one in nested]


def _plain(label: Any) -> Any:
    """Numbers of numpy as Python's."""
    return label.item() if isinstance(label, np.generic) else label


def _of_tokens(data: Dataset, labels: list[list[Any]]) -> tuple[Spans, list[Any]]:
    for text, (named, seen) in enumerate(zip(labels, data.attended.sum(1).tolist(), strict=True)):
        if len(named) != seen:
            raise InputError(
                f"text {text} has {seen} tokens and {len(named)} labels. Expected one label a "
                "token, None where there is none; labels of words need `spans`."
            )
    return Spans.of_tokens(data.attended), [label for one in labels for label in one]


def spans_of(
    model: Any, data: Dataset, texts: Any, labels: list[list[Any]], spans: Any
) -> tuple[Spans, list[Any], list[str]]:
    """The tokens of words or (start, stop) characters, their labels, and what they spell.

    What has the label None is left out; see `label_examples`.

    Raises:
        InputError: spans that do not fit the texts or their labels, or without a token.
    """
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, list | tuple) or not all(isinstance(one, str) for one in texts):
        raise InputError("spans are characters of texts: give texts, not token ids.")
    if len(spans) != len(texts):
        raise InputError(f"there are {len(texts)} texts and {len(spans)} lists of spans.")
    encoded = model.tokenizer(list(texts), return_offsets_mapping=True)["offset_mapping"]
    rows: list[tuple[int, int, int]] = []
    words: list[str] = []
    columns = [seen.nonzero()[:, 0].tolist() for seen in data.attended.cpu()]
    for number, (text, wanted, named) in enumerate(zip(texts, spans, labels, strict=True)):
        wanted = list(wanted)
        if len(wanted) != len(named):
            raise InputError(
                f"text {number} ({text!r:.40}) has {len(wanted)} spans and {len(named)} labels."
            )
        if wanted and isinstance(wanted[0], str):
            try:
                wanted = word_spans(text, wanted)
            except InputError as error:
                raise InputError(f"text {number}: {error}") from error
        starts, stops = _trimmed(text, encoded[number])
        shown = columns[number][len(columns[number]) - len(starts) :]
        for (start, stop), label in zip(wanted, named, strict=True):
            if label is None:
                continue
            first = int(np.searchsorted(stops, start, side="right"))
            last = int(np.searchsorted(starts, stop, side="left")) - 1
            if not 0 <= start < stop <= len(text) or first > last:
                raise InputError(
                    f"text {number} ({text!r:.40}) has no token in the span ({start}, {stop})."
                )
            rows.append((number, shown[first], shown[last]))
            words.append(text[start:stop])
    which, first, last = torch.tensor(rows, dtype=torch.long).reshape(-1, 3).T.contiguous()
    found = Spans(text=which, first=first, last=last)
    return found, [label for one in labels for label in one if label is not None], words


def _trimmed(text: str, offsets: list[tuple[int, int]]) -> tuple[Any, Any]:
    """Tokens' characters without the space before them; none of a token that is only space."""
    starts = [b - len(text[a:b].lstrip()) for a, b in offsets]
    return np.array(starts), np.array([b for _, b in offsets])


def _classes(names: list[Any], spans: Spans, *, fitting: bool) -> tuple[Any, ...]:
    if bad := [name for name in names if not isinstance(name, str | int)]:
        raise InputError(f"a label is {bad[0]!r}, expected a name, a whole number or None.")
    if len({isinstance(name, str) for name in names}) > 1:
        raise InputError("some labels are names and some numbers, expected one or the other.")
    count = Counter(names)
    if not fitting and count:
        return tuple(sorted(count))
    if len(count) < 2:
        raise InputError(f"labels are of {len(count)} classes {sorted(count)}, expected 2 or more.")
    if alone := [name for name in sorted(count) if count[name] == 1]:
        where = ", ".join(f"{x!r} (text {int(spans.text[names.index(x)])})" for x in alone[:5])
        raise InputError(
            f"{len(alone)} classes have one example: {where}. A probe needs some to learn from and "
            "some to be tested on. Add examples or drop them: labels = without_rare(labels)."
        )
    return tuple(sorted(count))
