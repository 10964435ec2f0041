"""All heads and one head, in a real browser."""

import pytest

from tests.browser.jupyter import DARK, LIGHT
from tests.browser.views import PROMPT, START, Views

BOTH = [START, "widgets.HeadGrid(session)", "widgets.HeadZoom(session)"]


@pytest.fixture
def views(lab_page):
    found = Views(lab_page(BOTH))
    found.settled()
    return found


def test_a_click_looks_at_a_head_everywhere_and_m_masks_it(views):
    grid = views.root("grid").locator(".bl-over")
    before = views.ink("grid", 1)
    grid.click(position=views.at_head(1, 3))
    views.root("zoom").locator(".bl-tag", has_text="L1H3").wait_for()
    views.settled()
    assert views.lab.ask("session.selection.layer, session.selection.head") == "(1, 3)"
    assert views.ink("grid", 1) != before
    pattern = views.ink("zoom")
    grid.press("m")
    views.page.wait_for_function("document.querySelector('.bl').shell.facts.scale[1][3] === 0")
    views.settled()
    assert views.lab.ask("session.edits.scale[1, 3]") == "np.float32(0.0)"
    grid.click(position=views.at_head(2, 7))
    views.settled()
    assert views.ink("zoom") != pattern
    grid.click(position=views.at_head(4, 0), modifiers=["Shift"])
    views.page.wait_for_function("document.querySelector('.bl').shell.facts.scale[4][0] === 0")


def test_hovering_and_colours_ask_the_kernel_nothing(views):
    grid = views.root("grid").locator(".bl-over")
    grid.hover(position=views.at_head(0, 0))
    views.settled()
    sent, zoomed = views.sent("grid"), views.sent("zoom")
    seen, upper = views.ink("grid"), views.ink("grid", 1)
    for head in range(1, 6):
        grid.hover(position=views.at_head(2, head))
    views.page.wait_for_timeout(300)
    assert views.ink("grid", 1) != upper
    assert "L2H5" in views.status("grid").text_content()
    assert "L2H5 · a preview" in views.root("zoom").locator(".bl-tag").text_content()
    for name, value in (("threshold", 0.2), ("gamma", 2)):
        views.slide("grid", name, value)
        views.slide("zoom", name, value)
        views.settled()
        assert views.ink("grid") != seen
        seen = views.ink("grid")
    views.root("grid").get_by_label("hide first token").check()
    views.root("grid").get_by_label("colours").select_option("heat")
    views.settled()
    assert views.ink("grid") != seen
    assert (views.sent("grid"), views.sent("zoom")) == (sent, zoomed)


def test_colours_reach_the_kernel_when_the_mouse_leaves(lab_page):
    views = Views(lab_page([START, "grid = widgets.HeadGrid(session)\ngrid"]))
    views.settled()
    views.root("grid").hover()
    views.slide("grid", "gamma", 2)
    views.page.mouse.move(5, 5)
    views.page.wait_for_timeout(400)
    assert views.lab.ask("grid.controls['gamma']") == "2"
    assert views.lab.ask("grid.state_dict()['controls']['gamma']") == "2"


def test_everything_is_reached_by_keyboard(views):
    grid = views.root("grid").locator(".bl-over")
    grid.focus()
    for key in ("Home", "ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
        grid.press(key)
    views.root("zoom").locator(".bl-tag", has_text="L2H1").wait_for()
    assert "L2H1" in views.root("grid").locator(".bl-twin").text_content()
    grid.press("/")
    views.page.keyboard.type("induction > .4")
    views.settled()
    filtered = views.ink("grid")
    views.page.keyboard.type(" layer:3-5")
    views.settled()
    assert views.ink("grid") != filtered
    views.root("grid").get_by_label("filter heads").fill("nonsense")
    views.says("grid", "is no filter")
    views.root("grid").get_by_label("filter heads").fill("")
    views.root("grid").get_by_label("sort").select_option("importance")
    views.settled()
    assert "importance" in views.root("grid").get_by_label("sort").input_value()
    zoom = views.root("zoom").locator(".bl-over")
    zoom.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "Enter"):
        zoom.press(key)
    views.says("zoom", "exactly")
    assert views.lab.ask("(session.selection.query, session.selection.key)") == "(2, 1)"


