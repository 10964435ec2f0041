"""Executed notebooks as pages: nothing from the network, figures and pictures are there."""

import base64
import importlib.util
import re
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
from nbformat import v4
from plotly.offline import get_plotlyjs

import bloomlab

ROOT = Path(bloomlab.__file__).parent.parent
PIXEL = base64.b64encode(
    bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
        "1f15c4890000000d49444154789c6360606060000000050001a5f64540"
        "0000000049454e44ae426082"
    )
).decode()
LIVE = {"model_id": "0", "version_major": 2, "version_minor": 0}


@pytest.fixture(scope="module")
def pages():
    """The script, as a module."""
    place = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "pages.py")
    module = importlib.util.module_from_spec(place)
    place.loader.exec_module(module)
    return module


def executed(title="A <small> notebook", outputs=()):
    code = v4.new_code_cell("1 + 1", outputs=list(outputs))
    return v4.new_notebook(cells=[v4.new_markdown_cell(f"# {title}\n\nText."), code])


def figure():
    drawn = go.Figure(go.Scatter(y=[1, 2], name="a curve")).to_plotly_json()
    return v4.new_output("display_data", data={"application/vnd.plotly.v1+json": drawn})


def view(**more):
    data = {"application/vnd.jupyter.widget-view+json": LIVE, "text/plain": "View()", **more}
    return v4.new_output("display_data", data=data)


def written(pages, tmp_path, **notebooks):
    (tmp_path / "run").mkdir()
    for name, notebook in notebooks.items():
        nbformat.write(notebook, tmp_path / "run" / f"{name}.ipynb")
    files = pages.write_pages(tmp_path / "run", tmp_path / "out")
    return [file.read_text(encoding="utf-8") for file in files]


def test_a_page_has_figure_and_picture_and_asks_nobody(pages, tmp_path):
    bar = v4.new_output("stream", name="stderr", text="50%|█████     | 1/2 [00:00<00:00]")
    said = v4.new_output("stream", name="stderr", text="a warning")
    outputs = [figure(), view(**{"image/png": PIXEL}), view(), bar, said]
    (page,) = written(pages, tmp_path, one=executed(outputs=outputs))
    assert page.count("Plotly.newPlot(") == 1
    assert "a curve" in page
    assert page.count('src="data:image/png;base64,') == 1
    assert "View()" not in page
    assert "50%" not in page
    assert "a warning" in page
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=[\"']?(https?:)?//", page)
    assert re.findall(r"<script src=\"([^\"]+)\"", page) == ["plotly.min.js"]
    assert (tmp_path / "out" / "plotly.min.js").read_text(encoding="utf-8") == get_plotlyjs()
    assert "prefers-color-scheme: dark" in (tmp_path / "out" / "notebook.css").read_text()
    assert "<title>A &lt;small&gt; notebook - bloomlab</title>" in page


def test_without_figures_plotly_is_not_loaded(pages, tmp_path):
    (page,) = written(pages, tmp_path, one=executed())
    assert "plotly" not in page


def test_pages_lead_to_their_neighbours(pages, tmp_path):
    notebooks = {name: executed(name.upper()) for name in ("a", "b", "c")}
    first, second, third = written(pages, tmp_path, **notebooks)
    assert '<a href="b.html">→ B</a>' in first
    assert "←" not in first
    assert '<a href="a.html">← A</a>' in second
    assert '<a href="c.html">→ C</a>' in second
    assert "→" not in third
    assert all('href="../notebooks.html"' in page for page in (first, second, third))


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://example.org/a.js"></script>',
        "<img alt='' src=//example.org/a.png>",
        '<link rel="stylesheet" href="http://example.org/a.css">',
        "<style>@import url('https://example.org/a.css');</style>",
    ],
)
def test_what_would_load_something_is_refused(pages, tmp_path, html):
    shown = v4.new_output("display_data", data={"text/html": html})
    with pytest.raises(ValueError, match=r"one: the page would load .*//example\.org"):
        written(pages, tmp_path, one=executed(outputs=[shown]))


def test_links_that_a_reader_may_follow_stay(pages, tmp_path):
    (page,) = written(pages, tmp_path, one=executed("[paper](https://arxiv.org/abs/2211.05100)"))
    assert 'href="https://arxiv.org/abs/2211.05100"' in page


def test_the_notebook_stays_as_it_is(pages):
    notebook = executed(outputs=[figure(), view()])
    before = nbformat.writes(notebook)
    pages.page_of(notebook, title="a")
    assert nbformat.writes(notebook) == before


def test_an_empty_folder_is_told(pages, tmp_path):
    with pytest.raises(ValueError, match="no notebooks in"):
        pages.write_pages(tmp_path, tmp_path / "out")
