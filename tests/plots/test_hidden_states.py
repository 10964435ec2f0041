import numpy as np
import pytest

from bloomlab.errors import BloomlabError
from bloomlab.plots import cosine_figure, norm_figure, trajectory_figure

NORMS = np.array([[1.0, 10.0, 1.0], [100.0, 1000.0, 10.0]])


def test_colour_follows_the_logarithm_and_hover_the_norm():
    (heatmap,) = norm_figure(NORMS, ["a", "b", "a"]).data
    np.testing.assert_allclose(heatmap.z, [[0, 1, 0], [2, 3, 1]])
    np.testing.assert_array_equal(heatmap.customdata, NORMS)
    assert "%{customdata" in heatmap.hovertemplate


def test_the_colour_bar_tells_norms():
    bar = norm_figure(NORMS, ["a", "b", "a"]).data[0].colorbar
    values = [float(text) for text in bar.ticktext]
    assert (values[0], values[-1]) == (1, 1000)
    np.testing.assert_allclose(10.0 ** np.array(bar.tickvals), values, rtol=1e-2)
    assert bar.title.text == "residual norm (L2)"


def test_layers_run_down_from_the_embedding():
    layout = norm_figure(NORMS, ["a", "b", "a"], title="norms").layout
    assert layout.yaxis.autorange == "reversed"
    assert list(layout.yaxis.ticktext) == ["0", "1"]
    assert list(layout.xaxis.ticktext) == ["a", "b", "a"]
    assert layout.title.text == "norms"


@pytest.mark.parametrize("norms", [np.zeros((2, 2)), np.ones((2, 2)), np.array([[0.0, 2.0]])])
def test_zero_is_blank_and_constant_norms_are_drawn(norms):
    z = norm_figure(norms, ["a", "b"]).data[0].z
    np.testing.assert_array_equal(np.isnan(z), norms == 0)


def test_one_token_for_each_position():
    with pytest.raises(BloomlabError, match=r"norms has shape \(2, 3\), expected \(2, 2\)"):
        norm_figure(NORMS, ["a", "b"])


COSINES = np.array([[1.0, -0.5, np.nan], [0.25, 0.0, -1.0]])
POINTS = np.arange(18.0).reshape(3, 3, 2)  # layer pos component


def test_cosines_are_coloured_from_minus_one_to_one():
    figure = cosine_figure(COSINES, ["a", "<b>", "a"], title="turns")
    (heatmap,) = figure.data
    np.testing.assert_array_equal(heatmap.z, COSINES)
    assert (heatmap.zmin, heatmap.zmax) == (-1, 1)
    assert not heatmap.hoverongaps
    assert heatmap.colorbar.title.text == "cosine"
    assert list(figure.layout.xaxis.ticktext) == ["a", "&lt;b&gt;", "a"]
    assert len(set(heatmap.x)) == 3
    assert figure.layout.yaxis.autorange == "reversed"
    assert figure.layout.title.text == "turns"


def test_wrong_cosines_are_refused():
    with pytest.raises(BloomlabError, match=r"cosines has shape \(2, 3\), expected \(2, 2\)"):
        cosine_figure(COSINES, ["a", "b"])
    with pytest.raises(BloomlabError, match="expected -1 to 1"):
        cosine_figure([[1.5]], ["a"])
    with pytest.raises(BloomlabError, match="nothing to draw"):
        cosine_figure(np.zeros((2, 0)), [])
    assert cosine_figure([[np.nan]], ["a"]).data


def test_a_line_a_token_through_the_layers_with_both_ends_marked():
    figure = trajectory_figure(POINTS, ["a", "<b>", "a"], title="ways")
    lines = [line for line in figure.data if line.mode == "lines+markers"]
    assert len(lines) == 3
    for pos, line in enumerate(lines):
        np.testing.assert_array_equal(line.x, POINTS[:, pos, 0])
        np.testing.assert_array_equal(line.y, POINTS[:, pos, 1])
        assert list(line.marker.symbol) == ["circle-open", "circle", "circle"]
        assert line.marker.size[0] == line.marker.size[2] > line.marker.size[1]
    assert len({line.name for line in lines}) == 3
    assert "&lt;b&gt;" in lines[1].name
    assert len({line.line.color for line in lines}) == 3
    assert [key.name for key in figure.data[:2]] == ["first layer", "last layer"]


def test_both_axes_of_the_plane_have_one_scale():
    layout = trajectory_figure(POINTS, ["a", "b", "c"]).layout
    assert (layout.yaxis.scaleanchor, layout.yaxis.scaleratio) == ("x", 1)
    assert (layout.xaxis.title.text, layout.yaxis.title.text) == ("component 1", "component 2")


def test_many_tokens_are_named_on_hover_alone():
    figure = trajectory_figure(np.zeros((2, 60, 2)), [f"w{pos}" for pos in range(60)])
    assert not any(line.showlegend for line in figure.data[2:])
    assert "w59" in figure.data[-1].name


def test_one_layer_is_a_point():
    line = trajectory_figure(POINTS[:1], ["a", "b", "c"]).data[2]
    assert len(line.marker.size) == len(line.marker.symbol) == 1


def test_wrong_points_are_refused():
    with pytest.raises(BloomlabError, match=r"points has shape \(3, 3, 2\), expected \(3, 2, 2\)"):
        trajectory_figure(POINTS, ["a", "b"])
    with pytest.raises(BloomlabError, match=r"expected \(3, 3, 2\)"):
        trajectory_figure(np.zeros((3, 3, 4)), ["a", "b", "c"])
    with pytest.raises(BloomlabError, match="nothing to draw"):
        trajectory_figure(np.zeros((0, 1, 2)), ["a"])
    with pytest.raises(BloomlabError, match="no finite number"):
        trajectory_figure(POINTS * np.nan, ["a", "b", "c"])
