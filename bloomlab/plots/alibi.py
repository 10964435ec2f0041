"""Figures of ALiBi, the distance bias of each head (Press et al., 2022, arXiv:2108.12409)."""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none
from jaxtyping import Float

from bloomlab.errors import InputError
from bloomlab.plots import theme
from bloomlab.plots.arrays import as_array, check_labels
from bloomlab.plots.tokens import label_room, places, steps_axis


def slopes_figure(slopes: object, *, title: str = "") -> go.Figure:
    """Slope of each head [head], in logits per token of distance, on an axis of powers of two.

    Raises:
        InputError: if a slope is not positive; a logarithmic axis cannot show it.
    """
    values = _positive(slopes)
    hover = "%{x}: slope %{y:.4g} logits per token<extra></extra>"
    return _by_head(values, "slope (logits per token)", hover, title)


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


def window_figure(slopes: object, *, drop: int | float = 20.0, title: str = "") -> go.Figure:
    """Effective window of each head: the distance at which its bias is -log(drop).

    A key so far back has 1/drop of the weight of an equal one at the query: log(drop) / slope, in
    tokens, on an axis of powers of two.

    Args:
        slopes: of each head, array or tensor [head].
        drop: factor by which the weight falls, above 1.
        title: of the figure.

    Raises:
        InputError: a slope that is not positive, no slopes, or a drop of 1 or less.
    """
    values = _positive(slopes)
    if not 1 < drop < math.inf:
        raise InputError(f"drop is {drop!r}, expected a number above 1.")
    hover = f"%{{x}}: {drop:g} times less weight %{{y:.4g}} tokens back<extra></extra>"
    return _by_head(math.log(drop) / values, "effective window (tokens)", hover, title)


def score_figure(
    content: object, bias: object, tokens: Sequence[str], *, title: str = ""
) -> go.Figure:
    """Scores of one query: what comes from content, what from distance, and the sum, in logits.

    Args:
        content: q.k / sqrt(d_head) of each key, array or tensor [key].
        bias: what ALiBi adds, as -slope x distance; of the same shape.
        tokens: labels of the keys.
        title: of the figure.

    Raises:
        ShapeError: another number of axes, two shapes, or not one token for each key.
        InputError: no keys, or scores that are no finite numbers, as of masked keys.
    """
    parts = {
        "content": (as_array("content", content, "key"), theme.NEGATIVE),
        "distance (ALiBi)": (as_array("bias", bias, "key"), theme.POSITIVE),
    }
    for name, (values, _) in parts.items():
        check_labels(name.split()[0], values, tokens)
        if not np.isfinite(values).all():
            raise InputError(f"{name} is not finite at every key: leave masked keys out.")
    steps, names = list(range(len(tokens))), places(tokens)
    traces: list[Any] = [
        go.Bar(
            x=steps,
            y=values,
            customdata=names,
            name=name,
            marker={"color": color, "line": {"width": 0}},
            hovertemplate="%{customdata}: " + name + " %{y:+.4g}<extra></extra>",
        )
        for name, (values, color) in parts.items()
    ]
    traces.append(
        go.Scatter(
            x=steps,
            y=sum(values for values, _ in parts.values()),
            customdata=names,
            mode="markers",
            name="score",
            marker={"symbol": "diamond", **theme.MARK},
            hovertemplate="%{customdata}: score %{y:+.4g}<extra></extra>",
        )
    )
    layout = theme.timeline(len(tokens), room=label_room(tokens)) | {
        "xaxis": steps_axis(tokens, title="key (source)"),
        "yaxis": {
            "title": {"text": "score (logits)"},
            "zeroline": True,
            "zerolinecolor": theme.BASELINE,
        },
        "barmode": "relative",
        "bargap": 0.15,
        "showlegend": True,
    }
    return theme.figure(traces, title=title, layout=layout)


def _positive(slopes: object) -> Float[np.ndarray, " head"]:
    values = as_array("slopes", slopes, "head")
    if not values.size:
        raise InputError("slopes is empty: there is nothing to draw.")
    if not (values > 0).all():
        raise InputError(
            f"slopes must be positive to be drawn on a logarithmic axis, got a minimum of "
            f"{values.min():g}. Draw bias_figure, or leave such heads out."
        )
    return values


def _by_head(
    values: Float[np.ndarray, " head"], quantity: str, hover: str, title: str
) -> go.Figure:
    """Points over the numbers of heads, on an axis of powers of two."""
    points = go.Scatter(
        x=[f"H{head}" for head in range(len(values))],
        y=values,
        mode="markers",
        marker={"size": theme.MARKER_SIZE, "color": theme.line_colors(len(values))},
        hovertemplate=hover,
    )
    low, high = math.floor(math.log2(values.min())), math.ceil(math.log2(values.max()))
    yaxis = {
        "title": {"text": quantity},
        "type": "log",
        "tickvals": [2.0**power for power in range(low, high + 1)],
        "ticktext": [str(Fraction(2) ** power) for power in range(low, high + 1)],  # 1/4, 1/2, 1
    }
    layout = {"xaxis": {"title": {"text": "head"}, "showgrid": False}, "yaxis": yaxis}
    return theme.figure([points], title=title, layout=theme.CURVES | layout)
