"""HeadZoom: one head, from the whole text down to single numbers."""

from typing import Any

import numpy as np
from jaxtyping import Float

from bloomlab.errors import InputError
from bloomlab.widgets.controls import HEAD_KINDS
from bloomlab.widgets.look import ATTENTION
from bloomlab.widgets.pack import floats, lower, quantised, signed, trouble
from bloomlab.widgets.stills import matrix
from bloomlab.widgets.view import Answer, View

CELLS = 2**14  # of exact numbers in one answer
EXPORTED = 16  # heads in a page


class HeadZoom(View):
    """The attention of the chosen head, queries down and keys across, or lines between tokens.

    Wheel or + and - zoom, drag or arrows move, click keeps a cell and asks for its exact number; at
    large zoom every cell shows its number. `value` is the matrix on screen, [query key].

    Args:
        session: what is looked through.
        prompt: a new prompt of the session; None leaves it.
        **controls: mode "pattern", "value", "content", "alibi", "difference"; form "matrix",
            "lines"; edges (lines a token) 1 to 12; scale "lab", "heat", "grey"; gamma 0.4 to 2.5;
            threshold 0 to 0.5; sink True, False.
    """

    name = "zoom"
    kinds = HEAD_KINDS

    def defaults(self) -> dict[str, Any]:
        """A matrix of attention."""
        return {**ATTENTION, "mode": "pattern", "form": "matrix", "edges": 3}

    @property
    def value(self) -> Float[np.ndarray, "query key"]:
        """What is shown, as numbers."""
        at = self.session.selection
        return self.session.attention(self.controls["mode"], at.layer, at.head, which=at.run)

    def answer_head(self, layer: int, head: int, run: str, mode: str) -> Answer:
        """One head: about half a byte a cell."""
        values = self.session.attention(mode, layer, head, which=run)
        size = np.abs(values[np.isfinite(values)])
        top = 1.0 if mode in ("pattern", "content", "alibi") else float(size.max(initial=0)) or 1.0
        pack = signed if mode == "difference" else quantised
        name = f"the attention of L{layer}H{head}"
        facts = {
            "top": top,
            "signed": mode == "difference",
            "slope": self.session.slope(layer, head, run),
            "trouble": trouble(values, name),
        }
        return facts, [lower(pack(values, top))]

    def answer_block(
        self,
        layer: int,
        head: int,
        run: str,
        mode: str,
        row: int,
        column: int,
        rows: int,
        columns: int,
    ) -> Answer:
        """Exact numbers of some cells, float32."""
        if rows * columns > CELLS or min(row, column) < 0 or min(rows, columns) < 1:
            raise InputError(f"{rows} x {columns} numbers from ({row}, {column}) are no block.")
        places = np.arange(len(self.session.run(run)))[row : row + rows]
        if not len(places):
            raise InputError(f"no row {row}: the text has {len(self.session.run(run))} tokens.")
        values = self.session.attention(mode, layer, head, which=run, queries=places)
        return {}, [floats(values[:, column : column + columns])]

    def exported(self) -> list[dict[str, Any]]:
        """The chosen head and as many others as a page should hold, layer by layer."""
        session, at = self.session, self.session.selection
        heads = [(at.layer, at.head)]
        every = [(at.layer, head) for head in session.kept(at.layer)]
        every += [(layer, head) for layer in range(session.n_layer) for head in session.kept(layer)]
        heads = list(dict.fromkeys([*heads, *every]))[:EXPORTED]
        mode = self.controls["mode"]
        return [
            {"op": "head", "layer": layer, "head": head, "run": at.run, "mode": mode}
            for layer, head in heads
        ]

    def still(self) -> bytes:
        """The matrix; of a difference its size."""
        at, values, mode = self.session.selection, np.abs(self.value), self.controls["mode"]
        top = 1.0 if mode in ("pattern", "content", "alibi") else float(np.nanmax(values)) or 1.0
        title = f"L{at.layer}H{at.head}, {mode}, {at.run}: {self.session.prompt}"
        return matrix(values / top, title=title)
