import numpy as np
import pytest

import bloomlab as bl
from bloomlab.widgets import AlibiView
from tests.widgets.asking import Browser, as_floats, ask


def test_slopes_halve_from_head_to_head(session):
    answer = ask(AlibiView(session), "slopes", layer=2, run="edited")
    assert answer["heads"] == list(range(8))
    np.testing.assert_allclose(answer["slopes"], [2.0 ** -(head + 1) for head in range(8)])


@pytest.mark.parametrize("query", [0, 3, 9])
def test_attention_is_the_softmax_of_content_and_bias(query, session):
    place = {"layer": 2, "head": 1, "query": query, "run": "edited"}
    answer = ask(AlibiView(session), "scores", **place)
    content, bias, pattern = (as_floats(data) for data in answer["buffers"])
    assert len(content) == len(bias) == len(pattern) == query + 1
    np.testing.assert_allclose(bias, -0.25 * np.arange(query, -1, -1))
    odds = np.exp(content + bias - (content + bias).max())
    np.testing.assert_allclose(pattern, odds / odds.sum(), atol=1e-5)
    expected = session.attention("pattern", 2, 1)[query, : query + 1]
    np.testing.assert_allclose(pattern, expected, atol=1e-6)


def test_a_slope_acts_in_the_model_and_can_be_taken_back(session):
    view = AlibiView(session)
    browser = Browser(view)
    before = browser.ask("next", k=3)
    assert before["kl"] == 0
    for layer in (0, 1):
        browser.ask("slope", layer=layer, head=0, factor=0)
    assert view.facts["slopes"][0][0] == 0
    assert browser.ask("slopes", layer=0, run="edited")["slopes"][0] == 0
    edited = browser.ask("next", k=3)
    assert edited["kl"] > 0
    assert edited["after"] != before["after"]
    place = {"layer": 0, "head": 0, "query": 5, "run": "edited"}
    assert not as_floats(browser.ask("scores", **place)["buffers"][1]).any()
    browser.ask("slopes_back")
    after = browser.ask("next", k=3)
    assert after["kl"] == 0
    assert after["after"] == before["after"]
    assert session.edits.is_none


def test_slopes_go_back_and_masks_stay(session):
    session.edits = session.edits.with_heads([(1, 1)], scale=0.0).with_heads([(2, 2)], mean=True)
    masked = session.edits
    browser = Browser(AlibiView(session))
    browser.ask("slope", layer=0, head=3, factor=2.0)
    assert session.edits != masked
    browser.ask("slopes_back")
    assert session.edits == masked


@pytest.mark.parametrize(
    "question", [{"layer": 6, "head": 0, "factor": 1}, {"layer": 0, "head": 0, "factor": -1}]
)
def test_what_is_no_slope_is_refused(question, session):
    view = AlibiView(session)
    answer = ask(view, "slope", **question)
    assert answer["error"] == view.status
    assert "unexpected" not in answer["error"]


def test_a_query_that_a_shorter_text_lacks_is_refused(session):
    answer = ask(AlibiView(session), "scores", layer=0, head=0, query=500, run="edited")
    assert "500" in answer["error"]


def test_value_is_a_row_a_head(session):
    view = AlibiView(session)
    ask(view, "slope", layer=3, head=2, factor=4)
    frame = view.value.set_index(["layer", "head"])
    assert len(frame) == 48
    assert frame.loc[(3, 2), "factor"] == 4
    assert frame.loc[(3, 2), "slope"] == pytest.approx(4 * 2.0**-3)
    assert (frame.drop(index=(3, 2))["factor"] == 1).all()


def test_a_layer_without_heads_is_live_but_no_picture(demo):
    session = bl.Session(bl.prune_heads(demo, [(2, head) for head in range(8)]), "the cat sat")
    view = AlibiView(session)
    session.selection.layer = 2
    assert "image/png" not in view._repr_mimebundle_()[0]
    assert ask(view, "slopes", layer=2, run="edited")["heads"] == []
    session.selection.layer = 3
    assert "image/png" in view._repr_mimebundle_()[0]
