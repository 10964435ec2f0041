import numpy as np
import pandas as pd
import pytest

from bloomlab.errors import InputError, ShapeError
from bloomlab.plots import lens_figure, rank_figure

PROBABILITY = np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 1.0]])
TOP = [["x", "<b>y</b>", "z"], ["an exceedingly long token", "v", "&"]]
TOKENS = ["a", "<i>", "a"]


def test_each_cell_holds_its_token_and_its_probability():
    figure = lens_figure(PROBABILITY, TOP, tokens=TOKENS, title="lens")
    (heatmap,) = figure.data
    np.testing.assert_array_equal(heatmap.z, PROBABILITY)
    assert (heatmap.zmin, heatmap.zmax) == (0, 1)
    assert heatmap.texttemplate == "%{text}"
    assert heatmap.text[1][1] == "v"
    assert heatmap.text[1][0].endswith("…")
    assert "an exceedingly long token" in heatmap.customdata[1][0]
    assert all(part in heatmap.hovertemplate for part in ("%{customdata}", "%{z", "%{x}", "%{y}"))
    assert figure.layout.title.text == "lens"


def test_layers_run_down_and_equal_tokens_stay_apart():
    figure = lens_figure(PROBABILITY, TOP, tokens=TOKENS)
    assert figure.layout.yaxis.autorange == "reversed"
    assert list(figure.layout.yaxis.ticktext) == ["0", "1"]
    assert list(figure.layout.xaxis.ticktext) == ["a", "&lt;i&gt;", "a"]
    assert len(set(figure.data[0].x)) == 3
    assert figure.data[0].colorbar.title.text == "probability of the likeliest token"
    named = lens_figure(PROBABILITY, TOP, tokens=TOKENS, layers=["L0", "L0.5"], quantity="sureness")
    assert list(named.layout.yaxis.ticktext) == ["L0", "L0.5"]
    assert named.data[0].colorbar.title.text == "sureness"


def test_predictions_are_drawn_as_the_text_they_are():
    (heatmap,) = lens_figure(PROBABILITY, TOP, tokens=TOKENS).data
    assert heatmap.text[0][1] == "&lt;b&gt;y&lt;/b&gt;"
    assert heatmap.text[1][2] == "&amp;"
    assert not any("<" in text for row in heatmap.customdata for text in row)


@pytest.mark.parametrize("shape", [(4, 60), (200, 3)])
def test_text_is_left_to_the_hover_where_cells_are_too_small(shape):
    labels = [["word"] * shape[1]] * shape[0]
    (heatmap,) = lens_figure(np.zeros(shape), labels, tokens=["t"] * shape[1]).data
    assert heatmap.texttemplate is None
    assert "word" in heatmap.customdata[-1][-1]


def test_tables_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match=r"expected \(2, 2\)"):
        lens_figure(PROBABILITY, TOP, tokens=TOKENS[:2])
    with pytest.raises(ShapeError, match="top has shape"):
        lens_figure(PROBABILITY, TOP[:1], tokens=TOKENS)
    with pytest.raises(ShapeError, match="top has shape"):
        lens_figure(PROBABILITY, [TOP[0], TOP[1][:2]], tokens=TOKENS)
    with pytest.raises(ShapeError, match=r"expected \(1, 3\)"):
        lens_figure(PROBABILITY, TOP, tokens=TOKENS, layers=["L0"])
    with pytest.raises(InputError, match="probabilities"):
        lens_figure(PROBABILITY * 9, TOP, tokens=TOKENS)
    with pytest.raises(InputError, match="nothing to draw"):
        lens_figure(np.zeros((0, 3)), [], tokens=TOKENS)


def test_ranks_are_counted_from_one_on_a_logarithmic_axis_with_the_best_on_top():
    ranks = [[9, 0, np.nan], [999, 99, 0]]
    figure = rank_figure(ranks, ["<b>", "x"], title="ranks")
    first, second = figure.data
    np.testing.assert_array_equal(first.y, [10, 1, np.nan])
    np.testing.assert_array_equal(second.y, [1000, 100, 1])
    np.testing.assert_array_equal(
        [rank for rank, _ in second.customdata], ranks[1]
    )  # the hover tells the rank itself
    assert list(first.x) == [0, 1, 2]
    assert "&lt;b&gt;" in first.name
    axis = figure.layout.yaxis
    assert axis.type == "log"
    assert axis.range[0] > 3 > axis.range[1]
    assert list(axis.ticktext) == ["1", "10", "100", "1,000"]


