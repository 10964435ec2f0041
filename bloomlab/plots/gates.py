"""Figures of head gates: a metric while a head is turned down, beside its tangent."""

# pyright: standard
# pandas and plotly come without types

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from bloomlab.plots import theme
from bloomlab.plots.arrays import check_columns

COLUMNS = ("layer", "head", "gate", "value", "tangent")


def gate_figure(frame: pd.DataFrame, *, metric: str = "metric", title: str = "") -> go.Figure:
    """The metric against a head's gate, a line a head; dotted, the tangent at gate 1.

    Args:
        frame: as `experiments.gate_curve` gives it: layer, head, gate, value, tangent.
        metric: name and unit of the values, for the axis.
        title: of the figure.

    Raises:
        InputError: a column is missing, or the frame is empty.
    """
    check_columns(frame, COLUMNS)
    table: Any = frame.sort_values("gate")
    heads = list(dict.fromkeys(zip(frame["layer"], frame["head"], strict=True)))
    traces: list[Any] = []
    for (layer, head), color in zip(heads, theme.line_colors(len(heads)), strict=True):
        part = table[(table["layer"] == layer) & (table["head"] == head)]
        name = f"L{layer}H{head}"
        for column, dash in (("value", "solid"), ("tangent", "dot")):
            traces.append(
                go.Scatter(
                    x=part["gate"].tolist(),
                    y=part[column].tolist(),
                    mode="lines+markers" if column == "value" else "lines",
                    name=name if column == "value" else f"{name}, tangent",
                    line={"width": theme.LINE_WIDTH, "color": color, "dash": dash},
                    marker={"size": theme.MARKER_SIZE - 3, "color": color},
                    hovertemplate="gate %{x:.2f}: %{y:.4g}",
                )
            )
    layout = {
        "xaxis": {"title": {"text": "gate (1: intact, 0: silenced)"}},
        "yaxis": {"title": {"text": metric}},
        "showlegend": True,
        "margin": {"l": 70, "r": 150, "t": 48, "b": 50},
        **theme.CURVES,
    }
    return theme.figure(traces, title=title, layout=layout)
