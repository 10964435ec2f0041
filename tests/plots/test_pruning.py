import numpy as np
import pandas as pd
import pytest

from bloomlab.errors import InputError, ShapeError
from bloomlab.plots import head_map_figure, pruning_figure, ranking_figure


def curves():
    rows = [
        {
            "dataset": language,
            "ranking": name,
            "seed": None,
            "kept": k,
            "value": 5.0 - k / 10 + shift,
        }
        for language in ("en", "fr")
        for name, shift in (("exact", 0.0), ("gradient", 0.2))
        for k in (8, 0, 4)
    ]
    rows += [
        {"dataset": language, "ranking": "random", "seed": seed, "kept": k, "value": 6.0 + seed + k}
        for language in ("en", "fr")
        for seed in range(21)
        for k in (0, 4, 8)
    ]
    return pd.DataFrame(rows).assign(stderr=0.05)


def test_a_line_for_each_ranking_and_a_panel_for_each_dataset():
    figure = pruning_figure(curves(), metric="cross-entropy (nats per token)", title="heads")
    lines = [trace for trace in figure.data if trace.name == "gradient"]
    assert [(trace.xaxis, trace.yaxis) for trace in lines] == [("x", "y"), ("x2", "y2")]
    assert list(lines[0].x) == [0, 4, 8]
    assert list(lines[0].y) == pytest.approx([5.2, 4.8, 4.4])
    assert list(lines[0].error_y.array) == [0.05] * 3
    assert [trace.showlegend for trace in lines] == [True, False]
    assert figure.layout.yaxis.title.text == "cross-entropy (nats per token)"
    assert figure.layout.xaxis2.title.text == "heads kept"
    assert figure.layout.xaxis.domain[1] < figure.layout.xaxis2.domain[0]
    assert [note.text for note in figure.layout.annotations] == ["en", "fr"]


def test_random_orders_are_a_band_of_their_quantiles():
    figure = pruning_figure(curves(), level=0.9)
    low, high, mean = figure.data[:3]
    assert list(low.y) == pytest.approx([7, 11, 15])  # of seeds 0 to 20: 1 and 19
    assert list(high.y) == pytest.approx([25, 29, 33])
    assert list(mean.y) == pytest.approx([16, 20, 24])
    assert high.fill == "tonexty"
    assert high.name == "random, 90% of 21"
    without = curves().query("ranking != 'random'")
    assert all(trace.fill is None for trace in pruning_figure(without).data)


def test_a_head_map_is_centred_on_zero_if_it_goes_below():
    matrix = np.array([[0.5, -0.25, np.nan], [0.1, 0.0, 0.2]])
    (heatmap,) = head_map_figure(matrix, quantity="effect (nats)").data
    assert (heatmap.zmin, heatmap.zmax) == (-0.5, 0.5)
    np.testing.assert_array_equal(heatmap.z, matrix)
    assert list(heatmap.x) == ["H0", "H1", "H2"]
    assert list(heatmap.y) == ["L0", "L1"]
    assert heatmap.colorbar.title.text == "effect (nats)"
    (positive,) = head_map_figure(np.abs(matrix), quantity="score").data
    assert (positive.zmin, positive.zmax) == (0, 0.5)
    (zeros,) = head_map_figure(np.zeros((2, 2)), quantity="score").data
    assert zeros.zmax > 0


def test_correlations_are_drawn_on_both_sides_of_the_diagonal():
    frame = pd.DataFrame(
        {"a": ["x", "x", "y"], "b": ["y", "<z>", "<z>"], "spearman": [0.5, -0.2, 0.1]}
    )
    figure = ranking_figure(frame)
    assert figure.layout.xaxis.title.text == figure.layout.yaxis.title.text == "ranking"
    (heatmap,) = figure.data
    assert heatmap.z.tolist() == [[1, 0.5, -0.2], [0.5, 1, 0.1], [-0.2, 0.1, 1]]
    assert (heatmap.zmin, heatmap.zmax) == (-1, 1)
    assert list(heatmap.x) == ["x", "y", "&lt;z&gt;"]
    assert heatmap.text[0][2] == "-0.20"


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(InputError, match="no column 'kept'"):
        pruning_figure(curves().drop(columns="kept"))
    with pytest.raises(InputError, match="empty"):
        pruning_figure(curves().iloc[:0])
    with pytest.raises(ShapeError):
        head_map_figure(np.zeros(3), quantity="score")
    with pytest.raises(InputError, match="no finite number"):
        head_map_figure(np.full((2, 2), np.nan), quantity="score")
    with pytest.raises(InputError, match="no column 'kendall'"):
        ranking_figure(pd.DataFrame({"a": ["x"], "b": ["y"]}), correlation="kendall")
