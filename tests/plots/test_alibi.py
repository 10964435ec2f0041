import numpy as np
import pytest

from bloomlab.errors import BloomlabError
from bloomlab.plots import (
    bias_figure,
    recency_figure,
    score_figure,
    slopes_figure,
    staircase_figure,
    window_figure,
)

SLOPES = 2.0 ** -np.arange(1, 9)  # eight heads (Press et al.): 1/2, 1/4, ... 1/256


def test_each_slope_stands_over_its_head_on_a_logarithmic_axis():
    figure = slopes_figure(SLOPES, title="ALiBi")
    (points,) = figure.data
    assert dict(zip(points.x, points.y, strict=True)) == {
        f"H{i}": 2.0 ** -(i + 1) for i in range(8)
    }
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.title.text == "ALiBi"


def test_slope_ticks_read_as_the_fractions_they_are():
    axis = slopes_figure(np.array([0.7, 3.0]), title="").layout.yaxis
    assert list(axis.ticktext) == ["1/2", "1", "2", "4"]
    assert list(axis.tickvals) == [0.5, 1, 2, 4]


@pytest.mark.parametrize("slope", [0.0, -0.5])
def test_a_slope_that_a_logarithm_cannot_show_is_refused(slope):
    with pytest.raises(BloomlabError, match="positive"):
        slopes_figure(np.array([0.5, slope]))


def test_bias_is_minus_slope_times_distance():
    figure = bias_figure(SLOPES, max_distance=10)
    assert len(figure.data) == 8
    for head, line in enumerate(figure.data):
        assert line.name == f"H{head}"
        assert [line.y[distance] for distance in line.x] == [
            -distance / 2 ** (head + 1) for distance in range(11)
        ]


def test_bias_at_distance_zero_has_no_sign():
    assert all(str(line.y[0]) == "0.0" for line in bias_figure(SLOPES).data)


def test_a_head_without_slope_has_no_bias():
    (line,) = bias_figure(np.zeros(1), max_distance=3).data
    assert list(line.y) == [0, 0, 0, 0]


def test_heads_are_told_apart_by_colour():
    assert len({line.line.color for line in bias_figure(SLOPES).data}) == 8


def test_a_window_ends_where_the_bias_has_fallen_to_minus_log_drop():
    figure = window_figure(SLOPES, drop=20, title="windows")
    (points,) = figure.data
    np.testing.assert_allclose(np.exp(-SLOPES * np.array(points.y)), 1 / 20)
    assert list(points.x) == [f"H{head}" for head in range(8)]
    assert figure.layout.yaxis.type == "log"
    assert figure.layout.yaxis.title.text == "effective window (tokens)"
    assert set(figure.layout.yaxis.ticktext) >= {"8", "512"}
    assert figure.layout.title.text == "windows"


def test_windows_without_end_are_refused():
    with pytest.raises(BloomlabError, match="positive"):
        window_figure([0.5, 0.0])
    for drop in (1, 0.5, float("nan"), float("inf")):
        with pytest.raises(BloomlabError, match="drop is"):
            window_figure(SLOPES, drop=drop)
    with pytest.raises(BloomlabError, match="empty"):
        window_figure([])


CONTENT, BIAS = np.array([2.0, -1.0, 0.5]), np.array([-1.0, -0.5, 0.0])


def test_content_and_bias_are_stacked_and_their_sum_is_marked():
    figure = score_figure(CONTENT, BIAS, ["a", "<b>", "a"], title="scores")
    content, bias, score = figure.data
    np.testing.assert_array_equal(content.y, CONTENT)
    np.testing.assert_array_equal(bias.y, BIAS)
    np.testing.assert_array_equal(score.y, CONTENT + BIAS)
    assert figure.layout.barmode == "relative"
    assert score.mode == "markers"
    assert list(score.x) == list(figure.layout.xaxis.tickvals) == [0, 1, 2]
    assert list(figure.layout.xaxis.ticktext) == ["a", "&lt;b&gt;", "a"]
    assert len(set(score.customdata)) == 3
    assert not any("<" in name for name in score.customdata)
    assert figure.layout.yaxis.title.text == "score (logits)"


def test_wrong_scores_are_refused():
    with pytest.raises(BloomlabError, match="content has shape"):
        score_figure(CONTENT, BIAS, ["a", "b"])
    with pytest.raises(BloomlabError, match=r"expected \(3,\)"):
        score_figure(CONTENT, BIAS[:2], ["a", "b", "c"])
    with pytest.raises(BloomlabError, match="masked"):
        score_figure([0.0, -np.inf], [0.0, 0.0], ["a", "b"])
    with pytest.raises(BloomlabError, match="nothing to draw"):
        score_figure([], [], [])


def test_a_staircase_is_level_with_what_it_should_be_at_the_last_key():
    exact = np.array([10.0, 10.5, 11.0, 11.5])
    figure = staircase_figure(exact, np.array([10.0, 10.0, 12.0, 12.0]), first=20)
    smooth, steps = figure.data
    assert list(smooth.x) == list(steps.x) == [20, 21, 22, 23]
    assert list(smooth.y) == [-1.5, -1.0, -0.5, 0.0]
    assert list(steps.y) == [-2, -2, 0, 0]
    assert steps.line.shape == "hvh"


@pytest.mark.parametrize(("exact", "rounded"), [([1.0], [1.0, 2.0]), ([], []), ([[1.0]], [1.0])])
def test_a_staircase_needs_two_biases_of_the_same_keys(exact, rounded):
    with pytest.raises(BloomlabError):
        staircase_figure(exact, rounded)


def test_heads_stand_beside_what_alibi_alone_gives():
    names = [f"L0H{head}" for head in range(8)]
    figure = recency_figure(SLOPES, np.linspace(0, 1, 8), names)
    alike, excluded, heads = figure.data
    assert dict(zip(heads.customdata, heads.x, strict=True)) == dict(
        zip(names, SLOPES, strict=True)
    )
    np.testing.assert_allclose(heads.y, np.linspace(0, 1, 8))
    # a softmax over a long text whose scores are nothing but the bias, with the query and without
    for slope, with_own, without in zip(alike.x, alike.y, excluded.y, strict=True):
        weights = np.exp(-slope * np.arange(1 + int(60 / slope)))
        assert with_own == pytest.approx(weights[1] / weights.sum(), rel=1e-9)
        assert without == pytest.approx(weights[1] / weights[1:].sum(), rel=1e-9)


@pytest.mark.parametrize(
    ("slopes", "previous", "labels"),
    [
        ([0.5, 0.0], [0.1, 0.2], ["a", "b"]),
        ([0.5, 0.2], [0.1, 1.2], ["a", "b"]),
        ([0.5, 0.2], [0.1], ["a", "b"]),
        ([0.5, 0.2], [0.1, 0.2], ["a"]),
        ([], [], []),
    ],
)
def test_heads_without_a_place_are_refused(slopes, previous, labels):
    with pytest.raises(BloomlabError):
        recency_figure(slopes, previous, labels)
