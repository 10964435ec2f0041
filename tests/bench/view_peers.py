"""What bertviz and CircuitsVis make of the same attention, in the same browser.

bertviz loads its libraries from the network. To draw without one it needs a folder with
require.min.js, d3.min.js and jquery.min.js.
"""

import re
import tempfile
import time
from pathlib import Path

PEERS = {  # name -> how it is made, what shows that it drew, numbers of tokens
    "bertviz head_view": (
        "head_view(list(a), tokens, html_action='return').data",
        "svg rect",
        (64, 128, 256),
    ),
    "bertviz model_view": (
        "model_view(list(a), tokens, html_action='return').data",
        "svg line",
        (16, 32, 64),
    ),
    "CircuitsVis heads": (
        "str(cv.attention.attention_heads(a.flatten(0, 2), tokens))",
        "canvas",
        (16, 32),
    ),
}
SETUP = "from bertviz import head_view, model_view\nimport circuitsvis as cv"
RUN = """
run = bl.Session(model, text({n})).run()
tokens, a = run.tokens, torch.from_numpy(run.patterns())[:, None]
"""
MAKE = """
begun = time.perf_counter()
made = {code}
seconds = time.perf_counter() - begun
size = open({file!r}, "w").write("<!doctype html><meta charset=utf-8><body>" + made)
"""
FRAMES = "() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))"
PATIENCE = 60_000  # milliseconds


def peers(bench, browser, libraries):
    """Print bytes, time in the kernel and time to the picture of each."""
    bench.run(SETUP)
    for name, (code, mark, sizes) in PEERS.items():
        for n in sizes:
            bench.run(RUN.format(n=n))
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "peer.html")
                bench.run(MAKE.format(code=code, file=str(file)))
                seconds, size = float(bench.ask("seconds")), file.stat().st_size / 1e6
                drawn = drawing(browser, file, mark, libraries)
            said = f"{size:.1f} MB, {seconds:.1f} s in the kernel, {drawn}"
            print(f"{name}, {n} tokens: {said}", flush=True)


def drawing(browser, file, mark, libraries):
    """How long a page takes until it draws."""
    page = browser.page()
    page.route(re.compile("^https?://"), lambda route: serve(route, libraries))
    begun = time.perf_counter()
    try:
        page.goto(f"file://{file}", timeout=PATIENCE, wait_until="commit")
        page.wait_for_selector(mark, state="attached", timeout=PATIENCE)
        page.evaluate(FRAMES)
    except Exception as error:
        return f"not drawn in 60 s ({type(error).__name__})"
    else:
        return f"drawn after {time.perf_counter() - begun:.1f} s"
    finally:
        page.close()


def serve(route, libraries):
    """A library from the folder; everything else fails."""
    name = re.search("require|d3|jquery", route.request.url)
    file = libraries / f"{name[0]}.min.js" if libraries and name else None
    if file is None or not file.exists():
        return route.abort()
    headers = {"access-control-allow-origin": "*"}
    return route.fulfill(path=file, content_type="application/javascript", headers=headers)
