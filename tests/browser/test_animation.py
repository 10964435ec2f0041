"""The short film of the lab that the README shows; `docs/lab.webp` is a copy of what this makes."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.browser.jupyter import LIGHT, ROOT
from tests.browser.test_lab import LAB
from tests.browser.views import Views

PREVIOUS, INDUCTION = (1, 0), (2, 7)  # heads of the packaged model: what followed last time
WIDTH = 1000  # pixels of the film
TALL = {"width": 1180, "height": 1560}  # a page that holds the whole lab
LARGEST = 1_200_000  # bytes
POINTER = """() => {
    const arrow = document.createElement('div')
    arrow.innerHTML = `<svg width="22" height="30" viewBox="0 0 22 30"><path stroke="white"
        stroke-width="1.5" d="M2 2v21l5.5-4.5 3.5 8.5 4-1.7-3.5-8.3h7z"/></svg>`
    arrow.style.cssText = 'position:fixed;z-index:9999;pointer-events:none;left:-50px;top:0'
    document.body.append(arrow)
    addEventListener('mousemove', e => {
        arrow.style.left = e.clientX - 2 + 'px'
        arrow.style.top = e.clientY - 2 + 'px' }, true) }"""


class Film:
    """Pictures of the lab, each with the milliseconds that it is shown."""

    def __init__(self, views):
        self.views, self.page = views, views.page
        self.pictures, self.times = [], []
        top = self.page.get_by_role("textbox", name="prompt").bounding_box()["y"] - 6
        boxes = [views.root(kind).bounding_box() for kind in ("grid", "zoom", "mask")]
        left = min(box["x"] for box in boxes) - 6
        right = max(box["x"] + box["width"] for box in boxes) + 6
        bottom = max(box["y"] + box["height"] for box in boxes) + 12
        self.clip = {"x": left, "y": top, "width": right - left, "height": bottom - top}
        self.at = (right - 200, top + 60)

    def shot(self, milliseconds):
        """What is to be seen now; not twice in a row."""
        self.views.settled()
        picture = Image.open(io.BytesIO(self.page.screenshot(clip=self.clip))).convert("RGB")
        size = (WIDTH, round(picture.height * WIDTH / picture.width))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
        if self.pictures and self.pictures[-1].tobytes() == picture.tobytes():
            self.times[-1] += milliseconds
            return
        self.pictures.append(picture)
        self.times.append(milliseconds)

    def move(self, x, y, *, steps=5, milliseconds=70, hold=0):
        """The pointer goes to a place, a picture a step."""
        (x0, y0), self.at = self.at, (x, y)
        for step in range(1, steps + 1):
            share = step / steps
            share = share * share * (3 - 2 * share)  # starts and ends slowly
            self.page.mouse.move(x0 + (x - x0) * share, y0 + (y - y0) * share)
            self.shot(milliseconds)
        self.times[-1] += hold

    def head(self, layer, head, **options):
        """The pointer goes to a head in the grid."""
        place = self.views.at_head(layer, head)
        box = self.views.root("grid").locator(".bl-over").bounding_box()
        self.move(box["x"] + place["x"], box["y"] + place["y"], **options)

    def to(self, locator, **options):
        """The pointer goes to the middle of something."""
        box = locator.bounding_box()
        self.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, **options)

    def click(self, layer, head, **options):
        """A click on a head in the grid."""
        grid = self.views.root("grid").locator(".bl-over")
        grid.click(position=self.views.at_head(layer, head), **options)

    def save(self, file):
        """Write the film as a WebP that goes round for ever."""
        first, *others = self.pictures
        options = {"save_all": True, "append_images": others, "duration": self.times, "loop": 0}
        first.save(file, quality=60, method=6, minimize_size=True, **options)


@pytest.fixture
def film(lab_page):
    lab = lab_page([LAB], theme=LIGHT)
    lab.page.set_viewport_size(TALL)
    lab.command("notebook:hide-all-cell-code")
    lab.page.evaluate("jupyterapp.shell.collapseLeft()")
    lab.run_all()  # at the size that it is filmed in
    views = Views(lab)
    views.settled()
    views.page.evaluate(POINTER)
    return Film(views)


def test_the_lab_in_eight_seconds(film):
    views, page = film.views, film.page
    film.shot(700)
    for layer, head in ((0, 2), (1, 4), INDUCTION):
        film.head(layer, head, steps=3, hold=120)
    film.click(*INDUCTION)
    views.root("zoom").locator(".bl-tag", has_text="L2H7").wait_for()
    film.shot(900)
    off = "L{}H{}: off".format(*PREVIOUS)
    film.to(page.get_by_role("gridcell", name=off.replace("off", "on")), hold=250)
    found = views.ink("zoom")
    page.mouse.click(*film.at)
    page.get_by_role("gridcell", name=off).wait_for()
    views.root("mask").locator(".bl-facts", has_text="from layer 1").wait_for()
    film.shot(900)
    film.head(*INDUCTION, steps=4)
    film.click(*INDUCTION)
    views.root("zoom").locator(".bl-tag", has_text="L2H7").wait_for()
    film.shot(900)
    assert views.ink("zoom") != found  # the induction head has lost its place
    bar = views.root("grid").get_by_label("threshold", exact=True).bounding_box()
    film.move(bar["x"] + 8, bar["y"] + bar["height"] / 2)
    for value in (0.06, 0.12, 0.18, 0.24, 0.3):
        x = bar["x"] + 8 + (bar["width"] - 16) * value / 0.5
        page.mouse.move(x, bar["y"] + bar["height"] / 2)
        film.at = (x, bar["y"] + bar["height"] / 2)
        views.slide("grid", "threshold", value)
        film.shot(110)
    film.times[-1] += 600
    views.slide("grid", "threshold", 0)
    film.shot(200)
    film.to(page.get_by_role("button", name="all on", exact=True))
    page.mouse.click(*film.at)
    page.get_by_role("gridcell", name=off.replace("off", "on")).wait_for()
    views.settled()
    film.shot(600)
    folder = Path(os.environ.get("BLOOMLAB_SCREENSHOTS", ROOT / "build" / "screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "lab.webp"
    film.save(file)
    assert file.stat().st_size < LARGEST
    with Image.open(file) as made:
        assert made.n_frames == len(film.pictures) > 20
        assert made.width == WIDTH
    assert 6_000 < sum(film.times) < 10_000
