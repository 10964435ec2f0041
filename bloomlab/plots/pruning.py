"""Figures of head importance and pruning: arrays and data frames in, a plotly figure out."""

# pyright: standard
# pandas and plotly come without types

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bloomlab.errors import InputError
from bloomlab.plots import theme
from bloomlab.plots.arrays import as_array, check_columns
from bloomlab.plots.lines import line
from bloomlab.plots.tokens import axis, escape, label_room

RANDOM = "random"  # the ranking that is drawn as a band
BAND = "rgba(122,122,133,0.25)"
HOVER = "%{x} heads kept: %{y:.4g}"
PANEL = 380  # px, width of a dataset's panel
GAP = 70  # px between panels


def pruning_figure(
    frame: pd.DataFrame, *, metric: str = "metric", level: float = 0.9, title: str = ""
) -> go.Figure:
    """A metric against the heads kept: a line for each ranking, a band for random orders.

    Datasets stand side by side, each with a scale of its own. Error bars are one standard error of
    the difference from the model with all heads.

    Args:
        frame: as in `PruningCurve.frame`: dataset, ranking, kept, value, stderr; rows whose ranking
            is "random" make the band.
        metric: name and unit of the values, for the axis.
        level: share of the random orders that lie within the band.
        title: of the figure.

    Raises:
        InputError: a column is missing, or the frame is empty.
    """
    check_columns(frame, ("dataset", "ranking", "kept", "value", "stderr"))
    table: Any = frame
    datasets = list(dict.fromkeys(table["dataset"]))
    names = [name for name in dict.fromkeys(table["ranking"]) if name != RANDOM]
    colors = dict(zip(names, theme.line_colors(len(names)), strict=True))
    width = len(datasets) * (PANEL + GAP)
    traces, layout, notes = [], {}, []
    for place, name in enumerate(datasets):
        part, suffix = table[table["dataset"] == name], str(place + 1) if place else ""
        first = place == 0
        own = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
        random = part[part["ranking"] == RANDOM]
        if len(random):
            traces += _band(random, level, own, legend=first)
        for ranking, color in colors.items():
            curve = part[part["ranking"] == ranking].sort_values("kept")
            traces.append(_line(curve, str(ranking), color, own, legend=first))
        left = place * (PANEL + GAP) / width
        domain = [left, left + PANEL / width]
        layout[f"xaxis{suffix}"] = {
            "title": {"text": "heads kept"},
            "domain": domain,
            "anchor": f"y{suffix}",
        }
        layout[f"yaxis{suffix}"] = {"title": {"text": metric if first else ""}} | {
            "anchor": f"x{suffix}"
        }
        if len(datasets) > 1:
            notes.append(theme.panel_title(escape(str(name)), domain))
    layout |= {
        "annotations": notes,
        "showlegend": True,
        "width": width + 220,
        "height": theme.CURVES["height"],
        "margin": {"l": 70, "r": 150, "t": 64, "b": 50},
    }
    return theme.figure(traces, title=title, layout=layout)


def head_map_figure(matrix: object, *, quantity: str, title: str = "") -> go.Figure:
    """Heatmap of one number a head [layer head], such as its importance; layers down.

    Colour runs from 0 to the largest; if some are negative, evenly to both sides of 0. NaN stays
    blank.

    Args:
        matrix: array or tensor.
        quantity: name and unit, for the colour bar.
        title: of the figure.

    Raises:
        ShapeError: another number of axes.
        InputError: no number at all.
    """
    values = as_array("matrix", matrix, "layer head")
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise InputError("matrix holds no finite number.")
    top = float(np.abs(finite).max()) or 1.0
    low = -top if finite.min() < 0 else 0.0
    n_layer, n_head = values.shape
    heatmap = go.Heatmap(
        z=values,
        x=[f"H{head}" for head in range(n_head)],
        y=[f"L{layer}" for layer in range(n_layer)],
        zmin=low,
        zmax=top,
        colorscale=theme.DIVERGING if low < 0 else theme.SEQUENTIAL,
        colorbar=theme.color_bar(quantity, theme.even_ticks(low, top)),
        hoverongaps=False,
        hovertemplate="%{y}%{x}: %{z:.4g}<extra></extra>",
    )
    layout = theme.square_cells(n_layer, n_head, side=theme.SIDE, room=20) | {
        "xaxis": axis([str(head) for head in range(n_head)], title="head"),
        "yaxis": axis([str(layer) for layer in range(n_layer)], title="layer")
        | {"autorange": "reversed", "scaleanchor": "x"},
    }
    return theme.figure([heatmap], title=title, layout=layout)


