"""TokenStrip: the text itself, coloured by attention."""

from typing import Any

import numpy as np
from jaxtyping import Float

from bloomlab.widgets.look import ATTENTION
from bloomlab.widgets.pack import lower, quantised, trouble
from bloomlab.widgets.stills import words
from bloomlab.widgets.view import Answer, View


class TokenStrip(View):
    """Point at a token: what it attends to, or what attends to it, colours the others.

    By the chosen head (plain or value-weighted), the mean of its layer, or attention rollout up to
    it. `value` is the matrix behind the colours, [query key].

    Args:
        session: what is looked through.
        prompt: a new prompt of the session; None leaves it.
        **controls: flow "head", "value", "mean", "rollout"; side "from", "to"; scale "lab",
            "heat", "grey"; gamma 0.4 to 2.5; threshold 0 to 0.5; sink True, False.
    """

    name = "strip"

    def defaults(self) -> dict[str, Any]:
        """What the chosen head attends to."""
        return {**ATTENTION, "flow": "head", "side": "from"}

    @property
    def value(self) -> Float[np.ndarray, "query key"]:
        """The weights, as numbers."""
        at = self.session.selection
        return self.session.flow(self.controls["flow"], at.layer, at.head, which=at.run)

    def answer_flow(self, flow: str, layer: int, head: int, run: str) -> Answer:
        """The weights between all tokens."""
        values = self.session.flow(flow, layer, head, which=run)
        finite = values[np.isfinite(values)]
        top = float(finite.max(initial=0)) if flow == "value" else 1.0
        facts = {"top": top or 1.0, "trouble": trouble(values, "the attention")}
        return facts, [lower(quantised(values, top))]

    def exported(self) -> list[dict[str, Any]]:
        """The flow that is shown."""
        at = self.session.selection
        flow = self.controls["flow"]
        return [{"op": "flow", "flow": flow, "layer": at.layer, "head": at.head, "run": at.run}]

    def still(self) -> bytes:
        """The tokens, coloured by what the chosen one (or the last) attends to."""
        tokens = self.session.run(self.session.selection.run).tokens
        return words(tokens, self.value[self._query()])
