"""Every colour, size and font of a figure, chosen to work on light and on dark pages.

The background is transparent, so each colour is seen on white and on near-black (#111111). No
colour reaches a contrast of 4.5 on both (the best possible is 4.34); the opaque ones reach 4.1.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go  # pyright: ignore[reportMissingTypeStubs]  # it has none

INK = "#797979"  # text
FAINT = "rgba(121,121,121,0.28)"  # grid lines
BASELINE = "#7a7a85"  # what is compared against
ACCENT = "#d54b05"  # what was changed
# one luminance: opacity gives the order
RAMP = ("#1571fe", "#6c62ff", "#9d4afd", "#db1fb1", "#d54b05")
FLOOR = 0.1  # opacity of a zero: the cell is there, and empty

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"
FONT_SIZE = 12
TITLE_SIZE = 15
LINE_WIDTH = 2
MARKER_SIZE = 9

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
DIVERGING = [[0.5 - at / 2, _wash(RAMP[:1], at)] for at in reversed(_STEPS)] + [
    [0.5 + at / 2, _wash(RAMP[-1:], at)] for at in _STEPS
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
    margin = {"l": room + 20, "r": 40, "t": 74, "b": 50}
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"}
    height = 2.5 * PITCH * rows + 124
    return {"width": BARS + room + 60, "height": height, "margin": margin, "legend": legend}


def _framed(width: int, height: int, *, left: int, below: int) -> dict[str, Any]:
    """Room for labels on two sides, axis titles, a title above, a colour bar at the right."""
    margin = {"l": left + 40, "r": 100, "t": 48, "b": below + 50}
    plot = max(SIDE // 2, width), max(BAR_LENGTH, height)
    return {"width": plot[0] + left + 140, "height": plot[1] + below + 98, "margin": margin}