def test_wrong_ranks_are_refused():
    with pytest.raises(InputError, match="down to -1"):
        rank_figure([[-1, 0]], ["x"])
    with pytest.raises(ShapeError):
        rank_figure([[1, 0]], ["x", "y"])
    with pytest.raises(InputError, match="nothing to draw"):
        rank_figure(np.zeros((0, 4)), [])


def frame(sites=("post",)):
    """As `Lens.top` of one text: two layers, three positions, the two likeliest tokens."""
    rows = [
        {"layer": layer, "site": site, "text": 0, "pos": pos, "rank": rank}
        for layer in range(2)
        for site in sites
        for pos in range(3)
        for rank in range(2)
    ]
    found = pd.DataFrame(rows)
    place = found["layer"] * 3 + found["pos"]
    found["predicted"] = 10 + found["rank"]
    found["label"] = [
        f"t{i}" if not rank else "no" for i, rank in zip(place, found["rank"], strict=True)
    ]
    return found.assign(probability=np.where(found["rank"] == 0, PROBABILITY.ravel()[place], 0.0))


def test_a_frame_of_predictions_is_drawn_as_its_numbers_are():
    (drawn,) = lens_figure(frame(), tokens=TOKENS).data
    labels = [["t0", "t1", "t2"], ["t3", "t4", "t5"]]
    assert drawn == lens_figure(PROBABILITY, labels, tokens=TOKENS).data[0]
    both = lens_figure(frame(("mid", "post")), tokens=TOKENS)
    assert list(both.layout.yaxis.ticktext) == ["0 mid", "0 post", "1 mid", "1 post"]
    np.testing.assert_array_equal(both.data[0].z, PROBABILITY[[0, 0, 1, 1]])
    named = lens_figure(frame(), tokens=TOKENS, layers=["x", "y"])
    assert list(named.layout.yaxis.ticktext) == ["x", "y"]


def test_a_frame_of_followed_tokens_is_a_line_a_token():
    interest = frame().query("pos == 1").assign(rank=[4, 0, 2, 1])
    figure = rank_figure(interest)
    assert [line.name for line in figure.data] == ["\u2068t1\u2069", "\u2068no\u2069"]
    assert [list(line.y) for line in figure.data] == [[5, 3], [1, 2]]
    ids = rank_figure(interest.drop(columns="label"))
    assert [line.name for line in ids.data] == ["\u206810\u2069", "\u206811\u2069"]
    sites = rank_figure(frame(("mid", "post")).query("pos == 1"))
    assert list(sites.layout.xaxis.ticktext) == ["0 mid", "0 post", "1 mid", "1 post"]


def test_frames_that_are_not_of_one_table_are_refused():
    several = pd.concat([frame(), frame().assign(text=1)])
    with pytest.raises(InputError, match="several texts"):
        lens_figure(several, tokens=TOKENS)
    with pytest.raises(ShapeError, match=r"expected \(2, 2\)"):
        lens_figure(frame(), tokens=TOKENS[:2])
    with pytest.raises(InputError, match="no column 'label'"):
        lens_figure(frame().drop(columns="label"), tokens=TOKENS)
    with pytest.raises(InputError, match="top is missing"):
        lens_figure(PROBABILITY, tokens=TOKENS)
    with pytest.raises(InputError, match="top is given beside a frame"):
        lens_figure(frame(), TOP, tokens=TOKENS)
    with pytest.raises(InputError, match="several positions"):
        rank_figure(frame())
    with pytest.raises(InputError, match="names is missing"):
        rank_figure([[1, 0]])
    with pytest.raises(InputError, match="names is given beside a frame"):
        rank_figure(frame().query("pos == 1"), ["x"])
    with pytest.raises(ShapeError, match=r"expected \(1, 3\)"):
        rank_figure([[1, 0]], ["x"], layers=["a", "b", "c"])
