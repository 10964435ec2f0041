import numpy as np
import pytest

from bloomlab.errors import InputError, ShapeError
from bloomlab.plots import comparison_figure
from bloomlab.plots.pools import pool, pool_signed

FIRST = np.array([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.25, 0.25, 0.5]])
SECOND = np.array([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0], [0.5, 0.25, 0.25]])
TOKENS = ["a", "<b>", "a"]


def test_two_patterns_and_what_changed():
    figure = comparison_figure(FIRST, SECOND, TOKENS, title="L0H1")
    for heatmap, values in zip(figure.data, (FIRST, SECOND, SECOND - FIRST), strict=True):
        np.testing.assert_allclose(heatmap.z, values, rtol=1e-6)
    first, second, change = figure.data
    for heatmap in (first, second):
        assert (heatmap.zmin, heatmap.zmax) == (0, 1)
    assert first.colorscale == second.colorscale != change.colorscale
    assert (change.zmin, change.zmax) == (-0.25, 0.25)
    assert [heatmap.showscale for heatmap in figure.data] == [None, False, None]
    assert change.colorbar.x > first.colorbar.x if first.colorbar.x else change.colorbar.x > 1
    assert [note.text for note in figure.layout.annotations] == ["A", "B", "B − A"]
    assert figure.layout.title.text == "L0H1"


def test_the_three_zoom_together():
    figure = comparison_figure(FIRST, SECOND, TOKENS)
    assert [heatmap.xaxis for heatmap in figure.data] == ["x", "x2", "x3"]
    assert {heatmap.yaxis for heatmap in figure.data} == {None}  # one axis, the same for all
    assert (figure.layout.xaxis2.matches, figure.layout.xaxis3.matches) == ("x", "x")
    ends = [figure.layout[f"xaxis{i}"].domain for i in ("", 2, 3)]
    assert ends[0][1] < ends[1][0] < ends[1][1] < ends[2][0]
    assert len({tuple(heatmap.x) for heatmap in figure.data}) == 1


def test_names_and_tokens_are_drawn_as_the_text_they_are():
    figure = comparison_figure(FIRST, SECOND, TOKENS, names=("<i>", "b"))
    assert figure.layout.annotations[2].text == "b − &lt;i&gt;"
    assert list(figure.layout.xaxis3.ticktext) == ["a", "&lt;b&gt;", "a"]
    assert len(set(figure.data[0].x)) == 3
    assert "<i>" not in figure.data[0].hovertemplate


def test_cached_queries_are_the_last_tokens():
    figure = comparison_figure(FIRST[1:], SECOND[1:], TOKENS)
    assert list(figure.layout.yaxis.ticktext) == ["&lt;b&gt;", "a"]


def test_equal_patterns_differ_by_nothing():
    change = comparison_figure(FIRST, FIRST, TOKENS).data[2]
    assert change.zmax > 0
    assert not change.z.any()


def test_a_spike_of_either_sign_survives_pooling():
    values = np.zeros((900, 1000))
    values[700, 123], values[5, 6] = 0.5, 0.75
    figure = comparison_figure(values, np.roll(values, 1, 0), [f"w{i}" for i in range(1000)])
    change = figure.data[2].z
    assert max(change.shape) <= 320
    assert (change.min(), change.max()) == (-0.75, 0.75) or change.max() == 0.75
    assert all(len(axis.tickvals) <= 48 for axis in (figure.layout.xaxis, figure.layout.yaxis))


def test_the_farthest_from_zero_stands_for_a_pool():
    values = np.array([[0.1, -0.3, 0.2, 0.0], [0.2, 0.0, -0.1, 0.0]])
    np.testing.assert_allclose(pool_signed(values, [0], [0, 2]), [[-0.3, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(pool(values, [0], [0, 2]), [[0.2, 0.2]], rtol=1e-6)


def test_patterns_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="first has shape"):
        comparison_figure(FIRST, SECOND, TOKENS[:2])
    with pytest.raises(ShapeError, match="second has shape"):
        comparison_figure(FIRST, SECOND[1:], TOKENS)
    with pytest.raises(ShapeError):
        comparison_figure(np.zeros((0, 0)), np.zeros((0, 0)), [])
    with pytest.raises(InputError, match="hook_pattern"):
        comparison_figure(FIRST, SECOND * 9, TOKENS)
    with pytest.raises(InputError, match="two"):
        comparison_figure(FIRST, SECOND, TOKENS, names=("A",))
