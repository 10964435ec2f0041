"""Figures of head gates: a metric while a head is turned down, beside its tangent."""

# pyright: standard
# pandas and plotly come without types

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from bloomlab.plots import theme
from bloomlab.plots.arrays import check_columns
from bloomlab.plots.lines import line, lines_figure

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
                line(
                    part["gate"].tolist(),
                    part[column].tolist(),
                    name=name if column == "value" else f"{name}, tangent",
                    color=color,
                    hover="gate %{x:.2f}: %{y:.4g}",
                    dash=dash,
                    marked=column == "value",
                )
            )
    return lines_figure(traces, x="gate (1: intact, 0: silenced)", y=metric, title=title)
