import math

import pytest

from bloomlab.errors import InputError
from bloomlab.plots import fit_figure

NEEDS = {"float32": {"small": 2e9, "large": 8e10}, "bfloat16": {"small": 1e9, "large": 4e10}}


def test_points_are_gigabytes_and_memories_are_lines_at_theirs():
    figure = fit_figure(NEEDS, {"RAM": 1.6e10, "a GPU": 8e10}, title="fit")
    assert [trace.name for trace in figure.data] == ["float32", "bfloat16"]
    assert list(figure.data[1].x) == pytest.approx([1.0, 40.0])
    assert list(figure.data[1].y) == ["small", "large"]
    assert [line.x0 for line in figure.layout.shapes] == pytest.approx([16, 80])
    # annotations on a logarithmic axis stand at the logarithm, shapes at the value
    assert [note.x for note in figure.layout.annotations] == pytest.approx(
        [math.log10(16), math.log10(80)]
    )
    assert figure.layout.xaxis.type == "log"


def test_nothing_and_sizes_of_nothing_are_refused():
    with pytest.raises(InputError, match="needs is empty"):
        fit_figure({}, {})
    with pytest.raises(InputError, match="above 0"):
        fit_figure(NEEDS, {"RAM": 0.0})
