"""Figures of one number along layers, steps or tokens: a line each for what is compared."""

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none

from bloomlab.errors import InputError
from bloomlab.plots import theme
from bloomlab.plots.arrays import as_array
from bloomlab.plots.lines import line, lines_figure
from bloomlab.plots.tokens import isolate

DOTTED = 48  # most points of a line that are marked


def curves_figure(
    curves: Mapping[str, object],
    *,
    quantity: str,
    x: str = "layer",
    start: int = 0,
    from_zero: bool = True,
    title: str = "",
) -> go.Figure:
    """Numbers against the place they stand at, a line for each name; NaN leaves a gap.

    Args:
        curves: an array, tensor or list of numbers for each name; they may differ in length.
        quantity: name and unit of the numbers, for the axis.
        x: name of what is counted along the other axis.
        start: where that begins to count.
        from_zero: whether the axis of the numbers begins at 0, where none is negative.
        title: of the figure.

    Raises:
        ShapeError: numbers with more than one axis.
        InputError: no curves, or not one finite number in a curve.
    """
    if not curves:
        raise InputError("curves is empty: there is nothing to draw.")
    values = {name: as_array(name, one, "place") for name, one in curves.items()}
    for name, one in values.items():
        if not np.isfinite(one).any():
            raise InputError(f"curve {name!r} holds no finite number.")
    longest = max(map(len, values.values()))
    lines = [
        line(
            list(range(start, start + len(one))),
            one,
            name=isolate(name),
            color=color,
            hover=f"{x} %{{x}}: %{{y:.4g}}",
            marked=longest <= DOTTED,
        )
        for (name, one), color in zip(values.items(), theme.line_colors(len(values)), strict=True)
    ]
    return lines_figure(
        lines,
        x=x,
        y=quantity,
        title=title,
        legend=len(values) > 1,
        xaxis={"dtick": _tick(longest)},
        yaxis={"rangemode": "tozero" if from_zero else "normal"},
    )


def _tick(places: int) -> int:
    """A round distance of ticks, at most about twelve of them."""
    step = 1
    while places / step > 12:
        step = step * 5 // 2 if str(step)[0] == "2" else step * 2
    return step
