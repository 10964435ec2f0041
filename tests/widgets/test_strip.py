import numpy as np
import pytest

from bloomlab.widgets import TokenStrip
from tests.widgets.asking import Browser, ask, error_bound, square, value_of

FLOWS = ["head", "value", "mean", "rollout"]


@pytest.mark.parametrize("flow", FLOWS)
def test_weights_are_the_sessions_within_a_rounded_root(flow, session):
    answer = ask(TokenStrip(session), "flow", flow=flow, layer=3, head=2, run="edited")
    expected = session.flow(flow, 3, 2)
    found = value_of(square(answer["buffers"][0], len(expected)), answer["top"])
    assert (np.abs(found - expected) <= error_bound(expected, answer["top"])).all()


def test_the_mean_is_over_the_heads_of_the_layer(session):
    view = TokenStrip(session, flow="mean")
    session.selection.layer = 2
    np.testing.assert_allclose(view.value, session.run().patterns([2])[0].mean(0), atol=1e-6)


def test_rollout_multiplies_half_attention_half_identity(session):
    view = TokenStrip(session, flow="rollout")
    session.selection.layer = 2
    steps = [(one.mean(0) + np.eye(one.shape[-1])) / 2 for one in session.run().patterns([0, 1, 2])]
    np.testing.assert_allclose(view.value, steps[2] @ steps[1] @ steps[0], atol=1e-5)


def test_value_is_what_is_chosen(session):
    view = TokenStrip(session)
    Browser(view).set("place", layer=5, head=1)
    np.testing.assert_array_equal(view.value, session.attention("pattern", 5, 1))
    Browser(view).set("controls", flow="value")
    np.testing.assert_array_equal(view.value, session.attention("value", 5, 1))


def test_another_flow_is_refused_by_name(session):
    view = TokenStrip(session)
    answer = ask(view, "flow", flow="water", layer=0, head=0, run="edited")
    assert "water" in answer["error"] == view.status


def test_the_picture_is_of_the_chosen_token(session):
    view = TokenStrip(session)
    pictures = []
    for query in (-1, 0, 5, 10_000):
        session.selection.query = query
        pictures.append(view.still())
    assert pictures[0] == pictures[3]  # the last token's
    assert len(set(pictures)) == 3
