import numpy as np
import pytest

from bloomlab.errors import InputError, ShapeError
from bloomlab.plots import curves_figure


def test_a_line_a_name_counts_from_the_start():
    figure = curves_figure(
        {"plain": [3.0, 2.0, np.nan], "<b>": np.array([1, 0])},
        quantity="loss (nats)",
        x="step",
        start=5,
        title="curves",
    )
    plain, other = figure.data
    assert list(plain.x) == [5, 6, 7]
    np.testing.assert_array_equal(plain.y, [3.0, 2.0, np.nan])
    assert (list(other.x), list(other.y)) == ([5, 6], [1, 0])
    assert "&lt;b&gt;" in other.name
    assert figure.layout.showlegend
    assert figure.layout.xaxis.title.text == "step"
    assert figure.layout.yaxis.title.text == "loss (nats)"
    assert figure.layout.yaxis.rangemode == "tozero"
    assert figure.layout.title.text == "curves"


def test_one_curve_needs_no_legend_and_may_leave_zero_out():
    figure = curves_figure({"only": [0.9, 1.0]}, quantity="cosine", from_zero=False)
    assert not figure.layout.showlegend
    assert figure.layout.yaxis.rangemode == "normal"


@pytest.mark.parametrize(("n", "tick"), [(1, 1), (12, 1), (13, 2), (30, 5), (300, 50), (2048, 200)])
def test_ticks_are_round_and_few(n, tick):
    figure = curves_figure({"a": np.zeros(n)}, quantity="q")
    assert figure.layout.xaxis.dtick == tick
    assert n / tick <= 12
    assert figure.data[0].mode == ("lines+markers" if n <= 48 else "lines")


def test_curves_that_hold_nothing_are_refused():
    with pytest.raises(InputError, match="nothing to draw"):
        curves_figure({}, quantity="q")
    with pytest.raises(InputError, match="'a' holds no finite number"):
        curves_figure({"a": [np.nan]}, quantity="q")
    with pytest.raises(ShapeError):
        curves_figure({"a": [[1.0]]}, quantity="q")
