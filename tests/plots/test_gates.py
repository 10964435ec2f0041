import pandas as pd
import pytest

from bloomlab.errors import InputError
from bloomlab.plots import gate_figure

FRAME = pd.DataFrame(
    {
        "layer": [0, 0, 2, 2],
        "head": [3, 3, 1, 1],
        "gate": [1.0, 0.0, 0.0, 1.0],
        "value": [2.0, 5.0, 2.1, 2.0],
        "tangent": [2.0, 2.2, 2.4, 2.0],
    }
)


def test_each_head_has_its_values_and_a_dotted_tangent_of_the_same_colour():
    figure = gate_figure(FRAME, metric="loss (nats)", title="gates")
    assert [trace.name for trace in figure.data] == [
        "L0H3",
        "L0H3, tangent",
        "L2H1",
        "L2H1, tangent",
    ]
    values, tangent = figure.data[:2]
    assert list(values.x) == [0.0, 1.0]
    assert list(values.y) == [5.0, 2.0]
    assert list(tangent.y) == [2.2, 2.0]
    assert values.line.color == tangent.line.color != figure.data[2].line.color
    assert (values.line.dash, tangent.line.dash) == ("solid", "dot")
    assert figure.layout.yaxis.title.text == "loss (nats)"


def test_a_frame_of_something_else_is_refused():
    with pytest.raises(InputError, match="tangent"):
        gate_figure(FRAME.drop(columns="tangent"))
