"""Figures of direct logit attribution: what each component adds to a logit."""

# pyright: standard
# pandas and plotly come without types

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bloomlab.errors import InputError
from bloomlab.plots import theme
from bloomlab.plots.arrays import check_columns, check_top
from bloomlab.plots.tokens import axis, escape, isolate, label_room

REST = "rest"  # the bar of all that are not drawn


def attribution_figure(
    frame: pd.DataFrame, *, top: int = 20, answer: str = "", title: str = ""
) -> go.Figure:
    """Bars of what components add to a logit, the largest on top; the others are summed as "rest".

    All bars together are the logit.

    Args:
        frame: as in `Attribution.frame`, of one answer: component, contribution (logits).
        top: how many components have bars of their own.
        answer: label of the token, for the axis.
        title: of the figure.

    Raises:
        InputError: a column is missing, the frame is empty or of several answers, a contribution
            that is no number, or `top` below 1.
    """
    check_columns(frame, ("component", "contribution"))
    check_top(top)
    table: Any = frame
    if table["component"].duplicated().any():
        raise InputError(
            "the frame has several rows a component: it is of several answers. Choose one, as in "
            "frame[frame['text'] == 0], or take frame.groupby('component', sort=False, "
            "as_index=False)['contribution'].mean()."
        )
    values = table["contribution"].to_numpy(dtype=float)
    if not np.isfinite(values).all():
        raise InputError("contributions must be numbers, got NaN or infinity.")
    order = np.argsort(-np.abs(values), kind="stable")
    names = [str(table["component"].iloc[place]) for place in order[:top].tolist()]
    drawn = values[order[:top]].tolist()
    colors = [theme.NEGATIVE if value < 0 else theme.POSITIVE for value in drawn]
    hovers = [escape(name) for name in names]
    if left := len(values) - len(drawn):
        names, colors = [*names, REST], [*colors, theme.BASELINE]
        hovers = [*hovers, f"sum of the {left} others"]
        drawn = [*drawn, float(values[order[top:]].sum())]
    low, high = min(0.0, *drawn), max(0.0, *drawn)
    number = 0.18 * (high - low or 1.0)  # room for the numbers at the ends of the bars
    span = [low - number if low < 0 else 0.0, high + number if high > 0 or not low else 0.0]
    bars = go.Bar(
        orientation="h",
        x=drawn,
        y=list(range(len(drawn))),
        marker={"color": colors, "line": {"width": 0}},
        text=[f"{value:+.3f}" for value in drawn],
        textposition="outside",
        cliponaxis=False,
        constraintext="none",
        customdata=hovers,
        hovertemplate="%{customdata}: %{x:+.4f} logits<extra></extra>",
    )
    to = f" to {isolate(answer)}" if answer else ""
    layout = theme.signed_bars(len(drawn), room=label_room(names)) | {
        "xaxis": {
            "title": {"text": f"contribution{to} (logits)"},
            "range": span,
            "zeroline": True,
            "zerolinecolor": theme.BASELINE,
        },
        "yaxis": axis(names, title="component", most=len(names)) | theme.BAR_NAMES,
        "bargap": 0.25,
        "showlegend": False,
    }
    return theme.figure([bars], title=title, layout=layout)
