"""What tests of views share: questions as the browser asks them, answers decoded as it does."""

import base64
import json
import re
import zlib

import numpy as np
import pandas as pd

from bloomlab import widgets

PROMPT = "The silver parrot met a green turtle. The silver parrot met"
LONG = "The cat sat on the mat and the dog ran to the door. " * 6
SCRIPT = "</script><script>alert(1)</script>"
TEXTS = {
    "html": f"a <b>bold</b> {SCRIPT} & \"quotes\" 'single' `tick` ${{x}}",
    "emoji": "so 🙂 👩‍👩‍👧 🇺🇸 end",
    "arabic": "قال مرحبا بالعالم",
    "devanagari": "नमस्ते दुनिया",
    "chinese": "你好，世界",
    "spaces": "a\tb\n\n  c\u200d\u2028d",
}
STATE = re.compile(r'<script type="application/json" id="state\d+">(.*?)</script>', re.DOTALL)
FIRST = {  # a question that each view asks of a new session
    "AlibiView": {"op": "scores", "layer": 3, "head": 0, "query": 3, "run": "edited"},
    "CompareRuns": {"op": "compare", "layer": 3, "head": 0, "values": True},
    "GenScrubber": {
        "op": "generate",
        "max_new_tokens": 3,
        "do_sample": False,
        "temperature": 1,
        "top_k": 50,
        "top_p": 1,
    },
    "HeadGrid": {"op": "tiles", "mode": "pattern", "size": 48, "run": "edited"},
    "HeadMaskLab": {"op": "next", "k": 5},
    "HeadZoom": {"op": "head", "layer": 3, "head": 0, "run": "edited", "mode": "pattern"},
    "HiddenStates": {"op": "stream", "run": "edited"},
    "LensTable": {"op": "lens", "positions": [0, 2], "run": "edited"},
    "PruningBoard": {"op": "load", "ranking": "exact", "kept": 24},
    "TokenStrip": {"op": "flow", "flow": "head", "layer": 3, "head": 0, "run": "edited"},
}
NAMES = tuple(FIRST)
READERS = tuple(name for name in NAMES if name != "PruningBoard")  # their question makes a run


class Curve:
    """As `experiments.prune_curve` gives it: heads are kept in their order."""

    metric = "cross_entropy"

    def __init__(self, rankings=("exact", "random", "random")):
        rows = [
            (dataset, ranking, kept, 9 - kept / 12 + shift)
            for dataset in ("English", "French")
            for shift, ranking in enumerate(rankings)
            for kept in (0, 24, 48)
        ]
        self.frame = pd.DataFrame(rows, columns=["dataset", "ranking", "kept", "value"])

    def keep(self, ranking, kept):
        return (np.arange(48) < kept).reshape(6, 8)


def make(name, session, **options):
    """A new view by its name."""
    curve = (Curve(),) if name == "PruningBoard" else ()
    if name == "GenScrubber":
        options = {"max_new_tokens": 3, **options}
    return getattr(widgets, name)(session, *curve, **options)


class Browser:
    """The other side of a view: what it sends is JSON, and so is what it hears."""

    def __init__(self, view):
        self.view, self.heard, self.id = view, [], 0
        view.send = lambda message, buffers=None: self.heard.append((_wired(message), buffers))

    def ask(self, op, **question):
        """The answer to a question, with its buffers as arrays of bytes."""
        self.id += 1
        self.view._on_message(self.view, _wired({"id": self.id, "op": op, **question}), [])
        answer, buffers = self.heard[-1]
        assert answer["id"] == self.id
        return {**answer, "buffers": [np.frombuffer(one, np.uint8) for one in buffers]}

    def first(self):
        """The answer to a view's own question."""
        return self.ask(**FIRST[type(self.view).__name__])

    def set(self, trait, **change):
        """Change a part of a dictionary that is synced."""
        self.view.set_state(_wired({trait: {**getattr(self.view, trait), **change}}))


def ask(view, op, **question):
    """The answer to one question."""
    return Browser(view).ask(op, **question)


def square(data, n, ground=0):
    """A lower triangle as the whole matrix."""
    if len(data) == n * n:
        return data.reshape(n, n)
    full = np.full((n, n), ground, np.uint8)
    at = 0
    for row in range(n):
        full[row, : row + 1] = data[at : at + row + 1]
        at += row + 1
    assert at == len(data)
    return full


def value_of(data, top=1.0, signed=False):
    """Numbers of bytes."""
    root = (data.astype(float) - 128) / 127 if signed else data / 255
    return np.sign(root) * root * root * top


def as_floats(data):
    """Numbers of float32."""
    return np.frombuffer(data.tobytes(), "<f4")


def error_bound(values, top=1.0, levels=255):
    """How far a number may be from its byte: roots are rounded to steps of 1 / levels."""
    half = 0.5 / levels
    return top * half * (2 * np.sqrt(np.abs(values) / top) + half) + 1e-6 * top


def saved_states(path):
    """The states in a saved page, and nothing in them that JavaScript would not read."""
    found = STATE.findall(path.read_text("utf-8"))
    return [json.loads(text, parse_constant=_refuse) for text in found]


def inflated(text):
    """An array of a saved page."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def canonical(question):
    """A question as JavaScript writes it, by hand: no float, no space, keys in order."""
    return json.dumps(question, sort_keys=True, separators=(",", ":"))


def _wired(message):
    return json.loads(json.dumps(message, allow_nan=False))


def _refuse(constant):
    raise AssertionError(f"{constant} is no JSON")
