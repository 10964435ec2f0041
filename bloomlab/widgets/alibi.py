"""AlibiView: how far heads can see, and what happens when a slope is changed."""

from typing import Any

import numpy as np
import pandas as pd

from bloomlab.errors import InputError
from bloomlab.widgets.next_tokens import next_answer
from bloomlab.widgets.pack import floats, trouble
from bloomlab.widgets.stills import curves
from bloomlab.widgets.view import Answer, Number, View


class AlibiView(View):
    """ALiBi (Press et al., 2022): slopes, bias over distance, reach, and one row's scores in parts.

    The slider changes the slope of the chosen head in the running model; the next token and the KL
    from the intact prediction follow. `value` is a table of slopes.

    Args:
        session: what is looked through.
        prompt: a new prompt of the session; None leaves it.
        **controls: distance (tokens back) 8 to 512.
    """

    name = "alibi"

    def defaults(self) -> dict[str, Any]:
        """128 tokens back."""
        return {"distance": 128}

    @property
    def value(self) -> pd.DataFrame:
        """One row a head: layer, head, slope (logits a token, edited), factor (of the edit)."""
        rows = [
            (layer, head, self.session.slope(layer, head), self.session.edits.slopes[layer, head])
            for layer in range(self.session.n_layer)
            for head in self.session.kept(layer)
        ]
        return pd.DataFrame(rows, columns=["layer", "head", "slope", "factor"])

    def answer_slopes(self, layer: int, run: str) -> Answer:
        """Slopes of a layer's heads."""
        heads = self.session.kept(layer)
        return {"heads": heads, "slopes": [self.session.slope(layer, h, run) for h in heads]}, []

    def answer_scores(self, layer: int, head: int, query: int, run: str) -> Answer:
        """A row's content, bias and pattern."""
        parts = self.session.run(run).scores(layer, head, query)
        said = trouble(np.stack(parts), f"the row of L{layer}H{head}")
        return {"trouble": said}, [floats(part) for part in parts]

    def answer_slope(self, layer: int, head: int, factor: Number) -> Answer:
        """Scale a slope in the model."""
        self.session.edits = self.session.edits.with_slope(layer, head, float(factor))
        return {}, []

    def answer_slopes_back(self) -> Answer:
        """All slopes as trained; masks stay."""
        edits = self.session.edits
        ones = np.ones_like(edits.slopes)
        self.session.edits = type(edits)(scale=edits.scale, mean=edits.mean, slopes=ones)
        return {}, []

    def answer_next(self, k: int) -> Answer:
        """The next token."""
        return next_answer(self.session, k)

    def exported(self) -> list[dict[str, Any]]:
        """The chosen layer and row."""
        at = self.session.selection
        row = {"layer": at.layer, "head": at.head, "query": self._query(), "run": at.run}
        return [
            {"op": "slopes", "layer": at.layer, "run": at.run},
            {"op": "scores", **row},
            {"op": "next", "k": 3},
        ]

    def still(self) -> bytes:
        """Bias over distance."""
        layer = self.session.selection.layer
        distance = np.arange(self.controls["distance"] + 1)
        heads = self.session.kept(layer)
        if not heads:
            raise InputError(f"layer {layer} has no heads left, and so no slopes.")
        lines = [-self.session.slope(layer, head) * distance for head in heads]
        return curves(np.array(lines), title=f"ALiBi bias of layer {layer}, logits over distance")
