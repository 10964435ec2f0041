"""Figures of what the model says next: arrays in, a plotly figure out."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none
from jaxtyping import Float

from bloomlab.errors import ShapeError
from bloomlab.plots import theme
from bloomlab.plots.arrays import as_probabilities
from bloomlab.plots.tokens import axis, escape, label_room


def next_token_figure(
    labels: Sequence[str],
    before: object,
    after: object = None,
    *,
    title: str = "",
) -> go.Figure:
    """Bars of next-token probability [token], before and after an intervention, largest on top.

    Raises:
        ShapeError: if there is not one label for each probability.
    """
    before = as_probabilities("before", before, "token")
    after = None if after is None else as_probabilities("after", after, "token")
    if len(labels) != len(before):
        raise ShapeError("labels", got=(len(labels),), expected=str(before.shape))
    peak = before if after is None else np.maximum(before, after)
    order = sorted(range(len(labels)), key=lambda token: -peak[token])
    names = [escape(labels[token]) for token in order]
    bars = [_bars("before", before[order], names, theme.BASELINE)]
    if after is not None:
        bars.append(_bars("after", after[order], names, theme.ACCENT))
    room = 1.2 * max(peak.tolist(), default=0.0) or 1.0  # for the numbers at the ends of the bars
    layout = theme.bars(len(labels), room=label_room(labels)) | {
        "xaxis": {"title": {"text": "probability of the next token"}, "range": [0, room]},
        "yaxis": axis(names, title="token") | theme.BAR_NAMES,
        "barmode": "group",
        "bargap": 0.25,
        "showlegend": after is not None,
    }
    return theme.figure(bars, title=title, layout=layout)


def _bars(
    name: str, probability: Float[np.ndarray, " token"], names: Sequence[str], color: str
) -> go.Bar:
    return go.Bar(
        orientation="h",
        x=probability,
        y=list(range(len(names))),  # not the names: two tokens may look the same
        name=name,
        marker={"color": color, "line": {"width": 0}},
        text=[f"{value:.3f}" for value in probability.tolist()],
        textposition="outside",
        cliponaxis=False,
        constraintext="none",
        customdata=names,
        hovertemplate="%{customdata}: %{x:.4f}<extra>" + name + "</extra>",
    )
