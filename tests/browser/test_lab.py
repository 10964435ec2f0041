"""The whole lab, the tour, saved notebooks and pages, bad input: in a real browser."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.browser.jupyter import DARK, LIGHT
from tests.browser.views import START, Views

LAB = """
import bloomlab as bl
lab = bl.Lab(bl.load("demo"), "The silver parrot met a green turtle. The silver parrot met a green")
lab
"""
TOUR = Path(__file__).parents[2] / "notebooks" / "00_tour.ipynb"


@pytest.mark.parametrize(("theme", "windowing"), [(LIGHT, "full"), (DARK, "none")])
def test_the_lab_is_used_without_code(lab_page, theme, windowing):
    views = Views(lab_page([LAB], theme=theme, windowing=windowing))
    views.settled()
    grid = views.root("grid").locator(".bl-over")
    grid.click(position=views.at_head(1, 0), modifiers=["Shift"])
    views.page.get_by_role("gridcell", name="L1H0: off").wait_for()
    views.root("mask").locator(".bl-facts", has_text="from layer 1").wait_for()
    views.settled()
    views.lab.shot(f"lab {theme.split()[1].lower()}")
    before = views.ink("grid")
    views.page.get_by_role("button", name="all heads on").first.click()
    before = views.changed("grid", before)
    views.page.get_by_role("textbox", name="prompt").fill("One two three. One two")
    views.page.get_by_role("textbox", name="prompt").press("Tab")
    views.changed("grid", before)
    assert views.lab.ask("lab.session.prompt") == "'One two three. One two'"
    for tab in ("text", "generation", "lens", "ALiBi", "hidden states", "clean | edited"):
        views.page.get_by_role("tab", name=tab, exact=True).click()
        views.settled()
    assert views.root("compare").locator("figure").count() == 3


def test_the_lab_shrinks_with_its_window(lab_page):
    views = Views(lab_page([LAB]))
    for width in (1700, 1300, 900, 1700):
        views.page.set_viewport_size({"width": width, "height": 1000})
        views.settled()
        boxes = views.root("grid").bounding_box(), views.root("zoom").bounding_box()
        grid, zoom = boxes
        beside = grid["x"] + grid["width"] <= zoom["x"] + 1
        below = grid["y"] + grid["height"] <= zoom["y"] + 1
        assert beside or below, boxes
        assert all(box["x"] + box["width"] <= width for box in boxes), boxes


@pytest.mark.parametrize(("theme", "windowing"), [(LIGHT, "none"), (DARK, "full")])
def test_the_tour_runs(lab_page, theme, windowing):
    lab = lab_page(json.loads(TOUR.read_text("utf-8")), theme=theme, windowing=windowing)
    assert lab.page.locator(".jp-Notebook").count() == 1


def test_a_saved_notebook_keeps_a_picture_and_stays_small(lab_page):
    lab = lab_page(
        [
            START,
            *(
                f"widgets.{name}(session)"
                for name in ("HeadGrid", "HeadZoom", "HeadMaskLab", "LensTable")
            ),
        ]
    )
    Views(lab).settled()
    cells = lab.save()["cells"][1:]
    for cell in cells:
        assert len(json.dumps(cell)) < 100_000
        png = "".join(cell["outputs"][1]["data"]["image/png"])
        assert Image.open(io.BytesIO(base64.b64decode(png))).width > 300


def test_a_notebook_that_is_opened_again_shows_the_picture(lab_page):
    lab = lab_page([START, "widgets.HeadGrid(session)"])
    Views(lab).settled()
    picture = lab.cell(1).locator("img")
    picture.wait_for(state="hidden")  # the live view stands there
    lab.save()
    lab.page.evaluate("jupyterapp.commands.execute('kernelmenu:shutdown').then(() => 0)")
    lab.page.reload()
    picture.wait_for(timeout=60_000)
    lab.shot("opened again")
    lab.page.close()
    assert all("widget model not found" in problem for problem in lab.problems())


def test_a_page_opens_from_a_file_and_asks_nobody(lab_page, tmp_path):
    page = f"widgets.HeadGrid(session).to_html('{tmp_path}/page.html')"
    lab = lab_page(
        [START, "session.prompt = 'the cat sat'", page]
    )  # few tokens: cells hold numbers
    assert (tmp_path / "page.html").stat().st_size < 2_000_000
    lab.page.goto(f"file://{tmp_path}/page.html")
    views = Views(lab)
    views.settled()
    pictures = views.ink("grid"), views.ink("zoom")
    assert views.status("zoom").get_attribute("class") == "bl-status"
    views.root("grid").locator(".bl-over").click(position=views.at_head(2, 3))
    views.root("zoom").locator(".bl-tag", has_text="L2H3").wait_for()
    views.changed("zoom", pictures[1])
    views.root("grid").locator(".bl-over").click(position=views.at_head(5, 7))
    views.says("zoom", "not in this page")
    views.slide("grid", "threshold", 0.3)
    views.changed("grid", pictures[0])


def test_what_goes_wrong_is_said_and_the_view_stays_usable(lab_page):
    views = Views(
        lab_page([START, "grid = widgets.HeadGrid(session)\ngrid", "widgets.HeadMaskLab(session)"])
    )
    views.settled()
    views.run("weight = model.blocks[3].attn.qkv.weight.data")
    views.run("kept = weight[0].clone(); weight[0] = float('nan')")
    views.run("session.refresh(); session.prompt += ' a'")
    views.says("grid", "NaN")
    views.run("weight[0] = kept; session.prompt += ' b'")
    views.page.wait_for_function("!document.querySelector('.bl .bl-trouble')")
    views.run("import time; real = session.importance")
    views.run("session.importance = lambda: time.sleep(30)")
    views.root("grid").get_by_label("show").select_option("importance")
    views.page.wait_for_timeout(800)
    views.page.evaluate(
        "jupyterapp.shell.currentWidget.sessionContext.session.kernel.interrupt().then(() => 0)"
    )
    views.says("grid", "interrupted")
    views.run("session.importance = real")
    views.root("grid").get_by_label("show").select_option("value")
    views.page.wait_for_function("!document.querySelector('.bl .bl-trouble')")
    views.lab.ask("session.close()")
    views.root("mask").get_by_role("gridcell", name="L0H3: on").click()
    views.says("mask", "closed")


def test_a_long_text_is_looked_at(lab_page):
    views = Views(
        lab_page(
            [
                START,
                "session.prompt = 'word and then another thing, ' * 400",
                "widgets.HeadZoom(session)",
            ]
        )
    )
    views.settled()
    n = int(views.lab.ask("len(session.run())"))
    assert n > 2000
    views.root("zoom").locator(".bl-over").press("+")
    views.root("zoom").get_by_label("as", exact=True).select_option("lines")
    views.root("zoom").get_by_text(f"here are {n}").wait_for()
