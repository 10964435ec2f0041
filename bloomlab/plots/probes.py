"""Figures of probes: what is read, layer by layer, beside what that is worth."""

# pyright: standard
# pandas and plotly come without types

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from bloomlab.errors import InputError
from bloomlab.plots import theme
from bloomlab.plots.arrays import check_columns
from bloomlab.plots.tokens import escape

COLUMNS = ("site", "layer", "head", "accuracy", "low", "high")
BASELINES = {  # column of the frame -> name and dash of its line
    "random": ("random weights", "dash"),
    "control_accuracy": ("control task", "dashdot"),
    "embedding": ("embeddings", "dot"),
    "majority": ("majority", "longdash"),
}


def probe_figure(frame: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Accuracy by layer with its interval, a line a site, and the baselines of the first site.

    Args:
        frame: as in `Probes.frame`; baselines that it lacks, or that are NaN, are not drawn.
        title: of the figure.

    Raises:
        InputError: a column is missing, the frame is empty, or probes of heads; for those see
            `head_map_figure`.
    """
    check_columns(frame, COLUMNS)
    table: Any = frame[frame["layer"].notna()]
    if not len(table) or table["head"].notna().any():
        raise InputError("the frame has no probes of layers: draw those of heads as a head map.")
    sites = list(dict.fromkeys(table["site"]))
    traces: list[Any] = []
    for site, color in zip(sites, theme.line_colors(len(sites)), strict=True):
        part = table[table["site"] == site].sort_values("layer")
        above, below = part["high"] - part["accuracy"], part["accuracy"] - part["low"]
        traces.append(
            go.Scatter(
                x=part["layer"].tolist(),
                y=part["accuracy"].tolist(),
                error_y={"array": above.tolist(), "arrayminus": below.tolist(), "thickness": 1},
                mode="lines+markers",
                name=escape(str(site)),
                line={"width": theme.LINE_WIDTH, "color": color},
                marker={"size": theme.MARKER_SIZE - 3, "color": color},
                hovertemplate="layer %{x}: %{y:.3f}",
            )
        )
    first = table[table["site"] == sites[0]].sort_values("layer")
    for column, (name, dash) in BASELINES.items():
        if column in first and first[column].notna().any():
            traces.append(
                go.Scatter(
                    x=first["layer"].tolist(),
                    y=first[column].tolist(),
                    mode="lines",
                    name=name,
                    line={"width": theme.LINE_WIDTH, "color": theme.BASELINE, "dash": dash},
                    hovertemplate="layer %{x}: %{y:.3f}",
                )
            )
    layout = {
        "xaxis": {"title": {"text": "layer"}, "dtick": max(1, len(first) // 12)},
        "yaxis": {"title": {"text": "accuracy (share of the test labels)"}},
        "showlegend": True,
        "margin": {"l": 70, "r": 150, "t": 48, "b": 50},
        **theme.CURVES,
    }
    return theme.figure(traces, title=title, layout=layout)
