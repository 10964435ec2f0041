"""Figures of the logit lens (nostalgebraist, 2020): what each layer's stream would predict."""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none

from bloomlab.errors import InputError, ShapeError
from bloomlab.plots import theme
from bloomlab.plots.arrays import as_array, as_probabilities, check_labels
from bloomlab.plots.tokens import axis, fitted, isolate, label_room, places


def lens_figure(
    probability: object,
    top: Sequence[Sequence[str]],
    tokens: Sequence[str],
    *,
    layers: Sequence[object] | None = None,
    quantity: str = "probability of the likeliest token",
    title: str = "",
) -> go.Figure:
    """Table of the token that each layer predicts after each position; layers down.

    Colour is the probability, 0 to 1. Predicted tokens are cut to their cells, and left to the
    hover text where cells are too small.

    Args:
        probability: of the predicted tokens, array or tensor [layer pos].
        top: the predicted tokens' labels, a list for each layer.
        tokens: labels of the positions.
        layers: names of the rows; None: 0, 1, 2 ...
        quantity: name, for the colour bar.
        title: of the figure.

    Raises:
        ShapeError: another number of axes, or not one token for each position, one name for each
            layer and one prediction for each cell.
        InputError: numbers outside 0 to 1, or none.
    """
    values = as_probabilities("probability", probability, "layer pos")
    check_labels("probability", values, tokens)
    names = [str(name) for name in (range(len(values)) if layers is None else layers)]
    check_labels("probability", values, names, along=0)
    widths = sorted({len(row) for row in top})
    if len(top) != len(values) or widths != [len(tokens)]:
        raise ShapeError("top", got=(len(top), *widths), expected=str(values.shape))
    n_layer, n_pos = values.shape
    layout, room = theme.text_cells(n_layer, n_pos, room=label_room(tokens))
    heatmap = go.Heatmap(
        z=values,
        x=places(tokens),
        y=[f"layer {isolate(name)}" for name in names],
        text=[[fitted(label, room) for label in row] for row in top],
        texttemplate="%{text}" if room else None,
        textfont={"size": theme.FONT_SIZE, "color": theme.INK},
        customdata=[[isolate(label) for label in row] for row in top],
        zmin=0.0,
        zmax=1.0,
        colorscale=theme.TINT,
        colorbar=theme.color_bar(quantity, theme.even_ticks(0.0, 1.0)),
        hovertemplate="%{y} · %{x}<br>%{customdata}: %{z:.3g}<extra></extra>",
    )
    layout |= {
        "xaxis": axis(tokens, title="token"),
        "yaxis": axis(names, title="layer") | {"autorange": "reversed"},
    }
    return theme.figure([heatmap], title=title, layout=layout)


def rank_figure(ranks: object, names: Sequence[str], *, title: str = "") -> go.Figure:
    """Rank of chosen tokens [token layer] by layer, a line a token; the likeliest is at the top.

    The axis is logarithmic and counts from 1; ranks count from 0, as in `Reading.chosen_rank`. NaN
    leaves a gap.

    Args:
        ranks: how many tokens are likelier, array or tensor.
        names: labels of the tokens.
        title: of the figure.

    Raises:
        ShapeError: another number of axes, or not one name for each token.
        InputError: a negative rank, or none.
    """
    values = as_array("ranks", ranks, "token layer")
    check_labels("ranks", values, names, along=0)
    if (values < 0).any():
        raise InputError(f"ranks go down to {np.nanmin(values):g}; 0 is the likeliest token.")
    finite = values[np.isfinite(values)]
    decades = max(1, math.ceil(math.log10(1 + max(finite.tolist(), default=0))))
    lines = [
        go.Scatter(
            x=list(range(values.shape[1])),
            y=row + 1,
            customdata=row,
            mode="lines+markers",
            name=isolate(name),
            line={"width": theme.LINE_WIDTH, "color": color},
            marker={"size": theme.MARKER_SIZE - 3, "color": color},
            hovertemplate="layer %{x}: rank %{customdata:,}",
        )
        for row, name, color in zip(values, names, theme.line_colors(len(names)), strict=True)
    ]
    yaxis = {
        "title": {"text": "rank (1 = likeliest)"},
        "type": "log",
        "tickvals": [10**power for power in range(decades + 1)],
        "ticktext": [f"{10**power:,}" for power in range(decades + 1)],
        "range": [decades + 0.1, -0.1],  # powers of ten
    }
    layout = {
        "xaxis": {"title": {"text": "layer"}, "dtick": max(1, values.shape[1] // 12)},
        "yaxis": yaxis,
        "showlegend": True,
        "margin": {"l": 80, "r": 150, "t": 48, "b": 50},
        **theme.CURVES,
    }
    return theme.figure(lines, title=title, layout=layout)
