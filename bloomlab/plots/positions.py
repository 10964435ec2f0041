"""Figures of long texts: how well they are read, position by position."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none
from jaxtyping import Float

from bloomlab.errors import InputError
from bloomlab.plots import theme
from bloomlab.plots.arrays import as_array
from bloomlab.plots.lines import line, lines_figure
from bloomlab.plots.tokens import isolate


def position_figure(
    curves: Mapping[str, object],
    *,
    quantity: str,
    width: int = 64,
    start: int = 0,
    mark: tuple[int, str] | None = None,
    logarithmic: bool = False,
    title: str = "",
) -> go.Figure:
    """Means over texts and over `width` neighbouring positions, a line for each name.

    A last group of fewer positions is left out.

    Args:
        curves: for each name an array or tensor [text pos], or [pos] of one text.
        quantity: name and unit of the numbers, for the axis.
        width: positions in a group; a point stands in the middle of its group.
        start: position of the first column: 1 for losses, of which the first token has none.
        mark: a position that matters and what it is: (256, "longest text in training").
        logarithmic: whether equal steps up the axis are equal factors; means of 0 or less, as
            rounding makes of a KL of nothing, are gaps then.
        title: of the figure.

    Raises:
        ShapeError: numbers with more axes.
        InputError: no curves, fewer positions than a group has, a width below 1, numbers that are
            not finite, or not one mean that a logarithmic axis can show.
    """
    if not curves:
        raise InputError("curves is empty: there is nothing to draw.")
    if width < 1:
        raise InputError(f"width is {width!r}, expected 1 or more.")
    means = {name: _grouped(name, one, width) for name, one in curves.items()}
    if logarithmic:
        means = {name: np.where(one > 0, one, np.nan) for name, one in means.items()}
        if all(np.isnan(one).all() for one in means.values()):
            raise InputError("no mean is above 0: a logarithmic axis shows nothing. Leave it out.")
    lines: list[Any] = [
        line(
            start + (width - 1) / 2 + width * np.arange(len(one)),
            one,
            name=isolate(name),
            color=color,
            hover="%{customdata}: %{y:.4g}",
        ).update(customdata=[_places(start + width * i, width) for i in range(len(one))])
        for (name, one), color in zip(means.items(), theme.line_colors(len(means)), strict=True)
    ]
    axis = {"type": "log", "exponentformat": "power", "dtick": 1} if logarithmic else {}
    figure: Any = lines_figure(
        lines,
        x="position (tokens)",
        y=quantity,
        title=title,
        legend=len(means) > 1,
        xaxis={"rangemode": "tozero"},
        yaxis=axis,
    )
    above = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}
    marked = {} if mark is None else _marked(*mark)
    return figure.update_layout(legend=above, margin={"r": 20, "t": 78}, **marked)


def _grouped(name: str, values: object, width: int) -> Float[np.ndarray, " group"]:
    given: Any = values
    one = as_array(name, given, "pos" if np.ndim(given) == 1 else "text pos")
    whole = one.shape[-1] // width
    if not whole or not one.size:
        raise InputError(f"{name!r} has shape {one.shape}: less than one group of {width}.")
    if not np.isfinite(one).all():
        raise InputError(f"{name!r} holds numbers that are not finite.")
    return one[..., : whole * width].reshape(-1, whole, width).mean((0, 2))


def _places(first: int, width: int) -> str:
    return f"{first}" if width == 1 else f"{first}–{first + width - 1}"


def _marked(position: int, name: str) -> dict[str, Any]:
    """A dotted line at a position, its name beside the top."""
    line = {"color": theme.BASELINE, "width": 1, "dash": "dot"}
    place = {"x0": position, "x1": position, "y0": 0, "y1": 1, "yref": "paper"}
    text = {"x": position, "y": 1, "yref": "paper", "xanchor": "left", "yanchor": "top"}
    return {
        "shapes": [{"type": "line", "line": line, **place}],
        "annotations": [{"text": f" {isolate(name)}", "showarrow": False, **text}],
    }
