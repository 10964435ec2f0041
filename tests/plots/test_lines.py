import numpy as np
import pytest

from bloomlab.plots.lines import line, lines_figure


def test_a_line_goes_through_its_points_and_leaves_gaps():
    drawn = line([1, 2, 4], [0.5, np.nan, 2.0], name="a", color="#1571fe", hover="%{y}")
    assert list(drawn.x) == [1, 2, 4]
    np.testing.assert_array_equal(drawn.y, [0.5, np.nan, 2.0])
    assert not drawn.connectgaps
    assert drawn.line.color == drawn.marker.color == "#1571fe"
    assert (drawn.name, drawn.hovertemplate, drawn.line.dash) == ("a", "%{y}", "solid")
    assert drawn.mode == "lines+markers"


def test_a_line_to_compare_with_is_broken_and_without_marks():
    drawn = line([0, 1], [3, 3], name="chance", color="#7a7a85", hover="", dash="dot", marked=False)
    assert (drawn.mode, drawn.line.dash) == ("lines", "dot")


@pytest.mark.parametrize("legend", [True, False])
def test_both_axes_say_what_they_are_and_names_have_room(legend):
    one = line([0, 1], [2, 3], name="a", color="#1571fe", hover="")
    figure = lines_figure(
        [one],
        x="step",
        y="loss (nats)",
        title="t",
        legend=legend,
        xaxis={"dtick": 5},
        yaxis={"rangemode": "tozero"},
    )
    assert (figure.layout.xaxis.title.text, figure.layout.xaxis.dtick) == ("step", 5)
    assert figure.layout.yaxis.title.text == "loss (nats)"
    assert figure.layout.yaxis.rangemode == "tozero"
    assert figure.layout.title.text == "t"
    assert figure.layout.showlegend == legend
    assert (figure.layout.margin.r > 100) == legend
