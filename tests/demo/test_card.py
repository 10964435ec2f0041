"""The card's tables say what was measured."""

import copy

import pytest

from bloomlab.demo.card import filled
from bloomlab.errors import InputError

FOUND = {
    "vocabulary": 8192,
    "languages": {
        "code_python": {"nats": 3.0, "bits": 1.5, "n_token": 1234},
        "en": {"nats": 4.0, "bits": 1.7123, "n_token": 99},
    },
    "copying": {32: {"first": 9.1, "second": 0.1, "accuracy": 0.98}},
    "scores": {
        "induction": [[0.0, 0.91]],
        "previous": [[0.4, 0.0]],
        "duplicate": [[0.0, 0.05]],
    },
    "english": 4.0,
    "text_effect": [[0.04, -0.001]],
    "copy_effect": [[9.0, 0.2]],
    "groups": {"all induction heads": {"heads": ["L0H1"], "text": 0.1, "copy": 8.5}},
    "samples": [{"prompt": "a\n|", "text": "x `y`", "loop": 3}],
    "log": [{"step": 1000, "tokens": 2560000, "first": 9.1, "second": 1.0, "induction": 0.9,
             "previous": 0.5, "loss": 4.4, "en": 2.3}],
    "phases": {"step0": {"first": 9.0, "second": 9.1, "induction": 0.0, "previous": 0.2, "en": 4}},
    "files": {"config.json": {"bytes": 1024, "sha256": "abc"}},
}  # fmt: skip
ROWS = {
    "languages": "| English | 4.00 | 1.71 | 99 |\n| Python | 3.00 | 1.50 | 1,234 |",
    "copying": "| 32 | 9.10 | 0.10 | 8.91 | 98% |",
    "heads": (
        "| L0H0 | 0.00 | 0.40 | 0.00 | +0.040 (+1.0%) | +9.00 |\n"
        "| L0H1 | 0.91 | 0.00 | 0.05 | -0.001 (-0.0%) | +0.20 |"
    ),
    "groups": "| all induction heads | L0H1 | +0.10 | +8.50 |",
    "samples": r"| `a⏎\|` | `x 'y'` | 3 |",
    "curve": "| 1,000 | 2,560,000 | 9.1 | 1.0 | 0.9 | 0.5 | 2.3 |",
    "phases": "| step0 | 9.00 | 9.10 | 0.00 | 0.20 | 4.00 |",
    "files": "| config.json | 1,024 | `abc` |",
}


@pytest.mark.parametrize("name", ROWS)
def test_a_table_is_made_anew_between_its_marks(name):
    card = f"Words.\n<!-- table: {name} -->\n| old |\n<!-- end -->\nMore words.\n"
    made = filled(card, FOUND)
    start, end = f"Words.\n<!-- table: {name} -->\n| ", f"{ROWS[name]}\n<!-- end -->\nMore words.\n"
    assert made.startswith(start)
    assert made.endswith(end)
    assert "old" not in made
    assert filled(made, FOUND) == made


def test_unknown_tables_and_missing_results_are_told():
    with pytest.raises(InputError, match="wants a table 'poems'"):
        filled("<!-- table: poems -->\n<!-- end -->", FOUND)
    lacking = copy.deepcopy(FOUND)
    del lacking["log"]
    with pytest.raises(InputError, match="'curve' needs results that lack 'log'"):
        filled("<!-- table: curve -->\n<!-- end -->", lacking)
