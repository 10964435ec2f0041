"""Executed notebooks as pages that need no network: `python docs/pages.py EXECUTED_DIR OUT_DIR`.

EXECUTED_DIR holds notebooks run with `PLOTLY_RENDERER=plotly_mimetype`; OUT_DIR gets a page for
each, and beside them one copy of plotly.js and one style sheet. `BLOOMLAB_NOTEBOOK_PAGES=OUT_DIR
mkdocs build --strict` takes them into the site.
"""

import html
import re
import sys
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Any

import nbformat
import plotly.io
from nbconvert import HTMLExporter
from nbformat import NotebookNode
from plotly.offline import get_plotlyjs
from pygments.formatters import HtmlFormatter

PLOTLY = "plotly.min.js"
STYLE = "notebook.css"
FIGURE = "application/vnd.plotly.v1+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
BAR = re.compile(r"\d+%\|.*\|\s*\d+/\d+")  # a progress bar of tqdm, as text
LOADED = re.compile(  # what a browser would fetch by itself
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\ssrc\s*=\s*["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b[^>]*?\shref\s*=\s*["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|@import\s+(?:url\()?["']?((?:https?:)?//[^"'\s)]+)""",
    re.IGNORECASE,
)
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title} - bloomlab</title>
<link rel="stylesheet" href="{style}">
{scripts}</head>
<body>
<nav>{links}</nav>
<main>
{body}
</main>
<nav>{links}</nav>
</body>
</html>
"""


def write_pages(executed: Path, out: Path) -> list[Path]:
    """A page for every notebook of a folder, in the order of their names; the pages' paths.

    Args:
        executed: folder of executed notebooks.
        out: folder for the pages; made if it is not there.

    Raises:
        ValueError: no notebooks, or one that would load something from the network.
    """
    notebooks = {
        file.stem: nbformat.read(file, as_version=4)  # pyright: ignore[reportUnknownMemberType]
        for file in sorted(executed.glob("*.ipynb"))
    }
    if not notebooks:
        raise ValueError(f"no notebooks in {executed}.")
    out.mkdir(parents=True, exist_ok=True)
    titles = {name: title_of(name, notebook) for name, notebook in notebooks.items()}
    written = []
    for name, notebook in notebooks.items():
        page = page_of(notebook, title=titles[name], links=_links(name, titles))
        if found := LOADED.search(page):
            raise ValueError(f"{name}: the page would load {next(filter(None, found.groups()))}.")
        written.append(out / f"{name}.html")
        written[-1].write_text(page, encoding="utf-8")
    (out / PLOTLY).write_text(get_plotlyjs(), encoding="utf-8")
    (out / STYLE).write_text(_style(), encoding="utf-8")
    return written


def page_of(notebook: NotebookNode, *, title: str, links: str = "") -> str:
    """A whole page: the notebook's text, code, figures and pictures.

    Args:
        notebook: an executed notebook; stays as it is.
        title: for the browser's tab.
        links: HTML of the bars above and below.
    """
    shown = deepcopy(notebook)
    figures = [_still(cell, number) for number, cell in enumerate(shown.cells)]
    exporter = HTMLExporter(
        template_name="basic", exclude_input_prompt=True, exclude_output_prompt=True
    )
    body, _ = exporter.from_notebook_node(shown)
    scripts = f'<script src="{PLOTLY}"></script>\n' if any(figures) else ""
    return PAGE.format(
        title=html.escape(title), style=STYLE, scripts=scripts, links=links, body=body
    )


def title_of(name: str, notebook: NotebookNode) -> str:
    """The heading of the first cell, or the file's name."""
    text = notebook.cells[0].source if notebook.cells else ""
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1] if found else name


def _still(cell: NotebookNode, number: int) -> int:
    """Turn a cell's outputs into what a page can show; how many figures it has."""
    kept, counter = [], count()
    for output in cell.get("outputs", []):
        data: Any = output.get("data", {})
        live = data.pop(WIDGET, None) is not None
        if FIGURE in data:
            figure = {key: data[FIGURE][key] for key in ("data", "layout")}
            output["data"] = {"text/html": _figure(figure, f"figure-{number}-{next(counter)}")}
        elif live and "image/png" not in data:
            continue  # a bar of tqdm, or another widget that leaves no picture
        elif live:
            output["data"] = {"image/png": data["image/png"]}
        elif output.get("name") == "stderr" and BAR.search(output.text):
            continue
        kept.append(output)
    if "outputs" in cell:
        cell["outputs"] = kept
    return next(counter)


def _figure(figure: dict[str, Any], div_id: str) -> str:
    return plotly.io.to_html(
        figure,
        config={"displaylogo": False, "responsive": True},
        include_plotlyjs=False,  # once, in the page's head
        full_html=False,
        validate=False,
        div_id=div_id,
    )


def _links(name: str, titles: dict[str, str]) -> str:
    """The documentation, the list of notebooks, and this one's neighbours."""
    names = list(titles)
    place = names.index(name)
    parts = [
        '<a href="../index.html">bloomlab</a>',
        '<a href="../notebooks.html">all notebooks</a>',
    ]
    for arrow, other in (("←", place - 1), ("→", place + 1)):
        if 0 <= other < len(names):
            label = html.escape(titles[names[other]])
            parts.append(f'<a href="{names[other]}.html">{arrow} {label}</a>')
    return "\n".join(parts)


def _style() -> str:
    """The style sheet: this folder's, and colours of code for both themes."""
    own = (Path(__file__).parent / "assets" / STYLE).read_text(encoding="utf-8")
    for theme, colours in (("light", "default"), ("dark", "github-dark")):
        rules = HtmlFormatter(style=colours).get_style_defs(".highlight")
        own = f"@media (prefers-color-scheme: {theme}) {{\n{rules}\n}}\n{own}"
    return own


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python docs/pages.py EXECUTED_DIR OUT_DIR")
    for page in write_pages(Path(sys.argv[1]), Path(sys.argv[2])):
        sys.stdout.write(f"{page}\n")
