"""Figures of patched runs: where, in layers and tokens, a difference lives."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none

from bloomlab.errors import InputError, ShapeError
from bloomlab.plots import theme
from bloomlab.plots.arrays import as_array
from bloomlab.plots.tokens import axis, label_room, places


def patching_figure(
    grid: object,
    tokens: Sequence[str],
    *,
    quantity: str = "share of the difference",
    title: str = "",
) -> go.Figure:
    """Heatmap of one number for each layer and token, such as `Patching.grid`; layers down.

    Colour runs evenly to both sides of 0, to the largest size. NaN stays blank. Of a grid with
    heads, draw one head or the sum: `grid.sum(-1)`; of one without tokens, see `head_map_figure`.

    Args:
        grid: array or tensor [layer pos].
        tokens: labels of the positions.
        quantity: name and unit, for the colour bar.
        title: of the figure.

    Raises:
        ShapeError: another number of axes, or not one token for each position.
        InputError: no number at all.
    """
    values = as_array("grid", grid, "layer pos")
    n_layer, n_pos = values.shape
    if n_pos != len(tokens):
        raise ShapeError("grid", got=values.shape, expected=f"({n_layer}, {len(tokens)})")
    finite = values[np.isfinite(values)]
    if not finite.size:
        raise InputError("grid holds no finite number.")
    top = float(np.abs(finite).max()) or 1.0
    heatmap = go.Heatmap(
        z=values,
        x=places(tokens),
        y=[f"layer {layer}" for layer in range(n_layer)],
        zmin=-top,
        zmax=top,
        colorscale=theme.DIVERGING,
        colorbar=theme.color_bar(quantity, theme.even_ticks(-top, top)),
        hoverongaps=False,
        hovertemplate="%{y} · %{x}: %{z:.4g}<extra></extra>",
    )
    layers = axis([str(layer) for layer in range(n_layer)], title="layer")
    layout = theme.stretched_cells(n_layer, n_pos, room=label_room(tokens)) | {
        "xaxis": axis(tokens, title="token"),
        "yaxis": layers | {"autorange": "reversed"},
    }
    return theme.figure([heatmap], title=title, layout=layout)
