"""HeadGrid: the attention of every head on one canvas."""

from typing import Any

import numpy as np
import pandas as pd

from bloomlab.errors import InputError
from bloomlab.widgets.look import ATTENTION
from bloomlab.widgets.pack import floats, lower, quantised, signed, trouble
from bloomlab.widgets.stills import mosaic
from bloomlab.widgets.view import Answer, View
from bloomlab.widgets.zoom import HeadZoom

SIZES = (48, 64)
MEASURES = ("entropy", "distance", "sink", "previous", "duplicate", "induction")


class HeadGrid(View):
    """Thumbnails of all heads.

    They show attention, value-weighted, of content or ALiBi alone, the difference that the edits
    make, or the importance of each head for the next token. Point at a head to preview it, click to
    look at it in every view of the session, `m` (or shift-click) masks it; filter by what heads do
    (`induction > .4 layer:2-5`), sort likewise.
    Thumbnails are pooled by their maximum. `value` is a table of what heads do.

    Args:
        session: what is looked through.
        prompt: a new prompt of the session; None leaves it.
        **controls: mode "pattern", "value", "content", "alibi", "difference", "importance"; sort
            "place", or a measure: "entropy", "distance", "sink", "previous", "duplicate",
            "induction", "importance"; filter, a text; scale "lab", "heat", "grey"; gamma 0.4 to
            2.5; threshold 0 to 0.5; sink True, False.
    """

    name = "grid"

    def defaults(self) -> dict[str, Any]:
        """All heads in their places."""
        return {**ATTENTION, "mode": "pattern", "sort": "place", "filter": ""}

    @property
    def value(self) -> pd.DataFrame:
        """One row a head: layer, head and what it looks at (see `Attention.tiles`)."""
        stats = np.stack(
            [self._tiles("pattern", layer)[2] for layer in range(self.session.n_layer)]
        )
        places = np.indices(stats.shape[:2]).reshape(2, -1)
        frame = pd.DataFrame(stats.reshape(-1, len(MEASURES)), columns=list(MEASURES))
        frame.insert(0, "layer", places[0])
        frame.insert(1, "head", places[1])
        return frame

    def answer_tiles(self, mode: str, size: int, run: str) -> Answer:
        """All thumbnails, their first columns without the first token, and what heads look at."""
        if size not in SIZES:
            raise InputError(f"thumbnails of {size} cells, expected one of {SIZES}.")
        found, layers = [], self.session.n_layer
        for layer in range(layers):
            found.append(self.session.tiles(mode, layer, size, which=run))
            if layer % 4 == 3 and layer < layers - 1 and not self._made(mode, size, run):
                self.status = f"layer {layer + 1} of {layers}"
        self.status = ""
        tiles, sinkless, stats = (np.stack(part) for part in zip(*found, strict=True))
        if mode != "pattern":  # what heads look at is said of their attention
            plain = [self.session.tiles("pattern", i, size, which=run)[2] for i in range(layers)]
            stats = np.stack(plain)
        top = 1.0 if mode in ("pattern", "content", "alibi") else _top(tiles)
        pack = signed if mode == "difference" else quantised
        facts = {
            "n": tiles.shape[-1],
            "top": top,
            "signed": mode == "difference",
            "trouble": trouble(tiles, "the attention"),
        }
        self._drawn = (mode, size, run, self._version)
        return facts, [lower(pack(tiles, top)), pack(sinkless, top).tobytes(), floats(stats)]

    def answer_importance(self) -> Answer:
        """What the next token loses without each head, KL in nats."""
        self.status = "every head is switched off once …"
        importance = self.session.importance()
        self.status = ""
        return {}, [floats(importance)]

    def exported(self) -> list[dict[str, Any]]:
        """The thumbnails, small and large."""
        mode, run = self.controls["mode"], self.place["run"]
        wanted = ("mode", "sort", "filter")
        important = any("importance" in self.controls[name] for name in wanted)
        mode = "pattern" if mode == "importance" else mode
        questions: list[dict[str, Any]] = [
            {"op": "tiles", "mode": mode, "size": size, "run": run} for size in SIZES
        ]
        return [*questions, {"op": "importance"}] if important else questions

    def companions(self) -> list[View]:
        """A page of the grid has a head beside it."""
        return [HeadZoom(self.session)]

    def still(self) -> bytes:
        """All thumbnails; of a difference its size."""
        mode, run = self.controls["mode"], self.place["run"]
        mode = "pattern" if mode == "importance" else mode
        found = [self._tiles(mode, layer)[0] for layer in range(self.session.n_layer)]
        tiles = np.abs(np.stack(found))
        top = 1.0 if mode in ("pattern", "content", "alibi") else _top(tiles)
        return mosaic(tiles / top, title=f"{mode}, {run}: {self.session.prompt}")

    def _tiles(self, mode: str, layer: int) -> Any:
        return self.session.tiles(mode, layer, SIZES[0], which=self.place["run"])

    def _made(self, mode: str, size: int, run: str) -> bool:
        return getattr(self, "_drawn", None) == (mode, size, run, self._version)


def _top(values: np.ndarray) -> float:
    size = np.abs(values[np.isfinite(values)])
    return float(size.max(initial=0.0)) or 1.0
