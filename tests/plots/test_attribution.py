import numpy as np
import pandas as pd
import pytest

from bloomlab.errors import InputError
from bloomlab.plots import attribution_figure

FRAME = pd.DataFrame(
    {
        "component": ["embed", "L0H0", "L0H1", "L0 mlp", "final_bias"],
        "contribution": [0.5, -2.0, 0.25, 1.0, -0.125],
    }
)


def rows(figure):
    """What a reader sees from the top down."""
    names = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))
    assert figure.layout.yaxis.autorange == "reversed"
    (bars,) = figure.data
    return [(names[y], x) for y, x in zip(bars.y, bars.x, strict=True)]


def test_the_largest_size_is_on_top_and_the_rest_is_summed():
    figure = attribution_figure(FRAME, top=2, answer="<b>", title="why")
    assert rows(figure) == [("L0H0", -2.0), ("L0 mlp", 1.0), ("rest", 0.625)]
    assert sum(value for _, value in rows(figure)) == FRAME["contribution"].sum()
    (bars,) = figure.data
    assert len(set(bars.marker.color)) == 3  # less, more, rest
    assert list(bars.text) == ["-2.000", "+1.000", "+0.625"]
    assert "&lt;b&gt;" in figure.layout.xaxis.title.text
    assert "logits" in figure.layout.xaxis.title.text
    assert figure.layout.yaxis.title.text == "component"
    assert figure.layout.title.text == "why"


def test_nothing_is_left_of_few_components():
    figure = attribution_figure(FRAME, top=5)
    assert [name for name, _ in rows(figure)][-1] == "final_bias"
    assert figure.layout.xaxis.title.text == "contribution (logits)"


def test_the_axis_holds_zero_and_all_bars():
    low, high = attribution_figure(FRAME).layout.xaxis.range
    assert low < -2 < 1 < high
    low, high = attribution_figure(FRAME[:1]).layout.xaxis.range
    assert low == 0 < 0.5 < high
    low, high = attribution_figure(FRAME.assign(contribution=0.0)).layout.xaxis.range
    assert low < high


def test_every_bar_has_its_name_however_many():
    many = pd.DataFrame({"component": [f"L{i}H{i}" for i in range(70)], "contribution": 1.0})
    assert len(rows(attribution_figure(many, top=60))) == 61


def test_a_name_is_drawn_as_the_text_it_is():
    figure = attribution_figure(FRAME.assign(component=list("<>&ab")))
    assert {name for name, _ in rows(figure)} == {"&lt;", "&gt;", "&amp;", "a", "b"}


def test_wrong_frames_are_refused():
    with pytest.raises(InputError, match="no column 'component'"):
        attribution_figure(FRAME.drop(columns="component"))
    with pytest.raises(InputError, match="empty"):
        attribution_figure(FRAME[:0])
    with pytest.raises(InputError, match="several answers"):
        attribution_figure(pd.concat([FRAME, FRAME]))
    with pytest.raises(InputError, match="NaN"):
        attribution_figure(FRAME.assign(contribution=np.nan))
    with pytest.raises(InputError, match="top is 0"):
        attribution_figure(FRAME, top=0)
