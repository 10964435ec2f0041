"""Lines through measured points, and the plot around them: what figures of curves share."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none

from bloomlab.plots import theme


def line(
    x: Any, y: Any, *, name: str, color: str, hover: str, dash: str = "solid", marked: bool = True
) -> Any:
    """A line through points, each marked unless `marked` is False; `update` adds what is special.

    Args:
        x: places of the points.
        y: their values; NaN leaves a gap.
        name: as plotly shall draw it, escaped.
        color: of line and marks.
        hover: template of what pointing at a point tells.
        dash: "solid", or how the line is broken.
        marked: whether the points are seen.
    """
    return go.Scatter(
        x=x,
        y=y,
        mode="lines+markers" if marked else "lines",
        name=name,
        line={"width": theme.LINE_WIDTH, "color": color, "dash": dash},
        marker={"size": theme.MARKER_SIZE - 3, "color": color},
        hovertemplate=hover,
    )


def lines_figure(
    lines: Sequence[Any],
    *,
    x: str,
    y: str,
    title: str,
    legend: bool = True,
    xaxis: Mapping[str, Any] | None = None,
    yaxis: Mapping[str, Any] | None = None,
) -> go.Figure:
    """Lines in one plot, their names at its right.

    Args:
        lines: the traces.
        x: title of the axis across, with its unit.
        y: title of the axis up, with its unit.
        title: of the figure.
        legend: whether the lines are named.
        xaxis: what else the axis across shall be.
        yaxis: what else the axis up shall be.
    """
    layout = {
        "xaxis": {"title": {"text": x}, **(xaxis or {})},
        "yaxis": {"title": {"text": y}, **(yaxis or {})},
        "showlegend": legend,
        "margin": {"l": 70, "r": 150 if legend else 20, "t": 48, "b": 50},
        **theme.CURVES,
    }
    return theme.figure(lines, title=title, layout=layout)
