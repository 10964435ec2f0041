import numpy as np
import pytest

from bloomlab.errors import BloomlabError
from bloomlab.plots import next_token_figure

BEFORE, AFTER = np.array([0.1, 0.5, 0.2]), np.array([0.7, 0.1, 0.0])


def rows(figure):
    """What a reader sees from the top down: token, and its probabilities."""
    names = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))
    assert figure.layout.yaxis.autorange == "reversed"
    return [(names[y], *(bar.x[y] for bar in figure.data)) for y in figure.data[0].y]


def test_the_largest_probability_of_either_run_is_at_the_top():
    assert rows(next_token_figure(["a", "b", "c"], BEFORE, AFTER)) == [
        ("a", 0.1, 0.7),
        ("b", 0.5, 0.1),
        ("c", 0.2, 0.0),
    ]


def test_one_run_needs_no_legend():
    figure = next_token_figure(["a", "b", "c"], BEFORE, title="next")
    assert rows(figure) == [("b", 0.5), ("c", 0.2), ("a", 0.1)]
    assert not figure.layout.showlegend
    assert figure.layout.title.text == "next"
    assert figure.layout.xaxis.title.text == "probability of the next token"
    assert figure.layout.yaxis.title.text == "token"


def test_tokens_that_look_the_same_keep_their_own_bars():
    figure = next_token_figure(["a", "a", "a"], BEFORE, AFTER)
    assert sorted(p for _, p, _ in rows(figure)) == sorted(BEFORE)


def test_each_bar_tells_its_number():
    before, after = next_token_figure(["a", "b", "c"], BEFORE, AFTER).data
    assert [list(bar.text) for bar in (before, after)] == [
        ["0.100", "0.500", "0.200"],
        ["0.700", "0.100", "0.000"],
    ]
    assert (before.name, after.name) == ("before", "after")


def test_the_axis_starts_at_zero_and_leaves_room_for_the_numbers():
    low, high = next_token_figure(["a", "b", "c"], BEFORE, AFTER).layout.xaxis.range
    assert low == 0
    assert high > 0.7


def test_no_tokens_is_an_empty_figure():
    assert rows(next_token_figure([], np.zeros(0), np.zeros(0))) == []


def test_one_label_for_each_probability():
    with pytest.raises(BloomlabError, match="labels"):
        next_token_figure(["a"], BEFORE)
