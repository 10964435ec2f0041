"""Figures of a training: what was measured at its steps."""

# pyright: standard
# pandas and plotly come without types

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bloomlab.errors import InputError
from bloomlab.plots import theme
from bloomlab.plots.lines import line, lines_figure
from bloomlab.plots.tokens import escape


def training_figure(
    frame: pd.DataFrame,
    *,
    quantity: str,
    highlight: Collection[object] | None = None,
    levels: Mapping[str, float] | None = None,
    title: str = "",
) -> go.Figure:
    """A line for each column of the frame over the steps of a training, its index.

    Steps lie as far apart as they are. A number that is not there leaves a gap.

    Args:
        frame: a row a step, a column a line; its names are those of the lines.
        quantity: name and unit of the values, for the axis.
        highlight: columns that are drawn in colour and named; the others are grey. None: all.
        levels: name -> value, for dotted lines to compare with, such as chance.
        title: of the figure.

    Raises:
        InputError: no rows or columns, an index that is no steps, a column that is highlighted and
            not there, or more lines than can be told apart.
    """
    if frame.empty:
        raise InputError("the frame is empty: there is nothing to draw.")
    steps = frame.index.to_numpy()
    if steps.dtype.kind not in "iuf":
        raise InputError(
            f"the frame's index begins with {steps[0]!r}, expected the numbers of training steps."
        )
    names = list(frame.columns)
    chosen = names if highlight is None else [name for name in names if name in highlight]
    if highlight is not None and (missing := [name for name in highlight if name not in names]):
        raise InputError(f"the frame has no column {missing[0]!r} to highlight; it has {names}.")
    if len(chosen) > theme.LEGEND:
        raise InputError(
            f"{len(chosen)} lines are too many to tell apart, expected {theme.LEGEND} at most: "
            "name some in highlight."
        )
    colors = dict(zip(chosen, theme.line_colors(len(chosen)), strict=True))
    ordered: Any = frame.iloc[np.argsort(steps, kind="stable")]
    x = ordered.index.tolist()
    traces = [
        _line(x, ordered[name], str(name), colors.get(name))
        for name in sorted(names, key=lambda name: name in colors)  # colour lies on grey
    ]
    for name, value in (levels or {}).items():
        traces.append(
            line(
                [x[0], x[-1]],
                [value, value],
                name=escape(name),
                color=theme.BASELINE,
                hover="%{y:.4g}",
                dash="dot",
                marked=False,
            )
        )
    return lines_figure(traces, x="training step", y=escape(quantity), title=title)


def _line(steps: list[Any], values: Any, name: str, color: str | None) -> Any:
    shade, hover = color or theme.BASELINE, "step %{x}: %{y:.4g}"
    drawn = line(steps, values.tolist(), name=escape(name), color=shade, hover=hover)
    drawn.showlegend = color is not None
    if color is None:
        drawn.update(opacity=0.5, line_width=1, marker_size=theme.DOT)
    return drawn
