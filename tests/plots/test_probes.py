import numpy as np
import pandas as pd
import pytest

from bloomlab.errors import InputError
from bloomlab.plots import amnesic_figure, probe_figure, transfer_figure

ROWS = pd.DataFrame(
    {
        "site": ["resid_post"] * 3 + ["mlp_out"] * 3,
        "layer": pd.array([2, 0, 1] * 2, dtype="Int64"),
        "head": pd.array([None] * 6, dtype="Int64"),
        "accuracy": [0.9, 0.7, 0.8, 0.6, 0.4, 0.5],
        "low": [0.85, 0.6, 0.7, 0.5, 0.3, 0.4],
        "high": [0.92, 0.75, 0.88, 0.65, 0.5, 0.55],
        "majority": 0.2,
        "embedding": 0.3,
        "random": [0.35, 0.33, 0.34] * 2,
        "control_accuracy": np.nan,
    }
)


def test_a_line_a_site_in_the_order_of_layers_with_its_interval():
    figure = probe_figure(ROWS, title="parts of speech")
    first, second = figure.data[:2]
    assert (first.name, second.name) == ("resid_post", "mlp_out")
    assert list(first.x) == [0, 1, 2]
    assert list(first.y) == [0.7, 0.8, 0.9]
    np.testing.assert_allclose(first.error_y.array, [0.05, 0.08, 0.02])
    np.testing.assert_allclose(first.error_y.arrayminus, [0.1, 0.1, 0.05])
    assert figure.layout.title.text == "parts of speech"
    assert "accuracy" in figure.layout.yaxis.title.text


def test_baselines_that_are_there_are_drawn():
    lines = {line.name: list(line.y) for line in probe_figure(ROWS).data[2:]}
    assert lines == {
        "random weights": [0.33, 0.34, 0.35],
        "embeddings": [0.3] * 3,
        "majority": [0.2] * 3,
    }


def test_wrong_frames_are_refused():
    with pytest.raises(InputError, match="no column 'low'"):
        probe_figure(ROWS.drop(columns="low"))
    with pytest.raises(InputError, match="is empty"):
        probe_figure(ROWS[:0])
    with pytest.raises(InputError, match="head map"):
        probe_figure(ROWS.assign(head=1))


PAIRS = pd.DataFrame(
    {
        "fitted": ["fr", "fr", "<en>", "<en>"],
        "tested": ["fr", "zh", "fr", "<en>"],
        "accuracy": [0.9, 0.25, 0.5, 0.8],
    }
)


def test_a_row_for_each_that_probes_were_fitted_on_and_blanks_for_pairs_that_are_not_there():
    (heatmap,) = transfer_figure(PAIRS, title="transfer").data
    np.testing.assert_array_equal(heatmap.z, [[0.9, 0.25, np.nan], [0.5, np.nan, 0.8]])
    assert (list(heatmap.y), list(heatmap.x)) == (["fr", "&lt;en&gt;"], ["fr", "zh", "&lt;en&gt;"])
    assert [list(row) for row in heatmap.text] == [["0.90", "0.25", ""], ["0.50", "", "0.80"]]
    assert (heatmap.zmin, heatmap.zmax) == (0, 1)
    figure = transfer_figure(PAIRS)
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == (
        "tested on",
        "fitted on",
    )
    with pytest.raises(InputError, match="comes twice"):
        transfer_figure(pd.concat([PAIRS, PAIRS[:1]]))
    with pytest.raises(InputError, match="no column 'tested'"):
        transfer_figure(PAIRS.drop(columns="tested"))


ERASED = pd.DataFrame(
    {
        "layer": pd.array([1, 1, 0, None], dtype="Int64"),
        "metric": ["cross_entropy", "accuracy", "cross_entropy", "cross_entropy"],
        **{"effect": [0.6, -0.1, 0.4, 9], "effect_low": [0.5, -0.2, 0.2, 9]},
        **{"effect_high": [0.8, 0.1, 0.5, 9], "control": [0.1, 0.0, 0.05, 9]},
        **{"control_low": [0.0, 0.0, 0.0, 9], "control_high": [0.3, 0.0, 0.1, 9]},
    }
)


def test_what_erasing_costs_is_drawn_beside_random_directions():
    figure = amnesic_figure(ERASED)
    concept, control = figure.data
    assert (concept.name, control.name) == ("the concept", "random directions")
    assert (list(concept.x), list(concept.y), list(control.y)) == ([0, 1], [0.4, 0.6], [0.05, 0.1])
    np.testing.assert_allclose(concept.error_y.array, [0.1, 0.2])
    np.testing.assert_allclose(concept.error_y.arrayminus, [0.2, 0.1])
    assert figure.layout.yaxis.title.text == "change of cross-entropy (nats per token)"
    assert list(amnesic_figure(ERASED, metric="accuracy").data[0].y) == [-0.1]
    with pytest.raises(InputError, match="no 'kl' of a layer"):
        amnesic_figure(ERASED, metric="kl")
    with pytest.raises(InputError, match="no column 'effect_high'"):
        amnesic_figure(ERASED.drop(columns="effect_high"))
