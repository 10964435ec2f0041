import numpy as np
import pytest

from bloomlab.errors import BloomlabError
from bloomlab.plots import norm_figure

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
