"""Figures of ALiBi, the distance bias of each head (Press et al., 2022, arXiv:2108.12409)."""

import math
from fractions import Fraction

import numpy as np
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none

from bloomlab.errors import InputError
from bloomlab.plots import theme
from bloomlab.plots.arrays import as_array


def slopes_figure(slopes: object, *, title: str = "") -> go.Figure:
    """Slope of each head [head], in logits per token of distance, on an axis of powers of two.

    Raises:
        InputError: if a slope is not positive; a logarithmic axis cannot show it.
    """
    slopes = as_array("slopes", slopes, "head")
    if not (slopes > 0).all():
        raise InputError(
            f"slopes must be positive to be drawn on a logarithmic axis, got a minimum of "
            f"{slopes.min():g}. Draw bias_figure, or leave such heads out."
        )
    names = [f"H{head}" for head in range(len(slopes))]
    points = go.Scatter(
        x=names,
        y=slopes,
        mode="markers",
        marker={"size": theme.MARKER_SIZE, "color": theme.line_colors(len(slopes))},
        hovertemplate="%{x}: slope %{y:.4g} logits per token<extra></extra>",
    )
    low, high = math.floor(math.log2(slopes.min())), math.ceil(math.log2(slopes.max()))
    yaxis = {
        "title": {"text": "slope (logits per token)"},
        "type": "log",
        "tickvals": [2.0**power for power in range(low, high + 1)],
        "ticktext": [str(Fraction(2) ** power) for power in range(low, high + 1)],  # 1/4, 1/2, 1
    }
    layout = {"xaxis": {"title": {"text": "head"}, "showgrid": False}, "yaxis": yaxis}
    return theme.figure([points], title=title, layout=theme.CURVES | layout)


def bias_figure(slopes: object, *, max_distance: int = 64, title: str = "") -> go.Figure:
    """Bias in logits that each head [head] adds to a key `distance` back: -slope x distance."""
    slopes = as_array("slopes", slopes, "head")
    distance = np.arange(max_distance + 1)
    lines = [
        go.Scatter(
            x=distance,
            y=0.0 - slope * distance,  # not -slope * distance: no -0.0 at distance 0
            mode="lines",
            name=f"H{head}",
            line={"width": theme.LINE_WIDTH, "color": color},
            hovertemplate=f"H{head}, slope {slope:.4g}<br>"
            "%{x} tokens back: %{y:.4g} logits<extra></extra>",
        )
        for head, (slope, color) in enumerate(
            zip(slopes.tolist(), theme.line_colors(len(slopes)), strict=True)
        )
    ]
    layout = {
        "showlegend": True,
        "xaxis": {"title": {"text": "distance from query back to key (tokens)"}},
        "yaxis": {"title": {"text": "bias (logits)"}},
    }
    return theme.figure(lines, title=title, layout=theme.CURVES | layout)
