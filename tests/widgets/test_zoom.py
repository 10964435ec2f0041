import numpy as np
import pytest

import bloomlab as bl
from bloomlab.widgets import HeadZoom
from tests.widgets.asking import LONG, Browser, as_floats, ask, error_bound, square, value_of

HEADS = [(0, 0), (2, 7), (5, 3)]
MODES = ["pattern", "value", "content", "alibi"]


def unpacked(answer, n):
    (data,) = answer["buffers"]
    whole = square(data, n, 128 if answer["signed"] else 0)
    return value_of(whole, answer["top"], answer["signed"])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("layer", "head"), HEADS)
def test_a_head_is_the_sessions_within_a_rounded_root(mode, layer, head, session):
    answer = ask(HeadZoom(session), "head", layer=layer, head=head, run="edited", mode=mode)
    expected = session.attention(mode, layer, head)
    error = np.abs(unpacked(answer, len(expected)) - expected)
    assert (error <= error_bound(expected, answer["top"])).all()
    assert answer["slope"] == session.slope(layer, head)


def test_a_difference_has_signs(session):
    session.edits = session.edits.with_heads([(0, head) for head in range(8)], scale=0.0)
    view = HeadZoom(session, mode="difference")
    answer = ask(view, "head", layer=2, head=7, run="edited", mode="difference")
    runs = [session.attention("pattern", 2, 7, which=run) for run in ("edited", "clean")]
    expected = runs[0] - runs[1]
    found = unpacked(answer, len(expected))
    assert answer["signed"]
    assert answer["top"] == pytest.approx(np.abs(expected).max())
    assert (np.abs(found - expected) <= error_bound(expected, answer["top"], levels=127)).all()
    assert found.min() < 0 < found.max()
    session.selection.set(layer=2, head=7)
    np.testing.assert_array_equal(view.value, expected)


def test_a_head_takes_about_half_a_byte_a_cell(demo):
    for text in (LONG, LONG * 3):
        session = bl.Session(demo, text)
        n = len(session.run())
        assert n >= 64
        (data,) = ask(HeadZoom(session), "head", layer=1, head=1, run="edited", mode="pattern")[
            "buffers"
        ]
        assert len(data) <= 0.55 * n * n


@pytest.mark.parametrize("mode", [*MODES, "difference"])
def test_a_block_is_exact(mode, session):
    session.edits = session.edits.with_heads([(0, 0)], scale=0.0)
    place = {"layer": 2, "head": 7, "run": "edited", "mode": mode}
    block = {"row": 3, "column": 1, "rows": 4, "columns": 5}
    (data,) = ask(HeadZoom(session), "block", **place, **block)["buffers"]
    expected = session.attention(mode, 2, 7)[3:7, 1:6]
    np.testing.assert_allclose(as_floats(data).reshape(4, 5), expected, atol=1e-5)


def test_a_block_ends_where_the_text_does(session):
    n = len(session.run())
    place = {"layer": 0, "head": 1, "run": "clean", "mode": "pattern"}
    block = {"row": n - 2, "column": n - 3, "rows": 9, "columns": 9}
    (data,) = ask(HeadZoom(session), "block", **place, **block)["buffers"]
    assert as_floats(data).shape == (2 * 3,)


@pytest.mark.parametrize(
    "block", [(-1, 0, 1, 1), (0, -1, 1, 1), (0, 0, 0, 1), (0, 0, 1000, 1000), (500, 0, 1, 1)]
)
def test_what_is_no_block_is_refused(block, session):
    view = HeadZoom(session)
    place = {"layer": 0, "head": 1, "run": "clean", "mode": "pattern"}
    names = ("row", "column", "rows", "columns")
    answer = ask(view, "block", **place, **dict(zip(names, block, strict=True)))
    assert answer["error"] == view.status != ""
    assert "unexpected" not in answer["error"]


def test_value_is_what_is_chosen(session):
    view = HeadZoom(session)
    session.selection.set(layer=4, head=2)
    np.testing.assert_array_equal(view.value, session.attention("pattern", 4, 2))
    Browser(view).set("controls", mode="content")
    np.testing.assert_array_equal(view.value, session.attention("content", 4, 2))
    session.edits = session.edits.with_heads([(0, 0)], scale=0.0)
    session.selection.run = "clean"
    clean = session.attention("content", 4, 2, which="clean")
    np.testing.assert_array_equal(view.value, clean)


def test_a_pruned_head_is_refused_by_name(demo):
    view = HeadZoom(bl.Session(bl.prune_heads(demo, [(1, 4)]), "the cat sat"))
    browser = Browser(view)
    answer = browser.ask("head", layer=1, head=4, run="edited", mode="pattern")
    assert "L1H4" in answer["error"]
    assert "error" not in browser.ask("head", layer=1, head=5, run="edited", mode="pattern")
    places = [(question["layer"], question["head"]) for question in view.exported()]
    assert (1, 4) not in places


def test_a_page_has_sixteen_heads_the_chosen_one_first(session):
    session.selection.set(layer=3, head=5)
    questions = HeadZoom(session).exported()
    places = [(question["layer"], question["head"]) for question in questions]
    assert places[0] == (3, 5)
    assert len(set(places)) == len(places) == 16
    assert {(3, head) for head in range(8)} <= set(places)
