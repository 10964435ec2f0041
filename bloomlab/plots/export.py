"""Figures as files: for a paper, a slide or a page."""

# pyright: standard
# plotly and kaleido come without types

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from bloomlab.errors import InputError, UnsupportedError
from bloomlab.plots import theme

PICTURES = (".pdf", ".png", ".svg")
PAGES = (".html",)
SIZE = {"width": 700, "height": 450}  # px, of a figure that has none


def save_figure(figure: go.Figure, path: str | Path, *, scale: int | float = 2.0) -> Path:
    """The file that was written; its suffix says how: .svg, .pdf, .png or .html.

    Pictures are on white, with dark text. A page has the figure's own colours and is whole: it
    works without a network.

    Args:
        figure: is not changed.
        path: of a folder that exists; a file that is there is replaced.
        scale: pixels of a .png for each pixel of the figure.

    Raises:
        InputError: another suffix, no such folder, or a scale that is not positive.
        UnsupportedError: a picture, without kaleido or a Chrome or Chromium that it can start.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in PICTURES + PAGES:
        kinds = ", ".join(PICTURES + PAGES)
        raise InputError(f"{path.name!r} ends in {path.suffix!r}, expected one of {kinds}.")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {str(path.parent)!r}. Make it first.")
    if not scale > 0:
        raise InputError(f"scale is {scale!r}, expected more than 0.")
    if suffix in PAGES:
        figure.write_html(path, include_plotlyjs=True, include_mathjax=False)
    else:
        path.write_bytes(_picture(on_paper(figure), suffix[1:], scale if suffix == ".png" else 1.0))
    return path


def on_paper(figure: go.Figure) -> go.Figure:
    """A copy of the figure on white, its text dark enough to read there (a contrast of 10)."""
    copy = go.Figure(_inked(figure.to_dict()))
    return copy.update_layout(paper_bgcolor=theme.PAPER)


def _inked(part: Any) -> Any:
    """The figure with the ink of paper wherever it had the ink of pages."""
    if isinstance(part, dict):
        return {key: _inked(value) for key, value in part.items()}
    if isinstance(part, list | tuple):
        return [_inked(value) for value in part]
    return theme.PAPER_INK if isinstance(part, str) and part == theme.INK else part


def _picture(figure: go.Figure, kind: str, scale: int | float) -> bytes:
    try:
        from kaleido import calc_fig_sync  # pyright: ignore[reportMissingImports]  # an extra
        from kaleido.errors import (  # pyright: ignore[reportMissingImports]  # an extra
            BrowserFailedError,
            ChromeNotFoundError,
        )
    except ImportError as error:
        raise _unsupported(kind, "kaleido is missing") from error
    size = {name: getattr(figure.layout, name) or default for name, default in SIZE.items()}
    options = {"format": kind, "scale": scale, **size}
    try:
        return calc_fig_sync(figure, opts=options, kopts={"mathjax": False})  # no network
    except (BrowserFailedError, ChromeNotFoundError) as error:
        raise _unsupported(kind, f"no browser could be started ({error})") from error


def _unsupported(kind: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"cannot write .{kind}: {why}. Run pip install 'bloomlab[export]', and have a Chrome or "
        "Chromium installed. A .html file needs neither."
    )
