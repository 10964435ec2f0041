import numpy as np
import pytest

from bloomlab.errors import InputError, ShapeError
from bloomlab.widgets import AttentionView

N_LAYER, N_HEAD = 3, 6
BEFORE = np.array([0.6, 0.3, 0.1])


def uniform(n, layer, head):
    """Rows spread over all earlier tokens, times a number that tells the head."""
    return np.tri(n) / np.arange(1, n + 1)[:, None] * (1 + layer * N_HEAD + head) / 18


class Session:
    n_layer, n_head = N_LAYER, N_HEAD

    def __init__(self):
        self.calls = []

    def tokens(self, prompt):
        self.calls.append("tokens")
        if not prompt:
            raise InputError("the prompt is <empty>")
        if prompt == "bug":
            raise ZeroDivisionError
        return prompt.split()

    def pattern(self, prompt, layer, head, head_mask):
        self.calls.append("pattern")
        weights = uniform(len(prompt.split()), layer, head) * head_mask[layer, head]
        head_mask[:] = 7  # a session may do what it likes with its copy
        return weights

    def next_tokens(self, prompt, head_mask, k):
        self.calls.append("next_tokens")
        return ["a", "b", "c"][:k], BEFORE[:k], BEFORE[:k] * head_mask.mean()


@pytest.fixture
def session():
    return Session()


@pytest.fixture
def view(session):
    made = AttentionView(session, "the cat the")
    session.calls.clear()
    return made


def shown(view):
    return view.pattern_plot.data[0].z


def bars(view):
    return [list(bar.x) for bar in view.next_token_plot.data]


@pytest.mark.parametrize(("layer", "head"), [(0, 0), (0, 5), (2, 0), (2, 5)])
def test_the_view_shows_the_head_that_is_picked(view, layer, head):
    view.layer.value, view.head.value = layer, head
    np.testing.assert_allclose(shown(view), uniform(3, layer, head), rtol=1e-6)
    np.testing.assert_array_equal(view.value, uniform(3, layer, head))
    assert view.pattern_plot.layout.title.text == f"L{layer}H{head}"


def test_the_pickers_reach_every_head_and_no_other(view):
    assert (view.layer.min, view.layer.max) == (0, N_LAYER - 1)
    assert (view.head.min, view.head.max) == (0, N_HEAD - 1)


def test_a_new_prompt_changes_pattern_labels_and_bars(view, session):
    view.prompt.value = "one two three four"
    assert shown(view).shape == (4, 4)
    assert list(view.pattern_plot.layout.xaxis.ticktext) == ["one", "two", "three", "four"]
    assert session.calls == ["tokens", "pattern", "next_tokens"]


def test_moving_to_another_head_asks_for_its_pattern_only(view, session):
    view.head.value = 3
    assert session.calls == ["pattern"]


def test_switching_a_head_asks_for_pattern_and_prediction_once(view, session):
    view.head_on.value = False
    assert session.calls == ["pattern", "next_tokens"]


def test_switching_heads_off_changes_mask_pattern_and_bars(view):
    view.head_on.value = False
    view.layer.value, view.head.value = 1, 4
    assert view.head_on.value
    view.head_on.value = False
    expected = np.ones((N_LAYER, N_HEAD))
    expected[0, 0] = expected[1, 4] = 0
    np.testing.assert_array_equal(view.head_mask, expected)
    np.testing.assert_allclose(bars(view), [BEFORE, BEFORE * 16 / 18], rtol=1e-6)
    assert not shown(view).any()
    assert view.off.value == "L0H0 L1H4"
    assert view.pattern_plot.layout.title.text == "L1H4 (off)"


def test_a_head_is_switched_on_again(view):
    view.head_on.value = False
    view.head_on.value = True
    assert view.head_mask.all()
    np.testing.assert_allclose(bars(view), [BEFORE, BEFORE], rtol=1e-6)


