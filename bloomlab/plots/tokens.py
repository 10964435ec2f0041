"""Tokens along an axis: escaped, shortened and thinned, so that labels never collide or merge.

Labels may come raw or already HTML-escaped; both are drawn as the text they stand for.
"""

import html
import math
import unicodedata
from collections.abc import Sequence
from typing import Any

from bloomlab.plots import theme


def escape(label: str) -> str:
    """The label as plotly draws it verbatim (plotly reads `<b>` and `&lt;` as HTML)."""
    return html.escape(html.unescape(label), quote=False)


def isolate(label: str) -> str:
    """The escaped label in a Unicode isolate: right-to-left script leaves its neighbours alone."""
    return f"\u2068{escape(label)}\u2069"


def places(tokens: Sequence[str]) -> list[str]:
    """Position and token, as in `3 ␣the`: unique names, so that repeated tokens stay apart."""
    return [f"{pos} {isolate(token)}" for pos, token in enumerate(tokens)]


def axis(
    labels: Sequence[str],
    *,
    title: str,
    width: int = 1,
    pitch: int = 1,
    most: int = theme.MAX_TICKS,
) -> dict[str, Any]:
    """Axis with a label in the middle of each block of `width` cells, a block every `pitch` cells.

    Ticks stand at numbers, not at the labels; of more than `most` labels every n-th is drawn.
    """
    step = max(1, math.ceil(len(labels) / most))
    shown = range(0, len(labels), step)
    middle = (width - 1) / 2
    return {
        "type": "category",
        "autorange": True,
        "title": {"text": title},
        "tickmode": "array",
        "tickvals": [block * pitch + middle for block in shown],
        "ticktext": [escape(_short(labels[block])) for block in shown],
        "autotickangles": [0, -45, -90],
        "showgrid": False,
        "constrain": "domain",
    }


def steps_axis(labels: Sequence[str], *, title: str) -> dict[str, Any]:
    """`axis` for bars and curves: label n stands at the number n."""
    whole = {"type": "linear", "autorange": False, "range": [-0.5, len(labels) - 0.5]}
    return axis(labels, title=title) | whole


def label_room(labels: Sequence[str]) -> int:
    """Pixels that the longest of the labels takes as a tick; East Asian letters are wide."""
    return math.ceil(max((_width(_short(label)) for label in labels), default=0.0))


def fitted(label: str, room: int) -> str:
    """The label, escaped, in at most `room` pixels; "" where not one letter fits beside "…"."""
    text = html.unescape(label)
    if _width(text) > room:
        while text and _width(text + "…") > room:
            text = text[:-1]
        text = text and text + "…"
    return html.escape(text, quote=False)


def _width(text: str) -> float:
    """Pixels of a text; marks above and below letters take none."""
    wide = {"W": 1.0, "F": 1.0}
    return theme.FONT_SIZE * sum(
        0.0
        if unicodedata.category(char) in ("Mn", "Me", "Cf")
        else wide.get(unicodedata.east_asian_width(char), 0.62)
        for char in text
    )


def _short(label: str) -> str:
    text, limit = html.unescape(label), theme.MAX_TICK_CHARS
    return text if len(text) <= limit else text[: limit - 1] + "…"
