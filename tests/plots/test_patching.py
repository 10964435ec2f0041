import numpy as np
import pytest

from bloomlab.errors import BloomlabError
from bloomlab.plots import patching_figure

GRID = np.array([[0.0, 0.5, -0.25], [np.nan, 1.0, 0.1]])
TOKENS = ["a", "b", "a"]


def test_cells_stand_by_layer_and_token_evenly_about_zero():
    figure = patching_figure(GRID, TOKENS, quantity="share", title="where")
    (heatmap,) = figure.data
    np.testing.assert_array_equal(heatmap.z, GRID)
    assert (heatmap.zmin, heatmap.zmax) == (-1, 1)
    assert len(set(heatmap.x)) == 3  # equal tokens stay apart
    assert list(heatmap.y) == ["layer 0", "layer 1"]
    assert heatmap.colorbar.title.text == "share"
    assert not heatmap.hoverongaps
    assert figure.layout.yaxis.autorange == "reversed"
    assert list(figure.layout.xaxis.ticktext) == TOKENS
    assert figure.layout.title.text == "where"


def test_a_grid_of_zeros_is_drawn():
    (heatmap,) = patching_figure(np.zeros((1, 2)), ["a", "b"]).data
    assert heatmap.zmax == 1


def test_wrong_grids_are_refused():
    with pytest.raises(BloomlabError, match=r"grid has shape \(2, 3\), expected \(2, 2\)"):
        patching_figure(GRID, ["a", "b"])
    with pytest.raises(BloomlabError, match="no finite number"):
        patching_figure(GRID * np.nan, TOKENS)
    with pytest.raises(BloomlabError, match="layer pos"):
        patching_figure(GRID[0], TOKENS)