def test_several_heads_are_switched_off_by_name(view, session):
    view.off.value = "l0h0, L1H2-4"
    assert session.calls == ["pattern", "next_tokens"]
    assert view.off.value == "L0H0 L1H2-4"
    assert np.argwhere(view.head_mask == 0).tolist() == [[0, 0], [1, 2], [1, 3], [1, 4]]
    assert not view.head_on.value


def test_the_button_switches_all_heads_on(view):
    view.off.value = "L0H0 L1H2-4"
    view.reset.click()
    assert view.head_mask.all()
    assert view.off.value == ""
    assert view.head_on.value


def test_a_mask_can_be_assigned_and_its_scales_survive(view):
    mask = np.full((N_LAYER, N_HEAD), 0.5)
    mask[2, 3] = 0
    view.head_mask = mask
    np.testing.assert_array_equal(view.head_mask, mask)
    assert view.off.value == "L2H3"
    np.testing.assert_allclose(shown(view), uniform(3, 0, 0) / 2, rtol=1e-6)


def test_a_mask_of_another_model_is_refused_and_nothing_changes(view, session):
    with pytest.raises(ShapeError, match=r"head_mask has shape \(2, 2\), expected \(3, 6\)"):
        view.head_mask = np.zeros((2, 2))
    assert view.head_mask.all()
    assert session.calls == []


def test_the_mask_changes_by_assignment_only(view):
    with pytest.raises(ValueError, match="read-only"):
        view.head_mask[0, 0] = 0
    mask = np.ones((N_LAYER, N_HEAD))
    view.head_mask = mask
    mask[:] = 0
    assert view.head_mask.all()


def test_value_and_mask_can_be_observed(view):
    seen = []
    view.observe(lambda change: seen.append(change["name"]), ["value", "head_mask"])
    view.head_on.value = False
    assert sorted(seen) == ["head_mask", "value"]


def test_an_expected_error_is_shown_escaped_and_the_picture_stays(view):
    view.prompt.value = ""
    assert "the prompt is &lt;empty&gt;" in view.status.value
    assert shown(view).shape == (3, 3)


def test_nothing_is_drawn_for_a_prompt_that_failed(view, session):
    view.prompt.value = ""
    session.calls.clear()
    view.layer.value = 2
    view.head_on.value = False
    assert session.calls == []
    assert "empty" in view.status.value
    view.prompt.value = "mended now"
    assert view.status.value == ""
    assert view.pattern_plot.layout.title.text == "L2H0 (off)"
    assert shown(view).shape == (2, 2)


def test_a_bad_first_prompt_gives_a_view_that_can_be_mended(session):
    view = AttentionView(session, "")
    assert "empty" in view.status.value
    assert view.value.shape == (0, 0)
    view.prompt.value = "a b"
    np.testing.assert_allclose(shown(view), uniform(2, 0, 0), rtol=1e-6)


def test_a_head_that_does_not_exist_is_named_and_the_mask_stays(view):
    view.off.value = "L9H9"
    assert "L9H9" in view.status.value
    assert view.head_mask.all()
    view.off.value = ""
    assert view.status.value == ""


def test_an_unexpected_error_is_not_swallowed(view):
    with pytest.raises(ZeroDivisionError):
        view.prompt.value = "bug"
    assert "unexpected error" in view.status.value


def test_zoom_survives_a_new_head_but_not_a_new_prompt(view):
    axis = view.pattern_plot.layout.xaxis
    axis.update(range=[0, 1], autorange=False)
    view.head.value = 2
    assert list(axis.range) == [0, 1]
    assert axis.autorange is False
    view.prompt.value = "one two"
    assert axis.autorange is True


def test_no_more_tokens_than_asked_for():
    assert bars(AttentionView(Session(), "a b", k=2))[0] == [0.6, 0.3]


def test_no_description_is_cut_off(view):
    for control in (view.prompt, view.layer, view.head, view.off):
        assert control.style.description_width == "initial"
