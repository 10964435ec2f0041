import numpy as np
import pytest
import torch

from bloomlab.widgets import HiddenStates
from tests.widgets.asking import Browser, as_floats, ask


def test_norms_and_cosines_are_those_of_the_stream(session):
    answer = ask(HiddenStates(session), "stream", run="edited")
    norms, cosines, points = (as_floats(data) for data in answer["buffers"])
    states, n = torch.cat(session.run().resid), len(session.run())
    np.testing.assert_allclose(norms.reshape(7, n), states.norm(dim=-1), rtol=1e-5)
    expected = torch.cosine_similarity(states[1:], states[:-1], dim=-1)
    np.testing.assert_allclose(cosines.reshape(6, n), expected, atol=1e-5)
    assert len(points) == 7 * n * 2
    assert 0 < answer["explained"][1] <= answer["explained"][0] <= 1


def test_paths_are_centred_and_vary_as_explained(session):
    answer = ask(HiddenStates(session), "stream", run="edited")
    points = as_floats(answer["buffers"][2]).reshape(-1, 2)
    states = torch.cat(session.run().resid)
    unit = (states / states.norm(dim=-1, keepdim=True)).flatten(0, 1).numpy()
    np.testing.assert_allclose(points.mean(0), 0, atol=1e-5)
    share = points.var(0) / unit.var(0).sum()
    np.testing.assert_allclose(share, answer["explained"], rtol=1e-3)


@pytest.mark.parametrize("position", [0, 4, -1])
def test_parts_add_up_to_the_logit(position, session):
    answer = ask(HiddenStates(session), "parts", position=position, run="edited")
    assert sum(answer["values"]) == pytest.approx(answer["logit"], abs=1e-3)
    logits = session.run().logits(position)
    assert answer["logit"] == pytest.approx(float(logits.max()), abs=1e-3)
    assert answer["answer"] == session.run().labels([int(logits.argmax())])[0]
    assert len(answer["names"]) == len(answer["values"]) == 25
    sizes = np.abs(answer["values"][:-1])
    assert (np.diff(sizes) <= 0).all()
    assert answer["names"][-1] == "rest"


def test_a_head_that_is_off_says_nothing(session):
    browser = Browser(HiddenStates(session))
    loud = next(n for n in browser.ask("parts", position=-1, run="edited")["names"] if "H" in n)
    layer, head = (int(one) for one in loud[1:].split("H"))
    browser.ask("edit", heads=[[layer, head]], scale=0)
    edited = browser.ask("parts", position=-1, run="edited")
    assert loud not in edited["names"]
    assert sum(edited["values"]) == pytest.approx(edited["logit"], abs=1e-3)


def test_value_is_a_row_a_state_and_token(session):
    frame, n = HiddenStates(session).value, len(session.run())
    assert len(frame) == 7 * n
    assert frame["token"].tolist() == session.run().tokens * 7
    assert frame["cosine"].isna().tolist() == [True] * n + [False] * 6 * n
    expected = torch.cat(session.run().resid).norm(dim=-1).flatten()
    np.testing.assert_allclose(frame["norm"], expected, rtol=1e-5)


def test_value_is_of_the_chosen_run(session):
    view = HiddenStates(session)
    before = view.value
    session.edits = session.edits.with_heads([(0, 0)], scale=0.0)
    assert not view.value.equals(before)
    Browser(view).set("place", run="clean")
    assert view.value.equals(before)
