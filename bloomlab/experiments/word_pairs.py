"""Word-pair tasks, such as singular to plural (Todd et al., 2024, arXiv:2310.15213)."""

import json
from dataclasses import dataclass

from bloomlab.errors import InputError
from bloomlab.experiments.task_files import Source, bad_line, find_file, read_text

PART = "function_vectors"
PATTERN = r"(.+)\.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class WordPairs:
    """Pairs of words of one relation.

    Attributes:
        task: its name.
        pairs: question and answer.
    """

    task: str
    pairs: tuple[tuple[str, str], ...]

    def __len__(self) -> int:
        """Number of pairs."""
        return len(self.pairs)


def word_pairs(task: str = "singular-plural", source: Source = None) -> WordPairs:
    """The pairs of a task, in the order of its file.

    Args:
        task: name of a file without ".json".
        source: a folder of lists [{"input": ..., "output": ...}, ...] or one file; None: 50 pairs
            each of antonym, country-capital, english-french, english-spanish, present-past and
            singular-plural, which the package has.

    Raises:
        InputError: no such folder or file, or a bad one; names the file and the line or pair.
        UnknownNameError: no such task.
    """
    file = find_file(source, PART, PATTERN, task)
    try:
        rows = json.loads(read_text(file))
    except json.JSONDecodeError as error:
        raise bad_line(file, error.lineno, f"is not JSON: {error.msg}") from error
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{file} holds {rows!r:.60}, expected a list of pairs.")
    found = []
    for number, row in enumerate(rows, 1):
        pair = (row.get("input"), row.get("output")) if isinstance(row, dict) else (None, None)
        if not all(isinstance(word, str) and word for word in pair):
            raise InputError(
                f"{file}, pair {number} is {row!r:.60}, expected texts `input` and `output`."
            )
        found.append(pair)
    return WordPairs(task=task, pairs=tuple(found))
