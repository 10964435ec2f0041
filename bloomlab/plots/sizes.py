"""Figures of model sizes: bytes by model and number format, beside the memories there are."""

# pyright: standard
# plotly comes without types

import math
from collections.abc import Mapping

import plotly.graph_objects as go

from bloomlab.errors import InputError
from bloomlab.plots import theme
from bloomlab.plots.tokens import escape

GIGA = 1e9


def fit_figure(
    needs: Mapping[str, Mapping[str, float]],
    memories: Mapping[str, float],
    *,
    title: str = "",
) -> go.Figure:
    """Bytes that models take, in GB on a logarithmic axis, and memories as lines across.

    A point left of a memory's line fits in it.

    Args:
        needs: for each way to store (such as a dtype) the bytes of each model by name.
        memories: bytes by the name of the memory.
        title: of the figure.

    Raises:
        InputError: nothing to draw, or a number that is not above 0.
    """
    if not needs or not all(needs.values()):
        raise InputError("needs is empty: expected bytes by model, for each way to store.")
    sizes = [size for one in needs.values() for size in one.values()]
    if low := [size for size in (*sizes, *memories.values()) if not size > 0]:
        raise InputError(f"a size is {low[0]!r} bytes, expected a number above 0.")
    traces = [
        go.Scatter(
            x=[size / GIGA for size in one.values()],
            y=[escape(model) for model in one],
            mode="markers",
            name=escape(name),
            marker={"size": theme.MARKER_SIZE, "color": color},
            hovertemplate="%{y}: %{x:.3g} GB",
        )
        for (name, one), color in zip(needs.items(), theme.line_colors(len(needs)), strict=True)
    ]
    models = list(dict.fromkeys(model for one in needs.values() for model in one))
    place = {"yref": "paper", "xref": "x"}
    line = {"color": theme.BASELINE, "width": 1, "dash": "dash"}
    lines = [
        {"type": "line", "x0": size / GIGA, "x1": size / GIGA, "y0": 0, "y1": 1, "line": line}
        | place
        for size in memories.values()
    ]
    notes = [
        {"text": escape(name), "x": math.log10(size / GIGA), "y": 1, "textangle": -45}
        | {"xanchor": "left", "yanchor": "bottom", "showarrow": False}
        | place
        for name, size in memories.items()
    ]
    layout = {
        "width": theme.CURVES["width"] + 120,
        "height": 2 * theme.PITCH * len(models) + 250,
        "xaxis": {
            "title": {"text": "memory (GB, 1e9 bytes)"},
            "type": "log",
            "tickvals": (ticks := [10.0**power for power in range(-3, 5)]),
            "ticktext": [f"{tick:g}" for tick in ticks],
        },
        "yaxis": {"title": {"text": "model"}, "autorange": "reversed", "type": "category"},
        "shapes": lines,
        "annotations": notes,
        "showlegend": True,
        "margin": {"l": 90, "r": 150, "t": 130, "b": 50},
    }
    return theme.figure(traces, title=title, layout=layout)
