import re

import numpy as np
import pytest

from bloomlab.errors import BloomlabError
from bloomlab.plots import head_grid_figure, pattern_figure

HOVER = re.compile(r"query (\d+)(?:–(\d+))? .*<br><b>L(\d+)H(\d+)</b><br>key (\d+)(?:–(\d+))? .*")


def causal(*shape):
    weights = np.random.default_rng(0).random(shape) * np.tri(*shape[-2:], shape[-1] - shape[-2])
    return weights / weights.sum(-1, keepdims=True)


def words(count):
    return [f"w{pos}" for pos in range(count)]


def test_one_heatmap_holds_the_pattern():
    pattern = causal(3, 3)
    (heatmap,) = pattern_figure(pattern, ["a", "b", "a"]).data
    np.testing.assert_allclose(heatmap.z, pattern, rtol=1e-6)


def test_colours_mean_the_same_in_every_figure_of_attention():
    one, all_heads = (
        pattern_figure(np.eye(2) / 9, words(2)),
        head_grid_figure(causal(2, 2, 3, 3), words(3)),
    )
    for heatmap in (one.data[0], all_heads.data[0]):
        assert (heatmap.zmin, heatmap.zmax) == (0, 1)
        assert heatmap.colorbar.title.text == "attention (probability)"
        assert [float(text) for text in heatmap.colorbar.ticktext] == list(
            heatmap.colorbar.tickvals
        )


def test_queries_run_down_keys_across_and_cells_are_square():
    layout = pattern_figure(np.eye(3), words(3), title="L0H1").layout
    assert (layout.xaxis.title.text, layout.yaxis.title.text) == (
        "key (source)",
        "query (destination)",
    )
    assert (layout.yaxis.autorange, layout.yaxis.scaleanchor) == ("reversed", "x")
    assert layout.title.text == "L0H1"


def test_repeated_tokens_stay_apart():
    figure = pattern_figure(np.eye(3), ["a", "b", "a"])
    for axis in (figure.layout.xaxis, figure.layout.yaxis):
        assert list(axis.tickvals) == [0, 1, 2]
        assert list(axis.ticktext) == ["a", "b", "a"]
    assert len(set(figure.data[0].x)) == 3


def test_hover_names_query_then_key_with_their_positions():
    heatmap = pattern_figure(np.eye(3), ["a", "b", "a"]).data[0]
    assert heatmap.hovertemplate.startswith("%{y} → %{x}: %{z")
    assert [re.sub("[\u2068\u2069]", "", name) for name in heatmap.y] == ["0 a", "1 b", "2 a"]


def test_cached_queries_are_the_last_tokens():
    figure = pattern_figure(causal(2, 5), words(5))
    assert list(figure.layout.yaxis.ticktext) == ["w3", "w4"]
    assert [name.split()[0] for name in figure.data[0].y] == ["3", "4"]


def test_a_pattern_too_long_for_the_screen_keeps_its_spikes_and_labels():
    pattern = np.zeros((900, 2000), dtype=np.float32)
    pattern[700, 1234] = 0.9
    figure = pattern_figure(pattern, words(2000))
    (heatmap,) = figure.data
    assert max(heatmap.z.shape) <= figure.layout.width
    ((row, column),) = np.argwhere(heatmap.z)
    for name, pos in ((heatmap.y[row], 1100 + 700), (heatmap.x[column], 1234)):
        bounds = [int(bound) for bound in name.split()[0].split("–")]
        assert bounds[0] <= pos <= bounds[-1]
    for axis, names in ((figure.layout.xaxis, heatmap.x), (figure.layout.yaxis, heatmap.y)):
        for at, text in zip(axis.tickvals, axis.ticktext, strict=True):
            assert text in names[int(at)]


@pytest.mark.parametrize(("shape", "count"), [((3, 3), 4), ((3, 3), 2), ((4, 3), 3), ((0, 0), 0)])
def test_tokens_that_do_not_fit_are_refused(shape, count):
    with pytest.raises(BloomlabError, match="pattern has shape"):
        pattern_figure(np.zeros(shape), words(count))
    with pytest.raises(BloomlabError, match="patterns has shape"):
        head_grid_figure(np.zeros((1, 1, *shape)), words(count))


@pytest.mark.parametrize("shape", [(2, 3, 5, 5), (3, 2, 2, 7), (4, 6, 100, 300), (30, 112, 20, 20)])
def test_each_cell_of_the_grid_is_the_maximum_over_the_tokens_it_names(shape):
    patterns = causal(*shape).astype(np.float32)
    figure = head_grid_figure(patterns, words(shape[-1]))
    (heatmap,) = figure.data  # one trace, however many heads
    past, seen = shape[-1] - shape[-2], np.zeros(shape, dtype=bool)
    cells = np.random.default_rng(1).permutation(heatmap.z.size)[:20_000]
    for row, column in zip(*np.unravel_index(cells, heatmap.z.shape), strict=True):
        match = HOVER.fullmatch(heatmap.y[row] + heatmap.x[column])
        value = heatmap.z[row, column]
        assert (match is None) == np.isnan(value)
        if match is None:
            continue
        q, q_end, layer, head, k, k_end = (None if m is None else int(m) for m in match.groups())
        queries = slice(q - past, (q_end or q) + 1 - past)
        keys = slice(k, (k_end or k) + 1)
        assert value == patterns[layer, head, queries, keys].max()
        seen[layer, head, queries, keys] = True
    assert seen.all() or heatmap.z.size > 20_000


def test_a_single_spike_survives_pooling():
    patterns = np.zeros((2, 3, 2000, 2000), dtype=np.float32)
    patterns[1, 2, 1777, 1234] = 0.9
    z = head_grid_figure(patterns, words(2000)).data[0].z
    assert np.nansum(z) == np.float32(0.9)


def test_the_grid_labels_heads_across_and_layers_down():
    figure = head_grid_figure(causal(2, 3, 4, 4), words(4))
    x, y = figure.layout.xaxis, figure.layout.yaxis
    assert list(x.ticktext) == ["H0", "H1", "H2"]
    assert list(y.ticktext) == ["L0", "L1"]
    assert y.autorange == "reversed"
    for axis, names in ((x, figure.data[0].x), (y, figure.data[0].y)):
        for at, text in zip(axis.tickvals, axis.ticktext, strict=True):
            assert text in names[int(at)]


def test_a_grid_of_any_model_stays_small():
    figure = head_grid_figure(causal(24, 16, 256, 256), words(256))
    assert len(figure.to_json()) < 3_000_000
    assert max(figure.layout.width, figure.layout.height) < 1000
