"""Rows of training: what is in them, and what is scored."""

import dataclasses

import numpy as np
import pytest

from bloomlab.demo.corpus import prepare
from bloomlab.demo.recipe import DEMO, Stage
from bloomlab.demo.rows import Rows, _stutter
from tests.demo.corpora import tiny_recipe, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    return prepare(write_corpus(folder / "texts"), tiny_recipe(), folder / "kept")


def rows_of(corpus, seed=0, **stage):
    fields = {"steps": 10, "rows": 8, "length": 48, "period": (4, 12), **stage}
    return Rows(corpus, tiny_recipe(stages=(Stage(**fields),)), seed=seed)


def test_rows_depend_on_seed_and_step_alone(corpus):
    mix = {"text": 0.5, "pasted": 0.25, "repeated": 0.25}
    one, two = rows_of(corpus, mix=mix), rows_of(corpus, mix=mix)
    two.batch(3)
    for a, b in zip(one.batch(7), two.batch(7), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.batch(7)[0], one.batch(8)[0])
    assert not np.array_equal(one.batch(7)[0], rows_of(corpus, mix=mix, seed=1).batch(7)[0])


def test_text_rows_stand_in_the_corpus(corpus):
    ids, weights = rows_of(corpus, mix={"text": 1.0}).batch(0)
    assert ids.shape == (8, 49)
    assert weights.shape == (8, 48)
    assert (weights == 1).all()
    whole = corpus.tokens.astype(np.uint16).tobytes()
    for row in ids:
        assert row[1:].astype(np.uint16).tobytes() in whole
    assert 0 < (ids[:, 0] == 1).sum() < 8  # some begin with <s>


def test_pasted_rows_hold_a_span_twice(corpus):
    rows = rows_of(corpus, mix={"pasted": 1.0})
    for step in range(5):
        for row in rows.batch(step)[0]:
            spans = [row[i : i + 8].tobytes() for i in range(len(row) - 7)]
            assert len(set(spans)) < len(spans)


def test_what_a_repeated_row_scores_in_full_is_a_copy(corpus):
    rows = rows_of(corpus, mix={"repeated": 1.0}, first_copy=0.25, uniform=1.0)
    ids, weights = rows.batch(0)
    assert set(np.unique(weights)) == {0.25, 1.0}
    for row, weight in zip(ids, weights, strict=True):
        for at in np.flatnonzero(weight == 1) + 1:
            # the token before stood earlier in the row, followed by this very token
            before = np.flatnonzero(row[: at - 1] == row[at - 1])
            assert row[at] in row[before + 1]
        assert row[1:].min() >= 4


def test_shares_of_the_kinds_come_out_over_many_steps(corpus):
    rows = rows_of(corpus, mix={"text": 0.9, "repeated": 0.1}, rows=5, first_copy=0.0)
    repeated = sum((rows.batch(step)[1] == 0).any(1).sum() for step in range(10)) / 50
    assert 0 < repeated < 0.35  # 0.1 of five rows: none or one in a step


def test_a_stutter_is_not_scored_and_the_text_goes_on_after_it():
    draw = np.random.default_rng(0)
    for _ in range(50):
        text = np.arange(100, 200)
        ids, weights = text.copy(), np.ones(99, np.float32)
        _stutter(ids, weights, draw)
        silent = np.flatnonzero(weights == 0) + 1
        assert len(silent) >= 2
        assert (np.diff(silent) == 1).all()
        np.testing.assert_array_equal(np.delete(ids, silent), text[: 100 - len(silent)])
        at = silent[0]
        span = next(s for s in range(1, 8) if (ids[at : at + s] == ids[at - s : at]).all())
        said = ids[silent[0] - span : silent[-1] + 1]
        np.testing.assert_array_equal(said[span:], said[:-span])
        assert len(said) >= 3 * span


def test_short_languages_are_not_drawn(corpus):
    longer = dataclasses.replace(corpus, spans={**corpus.spans, "zz": (0, 30)})
    recipe = tiny_recipe(stages=(Stage(steps=1, rows=1, length=48, mix={"text": 1.0}),))
    assert len(Rows(longer, recipe, seed=0).chances) == 2
    assert max(stage.length for stage in DEMO.stages) == 256
