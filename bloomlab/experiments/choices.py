"""Choices between ways to go on (XCOPA; Ponti et al., 2020, arXiv:2005.00333)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from bloomlab.analysis.intervals import bootstrap_mean
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.task_files import Source, bad_line, find_file, read_json_lines, text_of

PART = "xcopa"
PATTERN = r"test\.([a-z]+)\.jsonl"
STOPS = ".。।!！?？"
CONNECTORS = {  # "because" and "so", as in EleutherAI's lm-evaluation-harness
    "et": {"cause": "sest", "effect": "seetõttu"},
    "ht": {"cause": "poukisa", "effect": "donk sa"},
    "id": {"cause": "karena", "effect": "maka"},
    "it": {"cause": "perché", "effect": "quindi"},
    "qu": {"cause": "imataq", "effect": "chaymi"},
    "sw": {"cause": "kwa sababu", "effect": "kwa hiyo"},
    "ta": {"cause": "காரணமாக", "effect": "எனவே"},
    "th": {"cause": "เพราะ", "effect": "ดังนั้น"},
    "tr": {"cause": "çünkü", "effect": "bu yüzden"},
    "vi": {"cause": "bởi vì", "effect": "vì vậy"},
    "zh": {"cause": "因为", "effect": "所以"},
}
UNSPACED = ("th", "zh")
COLUMNS = ("rule", "n", "accuracy", "low", "high", "chance")


@dataclass(frozen=True, kw_only=True, slots=True)
class Choices:
    """Texts that go on in one of several ways.

    Attributes:
        prefixes: the texts.
        options: for each text its continuations, each with its space before it.
        right: number of the right one of each.

    Raises:
        InputError: unequal numbers, none, fewer than two options, or a right one that is not there.
    """

    prefixes: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]
    right: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.prefixes) == len(self.options) == len(self.right) > 0:
            raise InputError(
                f"there are {len(self.prefixes)} texts, {len(self.options)} lists of options and "
                f"{len(self.right)} right ones; expected as many of each, and some."
            )
        for number, (some, right) in enumerate(zip(self.options, self.right, strict=True)):
            if len(some) < 2 or not 0 <= right < len(some):
                raise InputError(
                    f"text {number} has {len(some)} options, of which {right} is right; expected "
                    "two or more and a number of one of them, from 0."
                )

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.prefixes)


def causal_choices(language: str = "id", source: Source = None) -> Choices:
    """A premise and "because" or "so", to be continued by one of two causes or effects.

    Prompts are put together as in EleutherAI's lm-evaluation-harness: the premise without its full
    stop, the connector, the choice with a small first letter. Other than there, a premise that
    ends without a full stop stays whole, and Chinese and Thai have no spaces.

    Args:
        language: code in the file's name, test.id.jsonl.
        source: a folder of XCOPA's test files or one file; None: 30 items each of id, sw, ta, vi,
            zh, which the package has.

    Raises:
        InputError: no such folder or file, or a bad one; names file and line.
        UnknownNameError: no file of the language, or a language whose connectors are not known.
    """
    file = find_file(source, PART, PATTERN, language)
    if language not in CONNECTORS:
        raise UnknownNameError("language of XCOPA", language, CONNECTORS)
    items = [_item(row, language, file, number) for number, row in read_json_lines(file)]
    prefixes, options, right = zip(*items, strict=True)
    return Choices(prefixes=prefixes, options=options, right=right)


def score_choices(
    model: Any, choices: Choices, *, level: float = 0.95, progress: bool = True
) -> pd.DataFrame:
    """How often the right option is the likeliest one after its text; two rows.

    Columns: rule, "sum" (log-probability of the whole option) or "mean" (per token of the option,
    so that long ones are not at a loss); n; accuracy (as likely counts as wrong) with the ends low
    and high of its bootstrap interval over texts; chance.

    The text's own first token is given, not scored, and no special token stands before it; text
    and option are tokenised apart, as in `model.score_continuations`.

    Args:
        model: a BLOOM with a language-model head and its tokenizer.
        choices: texts and options.
        level: of the interval.
        progress: show a bar while it takes long.

    Raises:
        InputError: an empty text or option.
        TokenizerError: no tokenizer.
    """
    right: dict[str, list[bool]] = {"sum": [], "mean": []}
    items = list(zip(choices.prefixes, choices.options, choices.right, strict=True))
    for prefix, options, answer in tqdm(items, unit="text", delay=2, disable=not progress):
        scores = model.score_continuations(prefix, list(options))
        for rule, values in (("sum", scores.sums), ("mean", scores.means)):
            others = torch.cat([values[:answer], values[answer + 1 :]])
            right[rule].append(bool(values[answer] > others.max()))
    chance = sum(1 / len(some) for some in choices.options) / len(choices)
    rows = []
    for rule, found in right.items():
        values = torch.tensor(found, dtype=torch.float64)
        low, high = map(float, bootstrap_mean(values, level))
        rows.append((rule, len(found), float(values.mean()), low, high, chance))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _item(
    row: dict[str, Any], language: str, file: Path, number: int
) -> tuple[str, tuple[str, ...], int]:
    """Prefix, options and number of the right one."""
    question, label = row.get("question"), row.get("label")
    if question not in ("cause", "effect"):
        raise bad_line(file, number, f"has question = {question!r:.40}, expected cause or effect")
    if isinstance(label, bool) or label not in (0, 1):
        raise bad_line(file, number, f"has label = {label!r:.40}, expected 0 or 1")
    space = "" if language in UNSPACED else " "
    premise = text_of(row, "premise", file, number).strip().rstrip(STOPS)
    texts = [text_of(row, name, file, number).strip() for name in ("choice1", "choice2")]
    options = tuple(space + text[0].lower() + text[1:] for text in texts)
    return f"{premise}{space}{CONNECTORS[language][question]}", options, label
