import numpy as np
import pytest
import torch

from bloomlab.errors import BloomlabError
from bloomlab.plots import position_figure


def test_points_are_means_over_texts_and_groups_of_positions():
    values = torch.arange(20.0).view(2, 10)  # the last two positions fill no group
    figure = position_figure({"loss": values}, quantity="loss (nats)", width=4, start=1)
    (line,) = figure.data
    np.testing.assert_allclose(line.y, [6.5, 10.5])  # mean of 0-3 and 10-13, of 4-7 and 14-17
    np.testing.assert_allclose(line.x, [2.5, 6.5])
    assert list(line.customdata) == ["1–4", "5–8"]
    assert figure.layout.yaxis.title.text == "loss (nats)"
    assert not figure.layout.showlegend


def test_one_text_needs_no_axis_of_texts():
    (line,) = position_figure({"a": [3.0, 5.0]}, quantity="q", width=1).data
    assert list(line.y) == [3, 5]
    assert list(line.customdata) == ["0", "1"]


def test_curves_of_several_lengths_are_named_and_told_apart():
    figure = position_figure({"a": np.ones((1, 8)), "<b>": np.ones(4)}, quantity="q", width=2)
    assert [len(line.y) for line in figure.data] == [4, 2]
    assert "&lt;b&gt;" in figure.data[1].name
    assert len({line.line.color for line in figure.data}) == 2
    assert figure.layout.showlegend


def test_a_position_that_matters_is_marked():
    figure = position_figure({"a": np.ones(8)}, quantity="q", width=2, mark=(4, "trained so far"))
    assert figure.layout.shapes[0].x0 == figure.layout.shapes[0].x1 == 4
    assert "trained so far" in figure.layout.annotations[0].text


def test_a_logarithmic_axis_leaves_out_what_it_cannot_show():
    options = {"quantity": "q", "width": 1, "logarithmic": True}
    figure = position_figure({"a": [1.0, 0.0, 10.0, -1e-9], "b": np.zeros(4)}, **options)
    assert figure.layout.yaxis.type == "log"
    np.testing.assert_array_equal(figure.data[0].y, [1, np.nan, 10, np.nan])
    with pytest.raises(BloomlabError, match="logarithmic"):
        position_figure({"a": np.zeros(4), "b": [-1.0, 0.0]}, **options)


@pytest.mark.parametrize(
    ("curves", "width", "said"),
    [
        ({}, 4, "empty"),
        ({"a": np.ones(3)}, 4, "less than one group"),
        ({"a": np.ones((0, 8))}, 4, "less than one group"),
        ({"a": np.ones(8)}, 0, "width is 0"),
        ({"a": [1.0, np.nan]}, 1, "not finite"),
        ({"a": np.ones((1, 1, 8))}, 4, "text pos"),
    ],
)
def test_what_cannot_be_drawn_is_refused(curves, width, said):
    with pytest.raises(BloomlabError, match=said):
        position_figure(curves, quantity="q", width=width)
