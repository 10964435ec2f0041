import numpy as np
import pandas as pd
import pytest

from bloomlab.errors import InputError
from bloomlab.plots import training_figure

FRAME = pd.DataFrame(
    {"L1H0": [0.5, 0.0, np.nan], "L0H0": [0.3, 0.2, 0.25], "<b>": [0.1, 0.1, 0.1]},
    index=[350, 0, 1000],
)


def test_a_line_a_column_over_steps_in_order_and_to_scale():
    figure = training_figure(FRAME, quantity="score (0 to 1)", title="heads")
    lines = {line.name: line for line in figure.data}
    assert list(lines) == ["L1H0", "L0H0", "&lt;b&gt;"]
    assert list(lines["L0H0"].x) == [0, 350, 1000]
    assert list(lines["L0H0"].y) == [0.2, 0.3, 0.25]
    np.testing.assert_array_equal(lines["L1H0"].y, [0.0, 0.5, np.nan])
    assert len({line.line.color for line in lines.values()}) == 3
    assert figure.layout.xaxis.title.text == "training step"
    assert figure.layout.xaxis.type is None  # numbers, not names
    assert figure.layout.yaxis.title.text == "score (0 to 1)"
    assert figure.layout.title.text == "heads"


def test_highlighted_lines_lie_above_the_others_and_are_named():
    figure = training_figure(FRAME, quantity="score", highlight=["L0H0"])
    assert [line.name for line in figure.data][-1] == "L0H0"
    assert [line.name for line in figure.data if line.showlegend] == ["L0H0"]
    grey = {line.line.color for line in figure.data if not line.showlegend}
    assert len(grey) == 1
    assert figure.data[-1].line.color not in grey


def test_levels_run_through_all_steps():
    figure = training_figure(FRAME, quantity="score", levels={"chance": 0.125})
    level = figure.data[-1]
    assert (level.name, list(level.x), list(level.y)) == ("chance", [0, 1000], [0.125, 0.125])
    assert level.line.dash == "dot"


def test_wrong_frames_are_refused():
    with pytest.raises(InputError, match="is empty"):
        training_figure(FRAME[:0], quantity="score")
    with pytest.raises(InputError, match="begins with 'step0'"):
        training_figure(FRAME.set_axis(["step0", "step1", "step2"]), quantity="score")
    with pytest.raises(InputError, match="no column 'L9H9' to highlight"):
        training_figure(FRAME, quantity="score", highlight=["L9H9"])
    many = pd.DataFrame(np.zeros((2, 30)))
    with pytest.raises(InputError, match="30 lines are too many"):
        training_figure(many, quantity="score")
    assert len(training_figure(many, quantity="score", highlight=[3]).data) == 30
