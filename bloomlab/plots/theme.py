"""Every colour, size and font of a figure, chosen to work on light and on dark pages.

The background is transparent, so each colour is seen on white and on near-black (#111111). No
colour reaches a contrast of 4.5 on both (the best possible is 4.34); the opaque ones reach 4.1.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none

INK = "#797979"  # text
FAINT = "rgba(121,121,121,0.28)"  # grid lines
BASELINE = "#7a7a85"  # what is compared against
ACCENT = "#d54b05"  # what was changed
PAPER, PAPER_INK = "#ffffff", "#3c3c3c"  # page and text of what is printed
NODE, NODE_INK = "#63636d", "#ffffff"  # a box and its text; marks that must show on any colour
# one luminance: opacity gives the order
RAMP = ("#1571fe", "#6c62ff", "#9d4afd", "#db1fb1", "#d54b05")
MARK = {"size": 8, "color": NODE_INK, "line": {"color": NODE, "width": 1.5}}
NEGATIVE, POSITIVE = RAMP[0], RAMP[-1]
FLOOR = 0.1  # opacity of a zero: the cell is there, and empty
LIGHTEST, TINTED = 0.04, 0.32  # opacities of cells under text

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
FONT_SIZE = 12
TITLE_SIZE = 15
LINE_WIDTH = 2
MARKER_SIZE = 9
DOT = 4  # a marker between others
LEGEND = 24  # most lines that are named beside a plot

MAX_TICKS = 48  # labels on one side of a heatmap
MAX_TICK_CHARS = 14
PITCH = 14  # px, the least distance of two labels
SIDE = 360  # px, the longer side of a heatmap of few tokens
BARS = 210  # px
MAX_SIDE = PITCH * MAX_TICKS  # px, of a heatmap of many tokens; so, the most cells that show
LARGEST_CELL = 60  # px
GRID_SIDE = 800  # px, the longer side of a grid of heads
MOSAIC = 768  # cells on that side
SMALLEST_TILE = 8  # cells
PANEL_SIDE, MAX_PANEL = 230, 300  # px, one of several heatmaps side by side; the most it may have
TEXT_CELL = 66  # px, width of a cell that holds a token
NARROWEST, LOWEST = 24, 13  # px, the smallest cell that holds text
BOX, LANE = 78, 38  # px, from one box of a graph to the next, across and down
BAR_LENGTH = 180  # px, colour bar; the least height of a plot that has one
CURVES = {"width": 680, "height": 400}
BAR_NAMES = {"type": "linear", "autorange": "reversed", "ticklabelstandoff": 6}

# A live view in JupyterLab knows the theme of the page: there, text has the full contrast.
CSS = """<style>
.bloomlab-view .main-svg > g:not(.hoverlayer) text { fill: var(--jp-ui-font-color1) !important; }
.bloomlab-error { color: var(--jp-error-color1, #d32f2f); }
</style>"""


def _mix(ramp: Sequence[str], at: float, opacity: float) -> str:
    """The colour at `at` (0..1) along a ramp of hex colours."""
    stops = np.linspace(0, 1, len(ramp))
    channels = [[int(color[i : i + 2], 16) for color in ramp] for i in (1, 3, 5)]
    red, green, blue = (round(float(np.interp(at, stops, channel))) for channel in channels)
    return f"rgba({red},{green},{blue},{opacity:.3f})"


def _wash(ramp: Sequence[str], at: float) -> str:
    return _mix(ramp, at, FLOOR + (1 - FLOOR) * at)


_STEPS: list[float] = np.linspace(0, 1, 33).tolist()
SEQUENTIAL = [[at, _wash(RAMP, at)] for at in _STEPS]
SQUARE_ROOT = [[at**2, _wash(RAMP, at)] for at in _STEPS]  # so that small weights show
TINT = [[at, _mix(RAMP, at, LIGHTEST + (TINTED - LIGHTEST) * at)] for at in _STEPS]  # under text
_ZERO = _mix((INK, INK), 0.0, FLOOR)  # neither colour
DIVERGING = [[0.5 - at / 2, _wash(RAMP[:1], at) if at else _ZERO] for at in reversed(_STEPS)] + [
    [0.5 + at / 2, _wash(RAMP[-1:], at) if at else _ZERO] for at in _STEPS
]

_AXIS: dict[str, Any] = {
    "automargin": True,
    "color": INK,
    "gridcolor": FAINT,
    "linecolor": FAINT,
    "tickcolor": FAINT,
    "title": {"standoff": 10},
    "zeroline": False,
}
TEMPLATE = go.layout.Template(
    layout={
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": FONT, "size": FONT_SIZE, "color": INK},
        "title": {
            "font": {"size": TITLE_SIZE},
            "x": 0,
            "xref": "paper",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
            "pad": {"t": 14},
        },
        "margin": {"l": 60, "r": 20, "t": 48, "b": 50},
        "hoverlabel": {
            "bgcolor": "#2b2b2b",
            "bordercolor": INK,
            "font": {"family": FONT, "size": FONT_SIZE + 1, "color": "#ffffff"},
            "align": "left",
        },
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)",
            "color": INK,
            "activecolor": ACCENT,
            # data stays here: no upload button; the others crowd out the title
            "remove": ["sendChartToCloud", "select", "lasso", "zoomin", "zoomout", "autoscale"],
        },
        "xaxis": _AXIS,
        "yaxis": _AXIS,
    }
)


def figure(traces: Sequence[Any], *, title: str, layout: Mapping[str, Any]) -> go.Figure:
    """The traces in the lab's template; `layout` holds axes, and sizes in pixels."""
    return go.Figure(list(traces), {"template": TEMPLATE, "title": {"text": title}, **layout})


def panel_title(text: str, domain: Sequence[float]) -> dict[str, Any]:
    """An annotation above a panel that spans `domain`, 0 to 1, of the figure's width."""
    return {
        "text": text,
        "x": sum(domain) / 2,
        "y": 1,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "center",
        "yanchor": "bottom",
        "showarrow": False,
    }


def attention_colors() -> dict[str, Any]:
    """Heatmap settings for probabilities of attention: fixed 0..1, square-root colour."""
    ticks = {0.0: "0", 0.1: "0.1", 0.25: "0.25", 0.5: "0.5", 0.75: "0.75", 1.0: "1"}
    bar = color_bar("attention (probability)", ticks)
    return {"zmin": 0.0, "zmax": 1.0, "colorscale": SQUARE_ROOT, "colorbar": bar}


def color_bar(title: str, ticks: dict[float, str]) -> dict[str, Any]:
    """A slim colour bar whose title says quantity and unit; `ticks` are label by position."""
    return {
        "title": {"text": title, "side": "right"},
        "tickvals": list(ticks),
        "ticktext": list(ticks.values()),
        "thickness": 12,
        "outlinewidth": 0,
        "xpad": 8,
        "lenmode": "pixels",
        "len": BAR_LENGTH,
        "y": 1,
        "yanchor": "top",
        "ypad": 0,
    }


def even_ticks(low: float, high: float) -> dict[float, str]:
    """Five ticks of a colour bar, from end to end."""
    return {tick: f"{tick:.3g}" for tick in np.linspace(low, high, 5).tolist()}


def line_colors(count: int) -> list[str]:
    """`count` opaque colours in the order of the ramp, equally visible on light and dark."""
    return [_mix(RAMP, at, 1.0) for at in np.linspace(0, 1, count).tolist()]


def square_cells(rows: int, columns: int, *, side: int, room: int) -> dict[str, Any]:
    """Layout of a heatmap with square cells; `room` is the length of its labels in pixels."""
    longest = max(rows, columns)
    longer_side = max(side, PITCH * min(longest, MAX_TICKS))
    cell = max(1, min(LARGEST_CELL, longer_side // longest))  # whole pixels: crisp
    return _framed(columns * cell, rows * cell, left=room, below=room)


def stretched_cells(rows: int, columns: int, *, room: int) -> dict[str, Any]:
    """Layout of a heatmap of layers by tokens, whose cells need not be square."""
    width, height = 2 * PITCH * columns, 3 * PITCH * min(rows, MAX_TICKS) // 2
    return _framed(min(GRID_SIDE, width), height, left=0, below=room)


def bars(rows: int, *, room: int) -> dict[str, Any]:
    """Layout of pairs of horizontal bars, their legend above them."""
    margin = {"l": room + 44, "r": 40, "t": 74, "b": 50}
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
    height = 2.5 * PITCH * rows + 124
    return {"width": BARS + room + 84, "height": height, "margin": margin, "legend": legend}


def signed_bars(rows: int, *, room: int) -> dict[str, Any]:
    """Layout of horizontal bars to both sides of 0."""
    margin = {"l": room + 44, "r": 30, "t": 48, "b": 56}
    return {"width": SIDE + room + 74, "height": 1.5 * PITCH * rows + 104, "margin": margin}


def timeline(steps: int, *, room: int, panels: int = 1) -> dict[str, Any]:
    """Layout of bars or curves over tokens, their legend above them at the right."""
    width = min(GRID_SIDE, max(CURVES["width"] - 90, 2 * PITCH * steps))
    margin = {"l": 70, "r": 20, "t": 78, "b": room + 50}
    height = (BARS + 30 if panels == 1 else 150 * panels) + room + 128
    legend = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}
    return {"width": width + 90, "height": height, "margin": margin, "legend": legend}


def square(*, room: int) -> dict[str, Any]:
    """Layout of a plane, and a legend of tokens at its right."""
    margin = {"l": 70, "r": room + 90, "t": 48, "b": 50}
    return {"width": 500 + room + 160, "height": 500 + 98, "margin": margin}


def boxes(columns: int, lanes: float) -> dict[str, Any]:
    """Layout of a graph of boxes, in columns of a few of them."""
    margin = {"l": 10, "r": 10, "t": 78, "b": 10}
    legend = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom"}
    height = math.ceil(LANE * (lanes + 1)) + 88
    return {"width": BOX * columns + 20, "height": height, "margin": margin, "legend": legend}


def edge_width(share: float) -> float:
    """Pixels of a line for a value that is this share of the largest."""
    return 0.75 + 5.25 * share


def edge_opacity(share: float) -> float:
    """Opacity of that line."""
    return 0.45 + 0.55 * share


def panels(
    rows: int, columns: int, *, count: int, room: int
) -> tuple[dict[str, Any], list[list[float]], dict[str, Any], int]:
    """Heatmaps with square cells side by side, and two colour bars at the right.

    Layout, domain of each heatmap, place of the second bar, and most labels on a side.
    """
    cell = max(1, min(LARGEST_CELL, round(PANEL_SIDE / max(rows, columns))))
    wide, high = max(columns * cell, BAR_LENGTH), rows * cell
    gap = 24
    width, height = count * wide + (count - 1) * gap, max(BAR_LENGTH, high)
    lefts = [place * (wide + gap) for place in range(count)]
    domains = [[left / width, (left + columns * cell) / width] for left in lefts]
    layout = {
        "width": width + room + 60 + 170,
        "height": height + room + 74 + 50,
        "margin": {"l": room + 60, "r": 170, "t": 74, "b": room + 50},
        "yaxis": {"domain": [1 - high / height, 1.0]},
    }
    return layout, domains, {"x": 1 + 85 / width}, max(rows, columns) * cell // PITCH


def text_cells(rows: int, columns: int, *, room: int) -> tuple[dict[str, Any], int]:
    """Layout of a heatmap with a token in each cell, and the pixels a text has (0: too few)."""
    cell = min(TEXT_CELL, GRID_SIDE // columns)
    height = 3 * PITCH * min(rows, MAX_TICKS) // 2
    layout = _framed(min(GRID_SIDE, TEXT_CELL * columns), height, left=0, below=room)
    return layout, cell - 4 if cell >= NARROWEST and height // rows >= LOWEST else 0


def _framed(width: int, height: int, *, left: int, below: int) -> dict[str, Any]:
    """Room for labels on two sides, axis titles, a title above, a colour bar at the right."""
    margin = {"l": left + 40, "r": 100, "t": 48, "b": below + 50}
    plot = max(SIDE // 2, width), max(BAR_LENGTH, height)
    return {"width": plot[0] + left + 140, "height": plot[1] + below + 98, "margin": margin}
