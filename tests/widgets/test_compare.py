import numpy as np
import pytest

import bloomlab as bl
from bloomlab.errors import InputError
from bloomlab.widgets import CompareRuns
from tests.widgets.asking import Browser, ask, error_bound, square, value_of

FIRST, SECOND = "The cat sat on the mat.", "Then the cat sat on the big mat."
PLACE = {"layer": 2, "head": 7, "values": False}


@pytest.fixture
def pair(demo):
    return bl.Session(demo, FIRST), bl.Session(demo, SECOND)


def unpacked(answer):
    """The matrices of all panels."""
    found = []
    for panel, data in zip(answer["panels"], answer["buffers"], strict=True):
        whole = square(data, len(answer[panel["tokens"]]), 128 if panel["signed"] else 0)
        found.append(value_of(whole, panel["top"], panel["signed"]))
    return found


def test_two_runs_stand_side_by_side(pair):
    answer = ask(CompareRuns(*pair), "compare", **PLACE)
    patterns = [one.attention("pattern", 2, 7) for one in pair]
    for found, expected in zip(unpacked(answer), patterns, strict=False):
        assert (np.abs(found - expected) <= error_bound(expected)).all()
    assert [answer["a"], answer["b"]] == [one.run().tokens for one in pair]
    assert answer["names"] == ["A", "B"]


def test_the_difference_is_of_aligned_tokens(pair):
    answer = ask(CompareRuns(*pair), "compare", **PLACE)
    *_, found = unpacked(answer)
    tokens = [one.run().tokens for one in pair]
    pairs = pair[0].aligned(pair[0].run(), pair[1].run())
    assert answer["paired"] == len(pairs) == len(answer["c"]) > 3
    assert all(tokens[0][a] == tokens[1][b] for a, b in pairs)
    first, second = (one.attention("pattern", 2, 7) for one in pair)
    expected = np.array([[second[b, d] - first[a, c] for c, d in pairs] for a, b in pairs])
    top = answer["panels"][-1]["top"]
    assert top == pytest.approx(np.abs(expected).max())
    assert (np.abs(found - expected) <= error_bound(expected, top, levels=127)).all()


def test_equal_runs_differ_nowhere(session):
    answer = ask(CompareRuns(session), "compare", **PLACE)
    assert answer["paired"] == len(session.run())
    assert (answer["buffers"][-1] == 128).all()
    assert answer["before"] == answer["after"]
    assert answer["names"] == ["all heads", "edited"]


def test_alone_it_compares_the_clean_run_with_the_edited(session):
    session.edits = session.edits.with_heads([(0, head) for head in range(8)], scale=0.0)
    view = CompareRuns(session)
    clean, edited, change = unpacked(ask(view, "compare", **PLACE))
    for found, run in ((clean, "clean"), (edited, "edited")):
        expected = session.attention("pattern", 2, 7, which=run)
        assert (np.abs(found - expected) <= error_bound(expected)).all()
    assert change.min() < 0 < change.max()
    assert not np.allclose(view.value["a"], view.value["b"])


def test_values_add_three_panels(pair):
    answer = ask(CompareRuns(*pair, layout="6"), "compare", **{**PLACE, "values": True})
    assert len(answer["panels"]) == len(answer["buffers"]) == 6
    assert [panel["signed"] for panel in answer["panels"]] == [False, False, True] * 2
    expected = pair[1].attention("value", 2, 7)
    top = answer["panels"][4]["top"]
    assert (np.abs(unpacked(answer)[4] - expected) <= error_bound(expected, top)).all()


def test_texts_without_a_common_token_are_said(demo):
    first, second = bl.Session(demo, "one two"), bl.Session(demo, "三四")
    view = CompareRuns(first, second)
    browser = Browser(view)
    assert "in common" in browser.ask("compare", **PLACE)["error"] == view.status
    assert "image/png" in view._repr_mimebundle_()[0]
    second.prompt = "two one two"
    assert view.status == ""
    assert browser.ask("compare", **PLACE)["paired"] >= 1


def test_the_other_session_is_heard(pair):
    view = CompareRuns(*pair)
    version = view.facts["version"]
    before = ask(view, "compare", **PLACE)["after"]
    pair[1].edits = pair[1].edits.with_heads([(1, 1), (4, 0), (5, 2)], scale=0.0)
    assert view.facts["version"] > version
    assert ask(view, "compare", **PLACE)["after"] != before
    view.close()
    version = view.facts["version"]
    pair[1].prompt = "another"
    assert view.facts["version"] == version


def test_value_is_the_next_token_of_both(pair):
    frame = CompareRuns(*pair).value
    for column, one in (("a", pair[0]), ("b", pair[1])):
        labels, probability = one.run().next_tokens(1)
        assert frame.set_index("label").loc[labels[0], column] == pytest.approx(probability[0])


def test_an_empty_other_text_is_said(pair):
    view = CompareRuns(*pair)
    pair[1].prompt = ""
    assert "empty" in ask(view, "compare", **PLACE)["error"]


@pytest.mark.parametrize("other", ["a text", 3, object()])
def test_what_is_no_session_is_refused(other, session):
    heard = len(session._trait_notifiers["prompt"]["change"])
    with pytest.raises(InputError, match=rf"{type(other).__name__}.*another bl\.Session"):
        CompareRuns(session, other)
    assert len(session._trait_notifiers["prompt"]["change"]) == heard
