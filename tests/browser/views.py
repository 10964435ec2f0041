"""What tests of views share: a session in a notebook, and where things are in a view."""

PROMPT = "The silver parrot met a green turtle. The silver parrot met a green"
START = f"""
import bloomlab as bl
from bloomlab import widgets

model = bl.load("demo")
session = bl.Session(model, {PROMPT!r})
session.selection.set(layer=2, head=7)
"""
EDGE = 34  # pixels of labels beside and (half of it) above a grid
SENT = "kind => document.querySelector(`.bl[data-kind=${kind}]`).shell.wire.sent"
INK = """([kind, which]) => {
    const canvas = document.querySelectorAll(`.bl[data-kind=${kind}] canvas`)[which]
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height)
    let sum = 0
    for (let i = 0; i < data.length; i++) sum = (sum * 31 + data[i]) % 4294967291
    return sum }"""


class Views:
    """The views on a notebook page, by the name of their script: "grid", "zoom" ..."""

    def __init__(self, lab):
        self.lab, self.page = lab, lab.page

    def run(self, code):
        """Run Python statements in the kernel."""
        self.lab.ask(f"exec({code!r}, globals())")

    def root(self, kind):
        """Locator of a view."""
        return self.page.locator(f".bl[data-kind={kind}]")

    def status(self, kind):
        """Locator of its status line."""
        return self.root(kind).locator(".bl-status")

    def says(self, kind, text):
        """Wait until the status line holds a text."""
        self.status(kind).filter(has_text=text).wait_for()

    def settled(self):
        """Wait until no view waits for an answer, and what came is drawn."""
        self.page.wait_for_timeout(150)
        self.page.wait_for_function("!document.querySelector('.bl[aria-busy]')")
        self.page.evaluate("() => new Promise(r => requestAnimationFrame(() => setTimeout(r, 30)))")

    def sent(self, kind):
        """How many questions a view has asked."""
        return self.page.evaluate(SENT, kind)

    def ink(self, kind, which=0):
        """A number that tells one picture on a canvas from another."""
        return self.page.evaluate(INK, [kind, which])

    def changed(self, kind, before, which=0):
        """Wait until a canvas shows another picture than before; gives its number."""
        script = f"([kind, which, before]) => ({INK})([kind, which]) !== before"
        self.page.wait_for_function(script, arg=[kind, which, before])
        self.settled()
        return self.ink(kind, which)

    def at_head(self, layer, head):
        """Where a head's thumbnail is on the grid's upper canvas, in pixels."""
        pitch = int(self.root("grid").locator(".bl-over").get_attribute("data-cell")) + 2
        return {"x": EDGE + (head + 0.5) * pitch, "y": EDGE / 2 + (layer + 0.5) * pitch}

    def slide(self, kind, label, value):
        """Move a slider, as a drag does: an input event."""
        self.root(kind).get_by_label(label, exact=True).evaluate(
            "(bar, value) => { bar.value = value; bar.dispatchEvent(new Event('input')) }",
            str(value),
        )
