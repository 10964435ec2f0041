"""Figures of probes: what is read, layer by layer, beside what that is worth."""

# pyright: standard
# pandas and plotly come without types

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from bloomlab.errors import InputError
from bloomlab.plots import theme
from bloomlab.plots.arrays import check_columns
from bloomlab.plots.lines import line, lines_figure
from bloomlab.plots.tokens import axis, escape, label_room

COLUMNS = ("site", "layer", "head", "accuracy", "low", "high")
BASELINES = {  # column of the frame -> name and dash of its line
    "random": ("random weights", "dash"),
    "control_accuracy": ("control task", "dashdot"),
    "embedding": ("embeddings", "dot"),
    "majority": ("majority", "longdash"),
}
ENDS = ("", "_low", "_high")
HOVER = "layer %{x}: %{y:.3f}"
UNITS = {
    "cross_entropy": "cross-entropy (nats per token)",
    "accuracy": "accuracy (share of tokens)",
}


def probe_figure(frame: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Accuracy by layer with its interval, a line a site, and the baselines of the first site.

    Args:
        frame: as in `Probes.frame`; baselines that it lacks, or that are NaN, are not drawn.
        title: of the figure.

    Raises:
        InputError: a column is missing, the frame is empty, or probes of heads; for those see
            `head_map_figure`.
    """
    check_columns(frame, COLUMNS)
    table: Any = frame[frame["layer"].notna()]
    if not len(table) or table["head"].notna().any():
        raise InputError("the frame has no probes of layers: draw those of heads as a head map.")
    sites = list(dict.fromkeys(table["site"]))
    traces: list[Any] = []
    for site, color in zip(sites, theme.line_colors(len(sites)), strict=True):
        part = table[table["site"] == site].sort_values("layer")
        above, below = part["high"] - part["accuracy"], part["accuracy"] - part["low"]
        traces.append(
            line(
                part["layer"].tolist(),
                part["accuracy"].tolist(),
                name=escape(str(site)),
                color=color,
                hover=HOVER,
            ).update(error_y=_error(above, below))
        )
    first = table[table["site"] == sites[0]].sort_values("layer")
    for column, (name, dash) in BASELINES.items():
        if column in first and first[column].notna().any():
            traces.append(
                line(
                    first["layer"].tolist(),
                    first[column].tolist(),
                    name=name,
                    color=theme.BASELINE,
                    hover=HOVER,
                    dash=dash,
                    marked=False,
                )
            )
    return lines_figure(
        traces,
        x="layer",
        y="accuracy (share of the test labels)",
        title=title,
        xaxis={"dtick": max(1, len(first) // 12)},
    )


def transfer_figure(frame: pd.DataFrame, *, title: str = "") -> go.Figure:
    """Accuracy (0 to 1) of each probe on each test: rows what it was fitted on, columns the tests.

    Args:
        frame: fitted, tested (names, such as languages), accuracy; pairs that it lacks stay blank.
        title: of the figure.

    Raises:
        InputError: a column is missing, the frame is empty, or a pair comes twice.
    """
    check_columns(frame, ("fitted", "tested", "accuracy"))
    table: Any = frame
    rows, columns = ([*dict.fromkeys(table[name])] for name in ("fitted", "tested"))
    if table.duplicated(["fitted", "tested"]).any():
        raise InputError("a pair of `fitted` and `tested` comes twice: choose one layer.")
    values = table.pivot(index="fitted", columns="tested", values="accuracy")
    values = values.loc[rows, columns].to_numpy(dtype=float)
    down, across = [str(name) for name in rows], [str(name) for name in columns]
    heatmap = go.Heatmap(
        z=values,
        x=[escape(name) for name in across],
        y=[escape(name) for name in down],
        zmin=0,
        zmax=1,
        colorscale=theme.SEQUENTIAL,
        colorbar=theme.color_bar("accuracy (share of the test labels)", theme.even_ticks(0.0, 1.0)),
        text=np.where(np.isnan(values), "", np.vectorize("{:.2f}".format)(values)),
        texttemplate="%{text}",
        hoverongaps=False,
        hovertemplate="fitted on %{y}, tested on %{x}: %{z:.3f}<extra></extra>",
    )
    layout = theme.square_cells(
        len(rows), len(columns), side=theme.SIDE, room=label_room([*down, *across])
    ) | {
        "xaxis": axis(across, title="tested on"),
        "yaxis": axis(down, title="fitted on") | {"autorange": "reversed", "scaleanchor": "x"},
    }
    return theme.figure([heatmap], title=title, layout=layout)


def amnesic_figure(
    frame: pd.DataFrame, *, metric: str = "cross_entropy", title: str = ""
) -> go.Figure:
    """What erasing a concept does to a metric, layer by layer, beside erasing random directions.

    Args:
        frame: as in `Amnesia.frame`, of erasers that were tried alone.
        metric: which of its metrics.
        title: of the figure.

    Raises:
        InputError: a column is missing, or no row has the metric and a layer.
    """
    names = {"effect": "the concept", "control": "random directions"}
    check_columns(frame, ("layer", "metric", *(f"{n}{end}" for n in names for end in ENDS)))
    table: Any = frame[(frame["metric"] == metric) & frame["layer"].notna()]
    if not len(table):
        raise InputError(f"the frame has no {metric!r} of a layer.")
    table = table.sort_values("layer")
    colors = {"effect": theme.ACCENT, "control": theme.BASELINE}
    traces = []
    for column, name in names.items():
        middle, low, high = (table[f"{column}{end}"] for end in ENDS)
        traces.append(
            line(
                table["layer"].tolist(),
                middle.tolist(),
                name=name,
                color=colors[column],
                hover=HOVER,
                dash="solid" if column == "effect" else "dash",
            ).update(error_y=_error(high - middle, middle - low))
        )
    return lines_figure(
        traces,
        x="layer at which is erased",
        y=f"change of {UNITS.get(metric, metric)}",
        title=title,
        xaxis={"dtick": max(1, len(table) // 12)},
        yaxis={"zeroline": True, "zerolinecolor": theme.FAINT},
    )


def _error(above: Any, below: Any) -> dict[str, Any]:
    return {"array": above.tolist(), "arrayminus": below.tolist(), "thickness": 1}
