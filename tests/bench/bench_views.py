"""Views in a real browser, beside bertviz and CircuitsVis: times, bytes, memory, on one model.

    python -m tests.bench.bench_views [--libraries FOLDER] [--only views|peers]

A random BLOOM of 24 layers x 16 heads in JupyterLab; times are measured in the page, from the event
to the second frame after it, over 30 interactions. For the peers see `view_peers`.
"""

import argparse
import re
import statistics
from pathlib import Path

from tests.bench.view_peers import peers
from tests.browser.browsing import Browser
from tests.browser.jupyter import LIGHT, JupyterLab, notebook
from tests.browser.page import LabPage

N = 30
MODEL = """
import ctypes, gc, time, psutil, torch
import bloomlab as bl
from bloomlab import widgets

torch.manual_seed(0)
demo = bl.load("demo")
config = bl.BloomConfig(vocab_size=8192, hidden_size=1024, n_layer=24, n_head=16)
model = bl.BloomForCausalLM(config).eval()
model.tokenizer = demo.tokenizer
words = " ".join(bl.experiments.tasks.part_of_speech("en").texts)
ids = demo.to_tokens(words)[0]

def text(n):
    return demo.to_string(ids.repeat(4)[:n])

trim = ctypes.CDLL("libc.so.6").malloc_trim  # what is free goes back: what is held is measured
rss = lambda: gc.collect() * trim(0) * 0 + psutil.Process().memory_info().rss
with torch.no_grad():
    model(text(64)); model(text(256))
"""
VIEWS = (
    *("HeadGrid", "HeadZoom", "TokenStrip", "HeadMaskLab", "GenScrubber", "LensTable"),
    *("AlibiView", "HiddenStates", "CompareRuns"),
)
# How long an act takes to its picture, and the bytes that came.
PAINTED = """async ([kind, op, act]) => {
    const root = document.querySelector(`.bl[data-kind=${kind}]`), begun = performance.now()
    const painted = new Promise(done => root.addEventListener('bloomlab:painted', function hear(e) {
        if (e.detail.op !== op) return
        root.removeEventListener('bloomlab:painted', hear)
        done({ ms: performance.now() - begun, bytes: e.detail.bytes }) }))
    new Function('root', act)(root)
    const late = new Promise((_, no) => setTimeout(() => no(`${kind} ${op}: no picture`), 6e4))
    return Promise.race([painted, late]) }"""
# How long an act that asks nobody keeps the page busy: its handlers, and the drawing they ask for.
BUSY = """async ([kind, act]) => {
    const root = document.querySelector(`.bl[data-kind=${kind}]`), { shell } = root
    const sent = shell.wire.sent, begun = performance.now()
    shell.drawn = 0
    new Function('root', act)(root)
    const handled = performance.now() - begun
    await new Promise(done => requestAnimationFrame(() => setTimeout(done, 30)))
    return { ms: handled + shell.drawn, asked: shell.wire.sent - sent } }"""
FRESH = """root.shell.wire.kept.clear()
    root.querySelector('[aria-label=show]').dispatchEvent(new Event('change'))"""
GO = "root.shell.wire.go({{ layer: {}, head: {}, query: -1, key: -1 }})"
SLIDE = """const bar = root.querySelector('[aria-label={}]')
    bar.value = {}
    bar.dispatchEvent(new Event('input'))"""
HOVER = """const over = root.querySelector('.bl-over'), box = over.getBoundingClientRect()
    over.dispatchEvent(new PointerEvent('pointermove', {{
        bubbles: true, clientX: box.left + 40 + {}, clientY: box.top + 30 + {} }}))"""


def p95(values):
    """The 95th percentile."""
    return statistics.quantiles(values, n=20, method="inclusive")[18]


def row(name, values, target, note=""):
    """Print a line: median, 95th percentile, target."""
    middle, most = statistics.median(values), p95(values)
    verdict = "ok" if most <= target else "ABOVE"
    print(f"{name:58} {middle:8.1f} {most:8.1f} {target:8} ms  {verdict}  {note}", flush=True)


def number_after(word, text):
    """The milliseconds that a line gives after a word."""
    return float(re.search(rf"{word} ([\d.e+]+) ms", text)[1])


class Bench:
    """A notebook page with the views, and what is measured on it."""

    def __init__(self, lab):
        self.lab, self.page = lab, lab.page
        self.page.set_default_timeout(120_000)

    def painted(self, kind, op, act):
        return self.page.evaluate(PAINTED, [kind, op, act])

    def busy(self, kind, act):
        return self.page.evaluate(BUSY, [kind, act])

    def ask(self, code):
        return self.lab.ask(code)

    def run(self, code):
        self.ask(f"exec({code!r}, globals())")

    def settle(self):
        self.page.wait_for_timeout(400)
        self.page.wait_for_function("!document.querySelector('.bl[aria-busy]')")

    def text(self, n):
        self.run(f"session.prompt = text({n})")
        self.settle()


