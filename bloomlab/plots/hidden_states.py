"""Figures of the residual stream: arrays in, a plotly figure out."""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none

from bloomlab.errors import InputError, ShapeError
from bloomlab.plots import theme
from bloomlab.plots.arrays import as_array, check_labels
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


def cosine_figure(cosines: object, tokens: Sequence[str], *, title: str = "") -> go.Figure:
    """Heatmap of cosines [layer pos], as of the stream before and after each layer; layers down.

    Colour runs from -1 to 1; NaN, as of a stream of zeros, stays blank.

    Raises:
        ShapeError: another number of axes, or not one token for each position.
        InputError: numbers outside -1 to 1, or none.
    """
    values = as_array("cosines", cosines, "layer pos")
    check_labels("cosines", values, tokens)
    top = float(np.abs(values[~np.isnan(values)]).max(initial=0.0))
    if top > 1.001:
        raise InputError(f"cosines has a number of size {top:.3g}, expected -1 to 1.")
    n_layer, n_pos = values.shape
    heatmap = go.Heatmap(
        z=values,
        x=places(tokens),
        y=[f"layer {layer}" for layer in range(n_layer)],
        zmin=-1,
        zmax=1,
        colorscale=theme.DIVERGING,
        colorbar=theme.color_bar("cosine", theme.even_ticks(-1.0, 1.0)),
        hoverongaps=False,
        hovertemplate="%{y} · %{x}: cosine %{z:.4f}<extra></extra>",
    )
    layers = axis([str(layer) for layer in range(n_layer)], title="layer")
    layout = theme.stretched_cells(n_layer, n_pos, room=label_room(tokens)) | {
        "xaxis": axis(tokens, title="token"),
        "yaxis": layers | {"autorange": "reversed"},
    }
    return theme.figure([heatmap], title=title, layout=layout)


def trajectory_figure(points: object, tokens: Sequence[str], *, title: str = "") -> go.Figure:
    """Ways of tokens through a plane, layer by layer, a line a token; both axes have one scale.

    An open circle is where a token starts, a full one where it ends. Tokens are named in a legend
    if they are few, and in the hover text.

    Args:
        points: places in the plane of two principal components, array or tensor [layer pos 2].
        tokens: labels of the positions.
        title: of the figure.

    Raises:
        ShapeError: another number of axes, other than two components, or not one token for each
            position.
        InputError: no finite number.
    """
    values = as_array("points", points, "layer pos component")
    check_labels("points", values, tokens, along=1)
    check_labels("points", values, ("component 1", "component 2"))
    if not np.isfinite(values).any():
        raise InputError("points holds no finite number.")
    n_layer, few = len(values), len(tokens) <= theme.LEGEND
    layers = [f"layer {layer}" for layer in range(n_layer)]
    sizes = [theme.MARKER_SIZE, *[theme.DOT] * (n_layer - 2), theme.MARKER_SIZE][-n_layer:]
    ends = {"size": theme.MARKER_SIZE, "color": theme.BASELINE}
    keys = [
        go.Scatter(x=[None], y=[None], mode="markers", name=name, marker=ends | {"symbol": symbol})
        for name, symbol in (("first layer", "circle-open"), ("last layer", "circle"))
    ]
    lines = [
        go.Scatter(
            x=values[:, pos, 0],
            y=values[:, pos, 1],
            customdata=layers,
            mode="lines+markers",
            name=name,
            showlegend=few,
            line={"width": theme.LINE_WIDTH - 0.5, "color": color},
            marker={
                "color": color,
                "size": sizes,
                "symbol": ["circle-open", *["circle"] * (n_layer - 1)],
                "line": {"width": [1.5, *[0] * (n_layer - 1)]},
                "opacity": 1,
            },
            hovertemplate="%{customdata}: (%{x:.3g}, %{y:.3g})",
        )
        for pos, (name, color) in enumerate(
            zip(places(tokens), theme.line_colors(len(tokens)), strict=True)
        )
    ]
    layout = theme.square(room=label_room(tokens)) | {
        "xaxis": {"title": {"text": "component 1"}},
        "yaxis": {"title": {"text": "component 2"}, "scaleanchor": "x", "scaleratio": 1},
        "showlegend": True,
    }
    return theme.figure([*keys, *lines], title=title, layout=layout)
