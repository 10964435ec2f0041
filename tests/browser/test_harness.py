"""The harness itself: what a test in a browser relies on."""

import pytest

import bloomlab
from tests.browser.jupyter import DARK, LIGHT
from tests.browser.page import CellFailed

WIDGET = """
import anywidget, traitlets

class Painter(anywidget.AnyWidget):
    _esm = '''export default { render({ model, el }) {
        const canvas = document.createElement("canvas"), status = document.createElement("div")
        canvas.width = canvas.height = 40
        canvas.className = "painted"
        el.append(canvas, status)
        canvas.addEventListener("click", event => {
            model.set("at", [event.offsetX, event.offsetY])
            model.save_changes()
        })
        model.on("change:status", () => {
            const paint = canvas.getContext("2d")
            paint.fillStyle = "rgb(10, 20, 30)"
            paint.fillRect(...model.get("at"), 5, 5)
            status.textContent = model.get("status")
        })
    } }'''
    at = traitlets.List().tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)

    @traitlets.observe("at")
    def _say(self, change):
        self.status = f"{1000 // self.at[0]} from the kernel"

painter = Painter()
painter
"""
OUTSIDE = """<script>
Promise.all([
    new Promise(done => {
        const image = new Image()
        image.onerror = done
        image.src = "http://192.0.2.1/image.png"
    }),
    new Promise(done => { new WebSocket("wss://example.com/socket").onerror = done }),
    fetch("https://example.com/fetch").catch(() => null),
    new Promise(done => {
        const code = "fetch('https://example.com/worker').catch(() => postMessage('tried'))"
        new Worker(URL.createObjectURL(new Blob([code]))).onmessage = done
    }),
]).then(() => { document.body.dataset.tried = "all" })
</script>"""
ACTIVATE_THE_FIRST = "jupyterapp.shell.currentWidget.content.activeCellIndex = 0"
PIXEL = """at => [...document.querySelector('.painted').getContext('2d')
    .getImageData(...at, 1, 1).data]"""


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_a_click_goes_through_the_kernel_and_back_to_the_canvas(lab_page, theme):
    lab = lab_page([WIDGET], theme=theme)
    lab.cell(0).locator(".painted").click(position={"x": 20, "y": 10})
    lab.page.get_by_text("50 from the kernel").wait_for()
    assert lab.page.evaluate(PIXEL, [22, 12]) == [10, 20, 30, 255]
    assert lab.page.evaluate(PIXEL, [18, 12]) == [0, 0, 0, 0]
    assert lab.ask("painter.at") == "[20, 10]"
    background = lab.page.evaluate(
        "getComputedStyle(document.querySelector('.jp-Notebook')).backgroundColor"
    )
    assert (background == "rgb(255, 255, 255)") == (theme == LIGHT)
    file = lab.shot(f"harness {theme}")
    assert file.read_bytes().startswith(b"\x89PNG")


def test_a_time_is_measured_in_the_page(lab_page):
    lab = lab_page([])
    late = "document.title = 'early'; setTimeout(() => { document.title = 'late' }, 200)"
    assert 200 <= lab.milliseconds(late, until="document.title === 'late'") < 1000


def test_a_widget_out_of_view_survives_scrolling(lab_page):
    tall = ["print('line\\n' * 60)"] * 8
    lab = lab_page([*tall, WIDGET, *tall], windowing="full")
    painted = lab.page.locator(".painted")
    for x in (20, 10):
        lab.scroll_to(8)
        painted.click(position={"x": x, "y": 10})
        lab.page.get_by_text(f"{1000 // x} from the kernel").wait_for()
        lab.page.evaluate(ACTIVATE_THE_FIRST)  # an active cell is never taken out
        lab.scroll_to(16)
        painted.wait_for(state="hidden")
        lab.scroll_to(8)
        painted.wait_for()
        assert lab.page.evaluate(PIXEL, [22, 12]) == [10, 20, 30, 255]


def test_a_cell_that_raises_is_reported(lab_page):
    with pytest.raises(CellFailed, match=r"(?s)1 / 0.*ZeroDivisionError: division by zero"):
        lab_page(["1", "1 / 0", "raise OSError"])


def test_a_callback_that_raises_is_a_problem(lab_page):
    lab = lab_page([WIDGET])
    with lab.page.expect_console_message():
        lab.page.locator(".painted").click(position={"x": 0, "y": 0})
    (problem,) = lab.problems()
    assert "ZeroDivisionError: integer division or modulo by zero" in problem
    assert lab.problems() == []


def test_an_error_in_the_page_is_a_problem(lab_page):
    lab = lab_page([])
    lab.page.evaluate("console.error('said')")
    with lab.page.expect_event("pageerror"):
        lab.page.evaluate("setTimeout(() => { throw new Error('thrown') }) && 0")
    said, thrown = lab.problems()
    assert said.startswith("console: said")
    assert thrown.startswith("Error: thrown")


def test_every_request_to_the_outside_is_a_problem(lab_page):
    lab = lab_page([f"from IPython.display import HTML\nHTML({OUTSIDE!r})"])
    lab.page.wait_for_function("document.body.dataset.tried === 'all'")
    blocked = {problem for problem in lab.problems() if problem.startswith("blocked: ")}
    assert blocked == {
        "blocked: http://192.0.2.1/image.png",
        "blocked: https://example.com/fetch",
        "blocked: https://example.com/worker",
        "blocked: wss://example.com/socket",
    }
    lab.page.close()
    assert all("ERR_PROXY" in problem for problem in lab.problems())  # the console's own words


def test_the_saved_notebook_comes_back(lab_page):
    (cell,) = lab_page(["21 * 2"]).save()["cells"]
    assert cell["source"] == ["21 * 2"]
    assert cell["outputs"][0]["data"] == {"text/plain": ["42"]}


def test_the_kernel_imports_this_checkout(lab_page):
    lab = lab_page(["import bloomlab"])
    assert lab.ask("bloomlab.__file__") == repr(bloomlab.__file__)