def test_every_mode_draws_something_else(views):
    seen = [views.ink("grid")]
    views.lab.ask("setattr(session, 'edits', session.edits.with_heads([(1, 0)], scale=0))")
    views.settled()
    for mode in ("value", "content", "alibi", "importance", "difference"):
        views.root("grid").get_by_label("show").select_option(mode)
        seen.append(views.changed("grid", seen[-1]))
    assert len(set(seen)) == 6


def test_zoom_ends_at_exact_numbers(views):
    zoom = views.root("zoom").locator(".bl-over")
    zoom.focus()
    for _ in range(6):
        zoom.press("ArrowDown")
    for _ in range(4):
        zoom.press("ArrowRight")
    for _ in range(12):
        zoom.press("+")
    views.page.wait_for_timeout(400)
    views.settled()
    told = views.root("zoom").locator(".bl-status").text_content()
    value = float(views.lab.ask("session.run().pattern(2, 7)[6, 4].item()"))
    assert "≈" not in told
    assert float(told.rsplit(" ", 1)[1]) == pytest.approx(value, rel=6e-3)
    box = zoom.bounding_box()
    views.page.mouse.move(box["x"] + 300, box["y"] + 400)
    views.page.mouse.wheel(0, 600)
    zoom.press("0")
    views.root("zoom").get_by_label("as", exact=True).select_option("lines")
    assert views.root("zoom").locator("line").count() > 20


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_the_views_look_right(lab_page, theme):
    views = Views(lab_page(BOTH, theme=theme))
    views.settled()
    name = theme.split()[1].lower()
    pixel = """() => [...document.querySelector('.bl[data-kind=zoom] canvas').getContext('2d')
        .getImageData(400, 90, 1, 1).data]"""  # above the diagonal: a weight of zero
    shade = views.page.evaluate(pixel)
    assert (sum(shade[:3]) > 600) == (theme == LIGHT)
    assert contrast(views.page) >= 4.5
    for kind in ("grid", "zoom"):
        views.lab.shot(f"{kind} {name}", of=f".bl[data-kind={kind}]")
    views.root("grid").get_by_role("button", name="full window").click()
    views.settled()
    box = views.root("grid").bounding_box()
    assert (box["x"], box["y"]) == (0, 0)
    views.lab.shot(f"grid full window {name}")
    views.page.keyboard.press("Escape")
    views.settled()
    assert views.root("grid").bounding_box()["x"] > 0


def contrast(page):
    """Least contrast of text with the ground it stands on (WCAG 2), in all views of a page."""
    return page.evaluate(
        """() => {
        const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(v => { v /= 255;
            return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4 });
            return 0.2126 * r + 0.7152 * g + 0.0722 * b }
        const texts = '.bl-title,.bl-control,.bl-status,.bl-tag,.bl-note'
        let least = 21
        for (const root of document.querySelectorAll('.bl')) {
            const ground = light(getComputedStyle(root).backgroundColor)
            for (const el of root.querySelectorAll(texts)) {
                const ink = light(getComputedStyle(el).color)
                const [low, high] = [ink, ground].sort((a, b) => a - b)
                least = Math.min(least, (high + 0.05) / (low + 0.05))
            }
        }
        return least }"""
    )


def test_the_code_button_gives_python_that_makes_the_view(views):
    views.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    views.root("grid").get_by_role("button", name="copy as code").click()
    views.says("grid", "copied")
    text = views.page.evaluate("navigator.clipboard.readText()")
    assert f"bl.Session(model, {PROMPT!r})" in text
    assert "bl.widgets.HeadGrid(session" in text


def test_a_drag_marks_a_block_that_m_masks(views):
    grid = views.root("grid").locator(".bl-over")
    box = grid.bounding_box()
    first, last = views.at_head(3, 1), views.at_head(4, 2)
    views.page.mouse.move(box["x"] + first["x"], box["y"] + first["y"])
    views.page.mouse.down()
    views.page.mouse.move(box["x"] + last["x"], box["y"] + last["y"], steps=4)
    views.page.mouse.up()
    grid.press("m")
    views.page.wait_for_function("document.querySelector('.bl').shell.facts.scale[4][2] === 0")
    off = views.lab.ask("[tuple(p) for p in (session.edits.scale == 0).nonzero()]")
    assert off.count("3") + off.count("4") >= 4
