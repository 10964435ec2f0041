"""Figures of the logit lens (nostalgebraist, 2020): what each layer's stream would predict."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd  # pyright: ignore[reportMissingTypeStubs]  # it has none
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none

from bloomlab.errors import InputError, ShapeError
from bloomlab.plots import theme
from bloomlab.plots.arrays import as_array, as_probabilities, check_columns, check_labels
from bloomlab.plots.lines import line, lines_figure
from bloomlab.plots.tokens import axis, fitted, isolate, label_room, places, steps_axis


def lens_figure(
    probability: object,
    top: Sequence[Sequence[str]] | None = None,
    *,
    tokens: Sequence[str],
    layers: Sequence[object] | None = None,
    quantity: str = "probability of the likeliest token",
    title: str = "",
) -> go.Figure:
    """Table of the token that each layer predicts after each position; layers down.

    Colour is the probability, 0 to 1. Predicted tokens are cut to their cells, and left to the
    hover text where cells are too small.

    Args:
        probability: of the predicted tokens, array or tensor [layer pos]; or a frame as `Lens.top`
            of one text, which holds predictions and layers too: `lens_figure(lens.top,
            tokens=labels)`.
        top: the predicted tokens' labels, a list for each layer; None with a frame.
        tokens: labels of the positions.
        layers: names of the rows; None: 0, 1, 2 ...
        quantity: name, for the colour bar.
        title: of the figure.

    Raises:
        ShapeError: another number of axes, or not one token for each position, one name for each
            layer and one prediction for each cell.
        InputError: numbers outside 0 to 1, or none; a frame of several texts, or that lacks a
            column; an array without the predicted tokens, or a frame with them.
    """
    if isinstance(probability, pd.DataFrame):
        _refuse("top", top)
        probability, predicted, layers = _predictions(probability, layers)
    elif top is None:
        raise InputError("top is missing: give the labels of the predicted tokens.")
    else:
        predicted = top
    values = as_probabilities("probability", probability, "layer pos")
    check_labels("probability", values, tokens)
    names = [str(name) for name in (range(len(values)) if layers is None else layers)]
    check_labels("probability", values, names, along=0)
    widths = sorted({len(row) for row in predicted})
    if len(predicted) != len(values) or widths != [len(tokens)]:
        raise ShapeError("top", got=(len(predicted), *widths), expected=str(values.shape))
    n_layer, n_pos = values.shape
    layout, room = theme.text_cells(n_layer, n_pos, room=label_room(tokens))
    heatmap = go.Heatmap(
        z=values,
        x=places(tokens),
        y=[f"layer {isolate(name)}" for name in names],
        text=[[fitted(label, room) for label in row] for row in predicted],
        texttemplate="%{text}" if room else None,
        textfont={"size": theme.FONT_SIZE, "color": theme.INK},
        customdata=[[isolate(label) for label in row] for row in predicted],
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


def rank_figure(
    ranks: object,
    names: Sequence[str] | None = None,
    *,
    layers: Sequence[object] | None = None,
    title: str = "",
) -> go.Figure:
    """Rank of chosen tokens [token layer] by layer, a line a token; the likeliest is at the top.

    The axis is logarithmic and counts from 1; ranks count from 0, as in `Reading.chosen_rank`. NaN
    leaves a gap.

    Args:
        ranks: how many tokens are likelier, array or tensor; or a frame as `Lens.interest` at one
            position, which holds names and layers too: `rank_figure(found[found["pos"] == 3])`.
        names: labels of the tokens; None with a frame.
        layers: names of the layers; None: 0, 1, 2 ...
        title: of the figure.

    Raises:
        ShapeError: another number of axes, or not one name for each token and layer.
        InputError: a negative rank, or none; a frame of several texts or positions, or that lacks a
            column; an array without names, or a frame with them.
    """
    if isinstance(ranks, pd.DataFrame):
        _refuse("names", names)
        ranks, labels, layers = _followed(ranks, layers)
    elif names is None:
        raise InputError("names is missing: give the labels of the tokens.")
    else:
        labels = names
    values = as_array("ranks", ranks, "token layer")
    check_labels("ranks", values, labels, along=0)
    ticks = [str(name) for name in (range(values.shape[1]) if layers is None else layers)]
    check_labels("ranks", values, ticks)
    if (values < 0).any():
        raise InputError(f"ranks go down to {np.nanmin(values):g}; 0 is the likeliest token.")
    finite = values[np.isfinite(values)]
    decades = max(1, math.ceil(math.log10(1 + max(finite.tolist(), default=0))))
    lines = [
        line(
            list(range(values.shape[1])),
            row + 1,
            name=isolate(name),
            color=color,
            hover="layer %{customdata[1]}: rank %{customdata[0]:,}",
        ).update(customdata=[[rank, isolate(tick)] for rank, tick in zip(row, ticks, strict=True)])
        for row, name, color in zip(values, labels, theme.line_colors(len(labels)), strict=True)
    ]
    yaxis = {
        "type": "log",
        "tickvals": [10**power for power in range(decades + 1)],
        "ticktext": [f"{10**power:,}" for power in range(decades + 1)],
        "range": [decades + 0.1, -0.1],  # powers of ten
    }
    return lines_figure(
        lines,
        x="layer",
        y="rank (1 = likeliest)",
        title=title,
        xaxis=steps_axis(ticks, title="layer"),
        yaxis=yaxis,
    )


def _refuse(name: str, given: object) -> None:
    """Raise if what a frame holds is given beside it."""
    if given is not None:
        raise InputError(f"{name} is given beside a frame, which holds it: leave it out.")


def _predictions(frame: Any, layers: Sequence[object] | None) -> tuple[Any, Any, Any]:
    """Probabilities and labels [layer pos] of the likeliest tokens, and names of the layers."""
    check_columns(frame, ("layer", "site", "text", "pos", "rank", "label", "probability"))
    table = frame[frame["rank"] == 0]
    if table["text"].nunique() != 1:
        raise InputError("the frame is of several texts: choose one, as in top[top['text'] == 0].")
    rows = [part for _, part in table.groupby(["layer", "site"], sort=False)]
    probability = np.array([part["probability"].tolist() for part in rows])
    names = _layers(table) if layers is None else layers
    return probability, [part["label"].tolist() for part in rows], names


def _followed(frame: Any, layers: Sequence[object] | None) -> tuple[Any, Any, Any]:
    """Ranks [token layer] of the tokens of interest, their names, and names of the layers."""
    check_columns(frame, ("layer", "site", "text", "pos", "rank", "predicted"))
    if len(frame[["text", "pos"]].drop_duplicates()) != 1:
        raise InputError(
            "the frame is of several positions: choose one text and one position, as in "
            "interest[interest['pos'] == interest['pos'].max()]."
        )
    tokens = [part for _, part in frame.groupby("predicted", sort=False)]
    names = [str(part["label" if "label" in frame else "predicted"].iloc[0]) for part in tokens]
    ranks = np.array([part["rank"].tolist() for part in tokens])
    return ranks, names, _layers(frame) if layers is None else layers


def _layers(frame: Any) -> list[str]:
    """A name for each layer and site of a frame; the layer's number where there is one site."""
    found = frame[["layer", "site"]].drop_duplicates().to_numpy().tolist()
    one = frame["site"].nunique() == 1
    return [str(layer) if one else f"{layer} {site}" for layer, site in found]
