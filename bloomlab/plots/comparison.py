"""Figures of two attention patterns side by side, and what changed."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none

from bloomlab.errors import InputError, ShapeError
from bloomlab.plots import theme
from bloomlab.plots.arrays import as_probabilities, check_pattern
from bloomlab.plots.pools import pool, pool_signed, ranges, starts
from bloomlab.plots.tokens import axis, escape, label_room


def comparison_figure(
    first: object,
    second: object,
    tokens: Sequence[str],
    *,
    names: Sequence[str] = ("A", "B"),
    title: str = "",
) -> go.Figure:
    """Two patterns [query key] of a head and their difference, three heatmaps that zoom together.

    Colours of the patterns are as in `pattern_figure`; those of the difference, second minus first,
    run evenly to both sides of 0, to the largest. Beyond 300 tokens, more than a heatmap has room
    for, a cell is the maximum over neighbours, and the difference that is farthest from 0.

    Args:
        first: array or tensor of probabilities, 0..1.
        second: of the same shape.
        tokens: a label for each key; with fewer queries than keys, queries are the last tokens.
        names: of the patterns.
        title: of the figure.

    Raises:
        ShapeError: patterns of two shapes, that do not fit the tokens or have more queries than
            keys.
        InputError: numbers that are no probabilities, or other than two names.
    """
    before = as_probabilities("first", first, "query key")
    after = as_probabilities("second", second, "query key")
    check_pattern("first", before.shape, tokens)
    if after.shape != before.shape:
        raise ShapeError("second", got=after.shape, expected=f"{before.shape}, as first has")
    if len(names) != 2:
        raise InputError(f"names is {names!r:.80}, expected two.")
    n_query, n_key = before.shape
    past, queries = n_key - n_query, tokens[n_key - n_query :]
    rows, columns = starts(n_query, theme.MAX_PANEL), starts(n_key, theme.MAX_PANEL)
    change = pool_signed(after - before, rows, columns)
    top = float(np.abs(change).max()) or 1.0
    layout, domains, colorbar, most = theme.panels(
        len(rows), len(columns), count=3, room=label_room(tokens)
    )
    attention: dict[str, Any] = theme.attention_colors()
    difference: dict[str, Any] = {
        "zmin": -top,
        "zmax": top,
        "colorscale": theme.DIVERGING,
        "colorbar": theme.color_bar("difference", theme.even_ticks(-top, top)) | colorbar,
    }
    labels = [escape(name) for name in names]
    labels.append(f"{labels[1]} − {labels[0]}")
    panels = [
        (pool(before, rows, columns), attention),
        (pool(after, rows, columns), attention | {"showscale": False}),
        (change, difference),
    ]
    x, y = ranges(columns, tokens), ranges(rows, queries, first=past)
    traces: list[Any] = []
    across = axis([tokens[pos] for pos in columns], title="key (source)", most=most)
    for place, (name, (values, colors)) in enumerate(zip(labels, panels, strict=True)):
        traces.append(
            go.Heatmap(
                z=values,
                x=x,
                y=y,
                xaxis=f"x{place + 1 if place else ''}",
                hovertemplate="%{y} → %{x}: %{z:.3g}<extra>" + name + "</extra>",
                **colors,
            )
        )
        linked = {"matches": "x"} if place else {}
        layout[f"xaxis{place + 1 if place else ''}"] = across | linked | {"domain": domains[place]}
    down = axis([queries[pos] for pos in rows], title="query (destination)", most=most)
    layout["yaxis"] |= down | {"autorange": "reversed"}
    pairs = zip(labels, domains, strict=True)
    layout["annotations"] = [theme.panel_title(name, domain) for name, domain in pairs]
    return theme.figure(traces, title=title, layout=layout)
