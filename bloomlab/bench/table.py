"""Rows of a benchmark as lines of text or of Markdown."""

import statistics

from bloomlab.bench.timing import Row
from bloomlab.sizes import readable

HEADINGS = ("case", "bloomlab", "compared with", "", "ratio", "quartiles", "best/best", "")
WIDTHS = (34, 9, 26, 9, 11, 13, 10, 0)
LEGEND = (
    "times and bytes are medians; ratio: theirs / ours (above 1: bloomlab is better), 'costs': "
    "ours / theirs, %: share of the limit; median of the turns, with quartiles"
)


def heading(*, markdown: bool) -> str:
    """What stands above the rows."""
    if not markdown:
        return _line(HEADINGS)
    return f"| {' | '.join(HEADINGS)} |\n|---|--:|---|--:|--:|--:|--:|---|"


def line(row: Row, *, markdown: bool) -> str:
    """A row under `heading`."""
    show = _amount if row.unit == "B" else _duration
    low, high = row.quartiles
    once = len(row.ours) == 1
    fields = (
        row.case,
        show(statistics.median(row.ours)),
        row.peer,
        show(statistics.median(row.theirs)),
        _ratio(row, row.ratio),
        "" if once else f"{_number(row, low)} to {_number(row, high)}",
        "" if once else _number(row, row.best),
        row.note,
    )
    return f"| {' | '.join(fields)} |" if markdown else _line(fields)


def _line(fields: tuple[str, ...]) -> str:
    right = (1, 3, 4, 5, 6)
    cells = [
        text.rjust(width) if place in right else text.ljust(width)
        for place, (text, width) in enumerate(zip(fields, WIDTHS, strict=True))
    ]
    return "  ".join(cells).rstrip()


def _ratio(row: Row, value: float) -> str:
    return f"costs {_number(row, value)}" if row.kind == "cost" else _number(row, value)


def _number(row: Row, value: float) -> str:
    return f"{value:.0%}" if row.kind == "share" else f"{value:.2f}x"


def _amount(count: float) -> str:
    return readable(round(count))


def _duration(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:#.3g}".rstrip(".") + f" {unit}"
    return f"{seconds / 1e-6:.0f} µs"
