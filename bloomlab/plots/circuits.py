"""Figures of circuits: which components feed which, and how much hangs on it."""

# pyright: standard
# pandas and plotly come without types

import re
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bloomlab.errors import InputError
from bloomlab.plots import theme
from bloomlab.plots.arrays import check_columns, check_top
from bloomlab.plots.tokens import escape

NODE = re.compile(r"embed|logits|L(?P<layer>\d+)H(?P<head>\d+)|MLP(?P<mlp>\d+)|L(?P<of>\d+) mlp")
READS = {"q": 0.2, "k": 0.0, "v": -0.2}  # lanes above the middle of a head's box
SIDE = 0.24  # columns from the middle of a box to where an edge begins or ends, behind the box
CLEAR, APART = 0.75, 0.14  # lanes of an edge above the boxes that it passes, and above another edge
AT = np.linspace(0.0, 1.0, 33)
Place = tuple[int, float]  # column and height of a box


def edges_figure(
    frame: pd.DataFrame, *, top: int = 40, value: str = "score", title: str = ""
) -> go.Figure:
    """The strongest edges between components, layer after layer from left to right.

    Width and opacity of an edge are the size of its value, relative to the largest; its colour is
    the sign: edges above 0 go over the columns that they pass, those below 0 under them. A layer's
    MLP stands right of its heads. Edges to queries, keys and values end at the upper part, the
    middle and the lower part of a head.

    Args:
        frame: sender, receiver and a column of values: as in `EdgeScores.frame`,
            `PathPatching.frame` (value="effect" or "share") or `FoundCircuit.frame` ("change").
        top: how many edges; edges without a number are left out.
        value: the column.
        title: of the figure.

    Raises:
        InputError: a column is missing, no edge has a number, a name that is no component, or `top`
            below 1.
    """
    check_columns(frame, ("sender", "receiver", value))
    check_top(top)
    table: Any = frame[np.isfinite(frame[value].to_numpy(dtype=float))]
    if not len(table):
        raise InputError(f"no edge has a finite {value!r}: there is nothing to draw.")
    size = table[value].abs()
    edges = table.loc[size.sort_values(ascending=False, kind="stable").index[:top]]
    at = _positions([*edges["sender"], *edges["receiver"]])
    most = float(edges[value].abs().max()) or 1.0
    paths = Paths(at)
    traces = [
        _line(str(edge["sender"]), str(edge["receiver"]), float(edge[value]), paths, most)
        for edge in edges.to_dict("records")
    ][::-1]  # the strongest last, on top
    heights = [*(y for line in traces for y in line.y), *(y for _, y in at.values())]
    low, high, columns = min(heights), max(heights), max(x for x, _ in at.values()) + 1
    signs = ((">", theme.POSITIVE, edges[value] > 0), ("<", theme.NEGATIVE, edges[value] < 0))
    for sign, color, there in signs:
        name, line = escape(f"{value} {sign} 0"), {"color": color, "width": 4}
        if there.any():
            traces.append(go.Scatter(x=[None], y=[None], mode="lines", name=name, line=line))
    layout = theme.boxes(columns, high - low) | {
        "xaxis": {"visible": False, "range": [-0.5, columns - 0.5], "fixedrange": True},
        "yaxis": {"visible": False, "range": [low - 0.5, high + 0.5]},
        "annotations": [
            {
                "text": escape(name),
                "x": x,
                "y": y,
                "showarrow": False,
                "bgcolor": theme.NODE,
                "font": {"color": theme.NODE_INK},
                "borderpad": 4,
            }
            for name, (x, y) in at.items()
        ],
        "showlegend": True,
    }
    return theme.figure(traces, title=title, layout=layout)


def _line(sender: str, receiver: str, value: float, paths: "Paths", most: float) -> Any:
    share = abs(value) / most
    x, y = paths.of(sender, receiver, over=value >= 0)
    return go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={
            "color": theme.POSITIVE if value >= 0 else theme.NEGATIVE,
            "width": theme.edge_width(share),
        },
        opacity=theme.edge_opacity(share),
        showlegend=False,
        hovertemplate=f"{escape(sender)} → {escape(receiver)}: {value:+.4g}<extra></extra>",
    )


class Paths:
    """Ways of edges from the right of a box to the left of another, around the boxes between."""

    def __init__(self, at: dict[str, Place]) -> None:
        self.at = at
        self.tops: dict[int, float] = {}  # of each column, above its middle
        for column, y in at.values():
            self.tops[column] = max(y, self.tops.get(column, 0.0))
        self.taken: Counter[tuple[int, int, bool]] = Counter()

    def of(self, sender: str, receiver: str, *, over: bool) -> tuple[list[float], list[float]]:
        """Points of an edge; it goes over the columns that it passes, or under them."""
        reader, _, read = receiver.partition(".")
        (x0, y0), (x1, y1) = self.at[sender], self.at[reader]
        y1 += READS.get(read, 0.0)
        straight = y0 + (y1 - y0) * AT
        x = x0 + SIDE + (x1 - x0 - 2 * SIDE) * AT
        if not (passed := range(x0 + 1, x1)):
            return x.tolist(), straight.tolist()
        sign, edge = (1 if over else -1), (x0, x1, over)
        level = max(max(self.tops[column] for column in passed), sign * (y0 + y1) / 2) + CLEAR
        level += APART * (len(passed) - 1 + self.taken[edge])
        self.taken[edge] += 1
        bow = 1 - (2 * AT - 1) ** 4  # up at once, then level
        return x.tolist(), (straight * (1 - bow) + sign * level * bow).tolist()


def _positions(names: list[Any]) -> dict[str, Place]:
    """Column and height of each component: layers to the right, heads in order from the top."""
    keys = {name: _key(name) for name in dict.fromkeys(str(n).partition(".")[0] for n in names)}
    columns: dict[float, list[str]] = {}
    for name in sorted(keys, key=lambda name: keys[name]):
        columns.setdefault(keys[name][0], []).append(name)
    return {
        name: (column, (len(some) - 1) / 2 - place)
        for column, some in enumerate(columns.values())
        for place, name in enumerate(some)
    }


def _key(name: str) -> tuple[float, int]:
    """Layer and number in it; an MLP stands half a layer behind its heads."""
    if (match := NODE.fullmatch(name)) is None:
        raise InputError(
            f"{name!r} is no component. Names are embed, heads as L0H1, MLPs as MLP0, and logits."
        )
    if name in ("embed", "logits"):
        return (-1.0 if name == "embed" else float("inf")), 0
    if match["head"]:
        return float(match["layer"]), int(match["head"])
    return float(match["mlp"] or match["of"]) + 0.5, 0