def ranking_figure(
    frame: pd.DataFrame, *, correlation: str = "spearman", title: str = ""
) -> go.Figure:
    """Rank correlations between every two rankings as a heatmap, -1 to 1.

    Args:
        frame: as `analysis.rankings.rank_correlations` gives it: a, b, spearman, kendall.
        correlation: the column to draw.
        title: of the figure.

    Raises:
        InputError: a column is missing, or the frame is empty.
    """
    check_columns(frame, ("a", "b", correlation))
    names = [str(name) for name in dict.fromkeys([*frame["a"], *frame["b"]])]
    values = np.eye(len(names))
    places = {name: place for place, name in enumerate(names)}
    for row in frame.to_dict("records"):
        i, j = places[str(row["a"])], places[str(row["b"])]
        values[i, j] = values[j, i] = row[correlation]
    labels = [escape(name) for name in names]
    heatmap = go.Heatmap(
        z=values,
        x=labels,
        y=labels,
        zmin=-1,
        zmax=1,
        colorscale=theme.DIVERGING,
        colorbar=theme.color_bar(f"{correlation} correlation", theme.even_ticks(-1.0, 1.0)),
        text=np.vectorize("{:.2f}".format)(values),
        texttemplate="%{text}",
        hoverongaps=False,
        hovertemplate="%{y}, %{x}: %{z:.3f}<extra></extra>",
    )
    n = len(names)
    layout = theme.square_cells(n, n, side=theme.SIDE, room=label_room(names)) | {
        "xaxis": axis(names, title="ranking"),
        "yaxis": axis(names, title="ranking") | {"autorange": "reversed", "scaleanchor": "x"},
    }
    return theme.figure([heatmap], title=title, layout=layout)


def _line(curve: Any, name: str, color: str, own: dict[str, str], *, legend: bool) -> Any:
    drawn = line(
        curve["kept"].tolist(),
        curve["value"].tolist(),
        name=escape(name),
        color=color,
        hover=HOVER,
    )
    error = {"array": curve["stderr"].tolist(), "thickness": 1, "width": 3}
    return drawn.update(error_y=error, legendgroup=name, showlegend=legend, **own)


def _band(random: Any, level: float, own: dict[str, str], *, legend: bool) -> list[Any]:
    by_kept = random.groupby("kept")["value"]
    kept = sorted(random["kept"].unique().tolist())
    low, high = (by_kept.quantile(q).tolist() for q in ((1 - level) / 2, (1 + level) / 2))
    n = int(by_kept.size().min())
    edges = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "legendgroup": RANDOM}
    name = f"random, {level:.0%} of {n}"
    return [
        go.Scatter(x=kept, y=low, showlegend=False, **edges, **own),
        go.Scatter(
            x=kept,
            y=high,
            fill="tonexty",
            fillcolor=BAND,
            name=name,
            showlegend=legend,
            **edges,
            **own,
        ),
        line(
            kept,
            by_kept.mean().tolist(),
            name="random, mean",
            color=theme.BASELINE,
            hover=HOVER,
            dash="dot",
            marked=False,
        ).update(legendgroup=RANDOM, showlegend=legend, **own),
    ]
