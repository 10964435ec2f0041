"""Figures of the residual stream: arrays in, a plotly figure out."""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none

from bloomlab.errors import ShapeError
from bloomlab.plots import theme
from bloomlab.plots.arrays import as_array
from bloomlab.plots.tokens import axis, label_room, places


def norm_figure(norms: object, tokens: Sequence[str], *, title: str = "") -> go.Figure:
    """Heatmap of residual-stream norms [layer pos]; layer 0 is after the embedding LayerNorm.

    Colour follows the logarithm: norms grow by orders of magnitude over layers, and a few tokens
    (the first one above all) stand far out. The colour bar and the hover text give the norm itself;
    a norm of zero is left blank.

    Raises:
        ShapeError: if there is not one token for each position.
    """
    norms = as_array("norms", norms, "layer pos")
    n_layer, n_pos = norms.shape
    if n_pos != len(tokens):
        raise ShapeError("norms", got=norms.shape, expected=f"({n_layer}, {len(tokens)})")
    positive = norms[norms > 0]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 1.0)
    heatmap = go.Heatmap(
        z=np.log10(norms, where=norms > 0, out=np.full(norms.shape, np.nan)),
        x=places(tokens),
        y=[f"layer {layer}" for layer in range(n_layer)],
        customdata=norms,
        colorscale=theme.SEQUENTIAL,
        colorbar=theme.color_bar(
            "residual norm (L2)",
            {math.log10(tick): f"{tick:.3g}" for tick in np.geomspace(low, high, 5).tolist()},
        ),
        hoverongaps=False,
        hovertemplate="%{y} · %{x}: norm %{customdata:.4g}<extra></extra>",
    )
    layers = axis([str(layer) for layer in range(n_layer)], title="layer (0 = embedding)")
    layout = theme.stretched_cells(n_layer, n_pos, room=label_room(tokens)) | {
        "xaxis": axis(tokens, title="token"),
        "yaxis": layers | {"autorange": "reversed"},
    }
    return theme.figure([heatmap], title=title, layout=layout)
