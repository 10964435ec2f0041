import numpy as np
import pandas as pd
import pytest

from bloomlab.errors import InputError
from bloomlab.plots import probe_figure

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
