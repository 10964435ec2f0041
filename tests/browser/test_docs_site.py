"""The documentation, read from the file system in a browser that is cut off from the net."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import plotly.graph_objects as go
import pytest
from nbformat import v4

import bloomlab

ROOT = Path(bloomlab.__file__).parent.parent
NAME = sorted(file.stem for file in (ROOT / "notebooks").glob("*.ipynb"))[0]
BACK = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site, with the page of one executed notebook."""
    pytest.importorskip("mkdocstrings", reason="mkdocs is an extra: bloomlab[docs]")
    place = tmp_path_factory.mktemp("docs")
    (place / "run").mkdir()
    drawn = go.Figure(go.Scatter(y=[1, 2])).to_plotly_json()
    shown = v4.new_output("display_data", data={"application/vnd.plotly.v1+json": drawn})
    cells = [v4.new_markdown_cell("# A page"), v4.new_code_cell("1", outputs=[shown])]
    nbformat.write(v4.new_notebook(cells=cells), place / "run" / f"{NAME}.ipynb")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    environment["BLOOMLAB_NOTEBOOK_PAGES"] = str(place / "pages")
    for command in (
        ["docs/pages.py", place / "run", place / "pages"],
        ["-m", "mkdocs", "build", "--quiet", "--strict", "-d", place / "site"],
    ):
        subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True)
    return place / "site"


@pytest.fixture
def page(browser):
    page = browser.page()
    yield page
    problems = browser.problems()
    page.close()
    assert problems == []


def test_the_list_of_notebooks_leads_to_a_page_with_its_figure(site, page):
    page.goto((site / "notebooks.html").as_uri())
    page.click(f"a[href='notebooks/{NAME}.html']")
    page.wait_for_selector(".main-svg .scatterlayer path")
    assert page.locator("h1").inner_text().startswith("A page")
    page.click("text=all notebooks")
    assert page.url.endswith("/notebooks.html")


def test_search_finds_a_name_of_the_reference(site, page):
    page.goto((site / "index.html").as_uri())
    page.click("input.md-search__input")
    page.keyboard.type("prune_heads", delay=20)
    page.wait_for_selector(".md-search-result__link[href*='reference/pruning.html']")


@pytest.mark.parametrize("name", ["index.html", f"notebooks/{NAME}.html"])
def test_colours_follow_the_system(site, page, name):
    found = []
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        page.goto((site / name).as_uri())
        found.append(page.evaluate(BACK))
    light, dark = (sum(map(int, one.strip("rgb()").split(", ")[:3])) for one in found)
    assert dark < 200 < 600 < light


@pytest.mark.parametrize("name", ["index", "concepts/hooks", "reference/models", "differences"])
def test_a_narrow_page_does_not_scroll_sideways(site, page, name):
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto((site / f"{name}.html").as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
