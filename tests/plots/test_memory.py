import numpy as np
import pytest

from bloomlab.errors import InputError
from bloomlab.plots import memory_figure

HELD = {"full": [[0], [0, 1], [0, 1, 2]], "<last>": [[0], [1], []]}
TOKENS = ["a", "<i>", "a", "not read"]


def test_a_panel_a_cache_marks_what_it_holds():
    figure = memory_figure(HELD, TOKENS, title="memory")
    full, last = figure.data
    gap = np.nan
    np.testing.assert_array_equal(full.z, [[1, gap, gap], [1, 1, gap], [1, 1, 1]])
    np.testing.assert_array_equal(last.z, [[1, gap, gap], [gap, 1, gap], [gap, gap, gap]])
    assert [note.text for note in figure.layout.annotations] == ["full", "&lt;last&gt;"]
    assert figure.layout.yaxis.autorange == "reversed"
    assert figure.layout.yaxis.title.text == "after reading"
    assert list(figure.layout.xaxis2.ticktext) == ["a", "&lt;i&gt;", "a"]
    assert figure.layout.xaxis.domain[1] < figure.layout.xaxis2.domain[0]
    assert len(set(full.x)) == 3
    assert figure.layout.title.text == "memory"


@pytest.mark.parametrize(
    ("held", "match"),
    [
        ({}, "0 caches"),
        ({"a": []}, "expected the same"),
        ({"a": [[0]], "b": [[0], [1]]}, "expected the same"),
        ({"a": [[0]] * 5}, "from 1 to 4"),
        ({"a": [[1], [0]]}, "no reindexing"),
        ({"a": [[-1], [0]]}, "no reindexing"),
    ],
)
def test_what_no_cache_can_hold_is_refused(held, match):
    with pytest.raises(InputError, match=match):
        memory_figure(held, TOKENS)
