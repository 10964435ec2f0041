"""Figures of a generation: how sure each step was, and where branches part."""

# pyright: standard
# pandas and plotly come without types

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bloomlab.errors import InputError
from bloomlab.plots import theme
from bloomlab.plots.arrays import as_array, as_probabilities, check_columns, check_labels
from bloomlab.plots.lines import line, lines_figure
from bloomlab.plots.tokens import escape, label_room, places, steps_axis


def generation_figure(
    tokens: Sequence[str],
    probability: object,
    entropy: object,
    *,
    n_prompt: int = 0,
    title: str = "",
) -> go.Figure:
    """Probability of each token of a text when it was chosen, over the entropy at that step.

    Args:
        tokens: labels, of the prompt first.
        probability: of each token before it was read [pos]; NaN, as of a first token, is blank.
        entropy: of the prediction that the token was chosen from [pos], in nats; NaN is blank.
        n_prompt: how many of the tokens are the prompt; they are drawn in grey.
        title: of the figure.

    Raises:
        ShapeError: another number of axes, or not one number for each token.
        InputError: probabilities outside 0 to 1, no tokens, or a prompt longer than the text.
    """
    sure = as_array("probability", probability, "pos")
    check_labels("probability", sure, tokens)
    as_probabilities("probability", np.where(np.isnan(sure), 0.0, sure), "pos")
    open_ended = as_array("entropy", entropy, "pos")
    check_labels("entropy", open_ended, tokens)
    if not 0 <= n_prompt <= len(tokens):
        raise InputError(f"n_prompt is {n_prompt}, expected 0 to {len(tokens)}.")
    names = places(tokens)
    parts = [
        ("prompt", slice(None, n_prompt), theme.BASELINE),
        ("generated", slice(n_prompt, None), theme.NEGATIVE),
    ]
    traces: list[Any] = [
        go.Bar(
            x=list(range(len(tokens)))[some],
            y=sure[some],
            customdata=names[some],
            name=name,
            marker={"color": color, "line": {"width": 0}},
            hovertemplate="%{customdata}: probability %{y:.4f}<extra></extra>",
        )
        for name, some, color in parts
        if len(names[some])
    ]
    traces.append(
        go.Scatter(
            x=list(range(len(tokens))),
            y=open_ended,
            customdata=names,
            mode="lines+markers",
            showlegend=False,
            yaxis="y2",
            line={"width": theme.LINE_WIDTH, "color": theme.ACCENT},
            marker={"size": theme.MARKER_SIZE - 4, "color": theme.ACCENT},
            hovertemplate="%{customdata}: entropy %{y:.3f} nats<extra></extra>",
        )
    )
    floor = {"zeroline": True, "zerolinecolor": theme.FAINT}
    above = {"title": {"text": "probability"}, "domain": [0.54, 1.0], "range": [0, 1.02]} | floor
    below = {
        "title": {"text": "entropy (nats)"},
        "domain": [0, 0.46],
        "rangemode": "tozero",
    } | floor
    edge = {"x0": n_prompt - 0.5, "x1": n_prompt - 0.5, "y0": 0, "y1": 1, "yref": "paper"}
    line = {"type": "line", "line": {"color": theme.BASELINE, "width": 1, "dash": "dot"}}
    layout = theme.timeline(len(tokens), room=label_room(tokens), panels=2) | {
        "xaxis": steps_axis(tokens, title="token") | {"anchor": "y2"},
        "yaxis": above,
        "yaxis2": below,
        "shapes": [edge | line] if 0 < n_prompt < len(tokens) else [],
        "showlegend": n_prompt > 0,
        "bargap": 0.15,
    }
    return theme.figure(traces, title=title, layout=layout)


def branches_figure(frame: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Divergence of each branch's prediction from the reference's by step, a line a branch.

    Of several rows of text the mean is drawn. Open circles: some row has another token here than
    the reference has. A branch that never diverges, such as the reference, is dotted.

    Args:
        frame: as in `Branches.frame`: branch, row, step, token, same, kl (in nats; NaN at the
            steps in common, which are left out).
        title: of the figure.

    Raises:
        InputError: a column is missing, or no step has a divergence.
    """
    check_columns(frame, ("branch", "row", "step", "same", "kl"))
    table: Any = frame[frame["kl"].notna()]
    if not len(table):
        raise InputError("kl is NaN at every step: the branches have all steps in common.")
    branches = list(dict.fromkeys(table["branch"]))
    lines = []
    for name, color in zip(branches, theme.line_colors(len(branches)), strict=True):
        part = table[table["branch"] == name].groupby("step")[["kl", "same"]].mean()
        alike, still = part["same"].to_numpy() == 1, not part["kl"].any()
        color = theme.BASELINE if still else color
        lines.append(
            line(
                part.index.tolist(),
                part["kl"].tolist(),
                name=escape(str(name)),
                color=color,
                hover="step %{x}: %{y:.4g} nats<br>same token: %{customdata:.0%} of rows",
                dash="dot" if still else "solid",
            ).update(
                customdata=part["same"].tolist(),
                marker_size=theme.MARKER_SIZE - 2,
                marker_symbol=np.where(alike, "circle", "circle-open").tolist(),
            )
        )
    if not table["same"].all():
        mark = {"size": theme.MARKER_SIZE - 2, "color": theme.BASELINE, "symbol": "circle-open"}
        lines.append(
            go.Scatter(x=[None], y=[None], mode="markers", name="other token", marker=mark)
        )
    steps = table["step"]
    return lines_figure(
        lines,
        x="step",
        y="KL from the reference (nats)",
        title=title,
        xaxis={"dtick": max(1, -(-int(steps.max() - steps.min() + 1) // 12))},
        yaxis={"rangemode": "tozero"},
    )
