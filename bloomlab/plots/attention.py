"""Figures of attention patterns: arrays in, a plotly figure out, nothing shown."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none
from einops import rearrange

from bloomlab.plots import theme
from bloomlab.plots.arrays import as_probabilities, check_pattern
from bloomlab.plots.pools import pool, ranges, starts
from bloomlab.plots.tokens import axis, label_room

_LEFT = {"constraintoward": "left"}
_SQUARE_DOWN = {"autorange": "reversed", "scaleanchor": "x", "constraintoward": "top"}


def pattern_figure(pattern: object, tokens: Sequence[str], *, title: str = "") -> go.Figure:
    """Heatmap of one head [query key], queries (destination) down, keys (source) across.

    `pattern` is an array or a tensor of probabilities, 0..1.

    Colour grows with the square root of the weight, so that small weights show; the colour bar and
    the hover text give the weight itself. One token a key; with fewer queries than keys (cached
    generation) the queries are the last tokens. Beyond 672 tokens, more than the figure has
    room for, a cell is the maximum over neighbouring tokens, as in `head_grid_figure`.

    Raises:
        ShapeError: if the tokens do not fit the keys, or there are more queries than keys.
    """
    pattern = as_probabilities("pattern", pattern, "query key")
    check_pattern("pattern", pattern.shape, tokens)
    n_query, n_key = pattern.shape
    past = n_key - n_query
    rows, columns = starts(n_query, theme.MAX_SIDE), starts(n_key, theme.MAX_SIDE)
    heatmap = go.Heatmap(
        z=pool(pattern, rows, columns),
        x=ranges(columns, tokens),
        y=ranges(rows, tokens[past:], first=past),
        hovertemplate="%{y} → %{x}: %{z:.3g}<extra></extra>",
        **theme.attention_colors(),
    )
    room, queries = label_room(tokens), tokens[past:]
    layout = theme.square_cells(len(rows), len(columns), side=theme.SIDE, room=room) | {
        "xaxis": axis([tokens[pos] for pos in columns], title="key (source)") | _LEFT,
        "yaxis": axis([queries[pos] for pos in rows], title="query (destination)") | _SQUARE_DOWN,
    }
    return theme.figure([heatmap], title=title, layout=layout)


def head_grid_figure(
    patterns: object,
    tokens: Sequence[str],
    *,
    title: str = "",
) -> go.Figure:
    """All heads [layer head query key] as one heatmap, layers down and heads across.

    `patterns` is an array or a tensor of probabilities, 0..1.

    A pattern that is larger than its thumbnail is pooled by its maximum, so that a single strong
    weight survives; such a cell stands for a range of tokens (named in the hover text) and rows no
    longer sum to one. `pattern_figure` shows one head in full.

    Raises:
        ShapeError: if the tokens do not fit the keys, or there are more queries than keys.
    """
    patterns = as_probabilities("patterns", patterns, "layer head query key")
    check_pattern("patterns", patterns.shape, tokens)
    n_layer, n_head, n_query, n_key = patterns.shape
    past = n_key - n_query
    size = max(theme.SMALLEST_TILE, theme.MOSAIC // max(n_layer, n_head, 1) - 1)
    rows, columns = starts(n_query, size), starts(n_key, size)
    gap = max(1, len(columns) // 12)
    padding = ((0, 0), (0, 0), (0, gap), (0, gap))
    tiles = np.pad(pool(patterns, rows, columns), padding, constant_values=np.nan)
    mosaic = rearrange(tiles, "layer head query key -> (layer query) (head key)")[:-gap, :-gap]

    queries = [f"query {name}<br><b>L" for name in ranges(rows, tokens[past:], first=past)]
    keys = [f"</b><br>key {name}" for name in ranges(columns, tokens)]
    blank = [f" gap {i}" for i in range(gap)]
    heatmap = go.Heatmap(
        z=mosaic,
        x=[f"H{head}{key}" for head in range(n_head) for key in keys + blank][:-gap],
        y=[f"{query}{layer}" for layer in range(n_layer) for query in queries + blank][:-gap],
        hoverongaps=False,
        hovertemplate="%{y}%{x}<br>attention %{z:.3g}<extra></extra>",  # "…L3" + "H7…"
        **theme.attention_colors(),
    )
    heads, layers = [f"H{i}" for i in range(n_head)], [f"L{i}" for i in range(n_layer)]
    room = label_room([*heads, *layers])
    across = axis(heads, title="head", width=len(columns), pitch=tiles.shape[3])
    down = axis(layers, title="layer", width=len(rows), pitch=tiles.shape[2])
    layout = theme.square_cells(*mosaic.shape, side=theme.GRID_SIDE, room=room) | {
        "xaxis": across | _LEFT,
        "yaxis": down | _SQUARE_DOWN,
    }
    return theme.figure([heatmap], title=title, layout=layout)