def measure(bench):
    """All times of the views."""
    print(f"{'24 x 16 heads, random weights':58} {'median':>8} {'p95':>8} {'target':>8}")
    seen = [bench.painted("grid", "tiles", FRESH) for _ in range(N)]
    size = seen[0]["bytes"] / 1e6
    row("grid, 1024 tokens, cached run", [s["ms"] for s in seen], 250, f"{size:.2f} MB (1.6)")
    heads = iter([(layer, head) for layer in range(1, 24, 2) for head in range(1, 16, 3)])
    for n, target, most in ((1024, 150, 0.53), (2048, 450, 2.12)):
        if n == 2048:
            bench.text(2048)
        seen = [bench.painted("zoom", "head", GO.format(*next(heads))) for _ in range(N)]
        size = seen[0]["bytes"] / 1e6
        row(
            f"head, {n} tokens, click to picture",
            [s["ms"] for s in seen],
            target,
            f"{size:.2f} MB ({most})",
        )
    bench.text(1024)
    places = [(3, head) for head in range(10)] * 4
    for place in places[:10]:
        bench.painted("zoom", "head", GO.format(*place))
    seen = [bench.painted("zoom", "head", GO.format(*place)) for place in places[10:]]
    row(
        "head that was seen before",
        [s["ms"] for s in seen],
        33,
        "two frames of waiting included",
    )
    for kind, name, values in (
        ("grid", "threshold", [i / 200 for i in range(N)]),
        ("grid", "gamma", [0.5 + i / 20 for i in range(N)]),
        ("zoom", "threshold", [i / 200 for i in range(N)]),
    ):
        seen = [bench.busy(kind, SLIDE.format(name, value)) for value in values]
        row(
            f"{kind}, {name}",
            [s["ms"] for s in seen],
            16,
            f"{sum(s['asked'] for s in seen)} questions",
        )
    seen = [bench.busy("grid", HOVER.format(17 * (i % 14), 11 * (i % 20))) for i in range(N)]
    row("grid, hover", [s["ms"] for s in seen], 16, f"{sum(s['asked'] for s in seen)} questions")
    over = []
    for i in range(N):
        head = f"root.querySelector('[title^=L{20 + i % 4}H{i % 16}\\\\:]').click()"
        bench.painted("mask", "edit", head)
        bench.settle()
        said = bench.page.locator(".bl[data-kind=mask] .bl-facts").text_content()
        forward, whole = (number_after(word, said) for word in ("forward", "picture"))
        over.append(whole - forward)
    row("mask to new top-k, beyond the forward", over, 80)
    bench.run("session.edits = type(session.edits).none(24, 16)")
    bench.settle()
    bench.page.locator(".bl[data-kind=scrub]").get_by_role("button", name="generate").click()
    bench.settle()
    seen = [bench.busy("scrub", SLIDE.format("step", 1 + i)) for i in range(N)]
    asked = sum(s["asked"] for s in seen)
    row("scrub one step after 1024 tokens", [s["ms"] for s in seen], 50, f"{asked} questions")


def heap(bench):
    """Growth of the browser's memory over 200 heads."""
    session = bench.page.context.new_cdp_session(bench.page)
    session.send("Performance.enable")

    def used():
        session.send("HeapProfiler.collectGarbage")
        found = session.send("Performance.getMetrics")["metrics"]
        return next(m["value"] for m in found if m["name"] == "JSHeapUsedSize") / 1e6

    before = used()
    for i in range(200):
        bench.painted("zoom", "head", GO.format(i % 24, i * 7 % 16))
    print(f"browser heap after 200 heads of 1024 tokens: {used() - before:+.1f} MB (60)")


def sizes(bench):
    """Bytes in saved notebooks, pages, and beside the model."""
    bench.text(256)
    bench.run("import json\nsaved = lambda v: len(json.dumps(v.get_state(), default=str))")
    for name in VIEWS:
        bench.run(f"view = widgets.{name}(session)")
        size = int(bench.ask("saved(view) + 4 * len(view.still()) // 3"))
        print(f"saved notebook, {name}: {size / 1e3:.0f} kB (300)")
    bench.run("import tempfile; folder = tempfile.TemporaryDirectory()")
    bench.run("page = widgets.HeadGrid(session).to_html(f'{folder.name}/page.html')")
    page = int(bench.ask("page.stat().st_size"))
    print(f"page of grid and 16 heads, 256 tokens: {page / 1e6:.2f} MB (2)")


def main():
    """Measure everything and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--libraries", type=Path, help="what bertviz would load from the network")
    parser.add_argument("--only", choices=("views", "peers"))
    chosen = parser.parse_args()
    cells = [
        MODEL,
        "before = rss()\nsession = bl.Session(model, text(1024))\nwidgets.HeadGrid(session)",
        "widgets.HeadZoom(session)",
        "beside = rss() - before",
        "widgets.HeadMaskLab(session)",
        "widgets.GenScrubber(session, max_new_tokens=32)",
    ]
    with Browser() as browser, JupyterLab(windowing="none") as server:
        lab = LabPage(browser, server)
        lab.open(notebook(*cells[: 1 if chosen.only == "peers" else None]), theme=LIGHT)
        lab.run_all()
        bench = Bench(lab)
        if chosen.only != "peers":
            bench.settle()
            beside = int(bench.ask("beside")) / 1e6
            print(f"kernel beside the model, grid and a head, 1024 tokens: {beside:.0f} MB (250)")
            measure(bench)
            heap(bench)
            sizes(bench)
        if chosen.only != "views":
            peers(bench, browser, chosen.libraries)


if __name__ == "__main__":
    main()
