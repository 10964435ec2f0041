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
from bloomlab.plots.arrays import as_array, as_probabilities, check_labels
from bloomlab.plots.tokens import escape, label_room, places, steps_axis


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


def staircase_figure(
    exact: object, rounded: object, *, first: int = 0, title: str = ""
) -> go.Figure:
    """A head's bias on neighbouring keys as it should be, and as a number format rounds it.

    Both are shifted so that the last key, the query's own, has 0: softmax ignores a constant.

    Args:
        exact: bias of each key in logits, array or tensor [key].
        rounded: the same, rounded.
        first: position of the first key.
        title: of the figure.

    Raises:
        ShapeError: two shapes, or more than one axis.
        InputError: no keys.
    """
    smooth, steps = as_array("exact", exact, "key"), as_array("rounded", rounded, "key")
    check_labels("rounded", steps, range(len(smooth)))
    lines = [
        go.Scatter(
            x=np.arange(first, first + len(values)),
            y=values - values[-1],
            mode="lines+markers",
            name=name,
            line={"width": theme.LINE_WIDTH, "color": color, "shape": shape},
            marker={"size": theme.DOT, "color": color},
            hovertemplate="key %{x}: %{y:.4g} logits",
        )
        for name, values, color, shape in (
            ("exact", smooth, theme.NEGATIVE, "linear"),
            ("rounded", steps, theme.POSITIVE, "hvh"),
        )
    ]
    layout = {
        "showlegend": True,
        "xaxis": {"title": {"text": "position of the key (tokens)"}},
        "yaxis": {"title": {"text": "bias, less the last key's (logits)"}},
    }
    return theme.figure(lines, title=title, layout=theme.CURVES | layout)


def recency_figure(
    slopes: object, previous: object, labels: Sequence[str], *, title: str = ""
) -> go.Figure:
    """Attention of heads to the previous token over their slope, beside what ALiBi alone can give.

    If all tokens are alike to a head it gives the previous one (1 - r) r, r = exp(-slope), in a
    long text; if content does no more than exclude the query's own token, 1 - r: a head above that
    line knows from content which token is the previous one.

    Args:
        slopes: of each head in logits per token, array or tensor [head].
        previous: mean attention to the previous token, 0 to 1, of the same shape.
        labels: names of the heads.
        title: of the figure.

    Raises:
        ShapeError: another number of axes, two shapes, or not one label for each head.
        InputError: a slope that is not positive, no heads, or no probabilities.
    """
    values, seen = _positive(slopes), as_probabilities("previous", previous, "head")
    check_labels("previous", seen, labels)
    check_labels("slopes", values, labels)
    low, high = math.log(values.min() / 1.2), math.log(values.max() * 1.2)
    steep = np.exp(np.linspace(low, high, 64))
    r = np.exp(-steep)
    names = {"all tokens alike": ((1 - r) * r, "dot"), "own token excluded": (1 - r, "dash")}
    traces: list[Any] = [
        go.Scatter(
            x=steep,
            y=curve,
            mode="lines",
            name=name,
            line={"width": theme.LINE_WIDTH, "color": theme.BASELINE, "dash": dash},
            hovertemplate="slope %{x:.4g}: %{y:.3f}",
        )
        for name, (curve, dash) in names.items()
    ]
    traces.append(
        go.Scatter(
            x=values,
            y=seen,
            customdata=[escape(label) for label in labels],
            mode="markers",
            name="heads",
            marker={"size": theme.MARKER_SIZE, "color": theme.ACCENT, "opacity": 0.7},
            hovertemplate="%{customdata}, slope %{x:.4g}: %{y:.3f}<extra></extra>",
        )
    )
    layout = {
        "showlegend": True,
        "xaxis": {"title": {"text": "slope (logits per token)"}, **_powers(values)},
        "yaxis": {"title": {"text": "attention to the previous token"}, "range": [-0.02, 1.02]},
    }
    return theme.figure(traces, title=title, layout=theme.CURVES | layout)


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
    yaxis = {"title": {"text": quantity}, **_powers(values)}
    layout = {"xaxis": {"title": {"text": "head"}, "showgrid": False}, "yaxis": yaxis}
    return theme.figure([points], title=title, layout=theme.CURVES | layout)


def _powers(values: Float[np.ndarray, " head"]) -> dict[str, Any]:
    """A logarithmic axis whose ticks are powers of two."""
    low, high = math.floor(math.log2(values.min())), math.ceil(math.log2(values.max()))
    return {
        "type": "log",
        "tickvals": [2.0**power for power in range(low, high + 1)],
        "ticktext": [str(Fraction(2) ** power) for power in range(low, high + 1)],  # 1/4, 1/2, 1
    }
