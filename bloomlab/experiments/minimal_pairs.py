"""Minimal pairs of a good and a bad sentence (BLiMP; Warstadt et al., 2020, arXiv:1912.00582)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.analysis.intervals import bootstrap_mean
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.task_files import Source, find_files, read_json_lines, text_of

PART = "blimp"
PATTERN = r"(.+)\.jsonl"
COLUMNS = ("paradigm", "n", "accuracy", "low", "high", "margin")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Pairs of sentences that differ in what makes one of them bad.

    Attributes:
        good: the grammatical sentences.
        bad: the others.
        paradigms: what each pair is about.

    Raises:
        InputError: unequal numbers, or none.
    """

    good: tuple[str, ...]
    bad: tuple[str, ...]
    paradigms: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.good) == len(self.bad) == len(self.paradigms) > 0:
            raise InputError(
                f"there are {len(self.good)} good and {len(self.bad)} bad sentences of "
                f"{len(self.paradigms)} paradigms; expected as many of each, and some."
            )

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.good)


def minimal_pairs(paradigms: Sequence[str] | str | None = None, source: Source = None) -> Pairs:
    """Pairs of some paradigms, one after the other.

    Args:
        paradigms: names of files without ".jsonl"; None: all that are there.
        source: a folder of files with a pair a line (`sentence_good`, `sentence_bad`), or one
            file; None: 20 pairs each of 12 paradigms, which the package has.

    Raises:
        InputError: no such folder or file, or a bad one; names file and line.
        UnknownNameError: no such paradigm.
    """
    files = find_files(source, PART, PATTERN)
    chosen = [paradigms] if isinstance(paradigms, str) else list(paradigms or files)
    found = []
    for name in chosen:
        if name not in files:
            raise UnknownNameError("paradigm", name, files)
        for number, row in read_json_lines(files[name]):
            ends = ("sentence_good", "sentence_bad")
            found.append((*(text_of(row, end, files[name], number) for end in ends), name))
    good, bad, names = zip(*found, strict=True)
    return Pairs(good=good, bad=bad, paradigms=names)


def score_pairs(
    model: Any,
    pairs: Pairs,
    *,
    start: int | None = None,
    batch_size: int = 32,
    level: float = 0.95,
    progress: bool = True,
) -> pd.DataFrame:
    """How often the good sentence is the likelier one; one row a paradigm, in the pairs' order.

    Columns: paradigm; n pairs; accuracy (chance 0.5; as likely counts as wrong) with the ends low
    and high of its bootstrap interval over pairs; margin, the mean log-probability of the good
    sentence less that of the bad one, in nats.

    Args:
        model: a BLOOM with a language-model head and its tokenizer.
        pairs: the sentences.
        start: as in `sentence_log_probs`.
        batch_size: sentences in a forward.
        level: of the interval.
        progress: show a bar while it takes long.

    Raises:
        InputError: a sentence without a token, or a start outside the vocabulary.
        TokenizerError: no tokenizer.
    """
    both = [*pairs.good, *pairs.bad]
    good, bad = sentence_log_probs(
        model, both, start=start, batch_size=batch_size, progress=progress
    ).chunk(2)
    rows = []
    for name in dict.fromkeys(pairs.paradigms):
        margin = (good - bad)[torch.tensor([one == name for one in pairs.paradigms])]
        right = (margin > 0).double()
        low, high = bootstrap_mean(right, level)
        rows.append((name, len(right), *map(float, (right.mean(), low, high, margin.mean()))))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def sentence_log_probs(
    model: Any,
    texts: Sequence[str],
    *,
    start: int | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> Float[Tensor, " text"]:
    """Log-probability of each whole text, in nats, float64, on the CPU.

    The tokens are those of `model.to_tokens`, which begins with no special token, after one token
    `start` that is given; so the first token of a text counts too. A text has the same
    log-probability alone and beside any others.

    Args:
        model: a BLOOM with a language-model head and its tokenizer.
        texts: of any lengths.
        start: id of the token before each text; None: `<s>`, `model.config.bos_token_id`.
        batch_size: texts in a forward; those of like length go together.
        progress: show a bar while it takes long.

    Raises:
        InputError: no text, one without a token, a start outside the vocabulary, or a batch
            size below 1.
        TokenizerError: no tokenizer.
    """
    before = model.config.bos_token_id if start is None else start
    ids = [model.to_tokens(text, prepend_bos=False)[0] for text in texts]
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    size = batch_size if isinstance(batch_size, int) and batch_size > 0 else 1
    groups = [order[first : first + size] for first in range(0, len(order), size)] or [[]]
    found = torch.empty(len(ids), dtype=torch.float64)
    with tqdm(total=len(ids), unit="text", delay=2, disable=not progress) as bar:
        for some in groups:
            scores = model.score_continuations(
                torch.tensor([before]), [ids[number] for number in some], batch_size=batch_size
            )
            found[torch.tensor(some)] = scores.log_probs.double().sum(-1).cpu()
            bar.update(len(some))
    return found
