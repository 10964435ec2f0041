"""CompareRuns: one head in two runs, and the difference where their tokens agree."""

from typing import Any

import numpy as np
import pandas as pd

from bloomlab.errors import InputError
from bloomlab.widgets.look import ATTENTION
from bloomlab.widgets.pack import lower, quantised, signed, trouble
from bloomlab.widgets.protocol import ViewSession, check_open
from bloomlab.widgets.state import (
    check_kind,
    check_session,
    load_session,
    part,
    session_code,
    session_state,
)
from bloomlab.widgets.stills import matrix
from bloomlab.widgets.view import Answer, View


class CompareRuns(View):
    """Two prompts, masks or models side by side, tokens aligned by edit distance.

    Args:
        session: A, and B too if there is no other: its clean and its edited run.
        other: a session whose run is B: another prompt, other edits, another model.
        **controls: layout "1", "3", "6"; scale "lab", "heat", "grey"; gamma 0.4 to 2.5; threshold
            0 to 0.5; sink True, False.

    `value` is the table of the next tokens of both.
    """

    name = "compare"
    parts = ("zoom",)

    def __init__(self, session: Any, other: Any = None, **controls: Any) -> None:
        if other is not None and not isinstance(other, ViewSession):
            raise InputError(
                f"other is {other!r:.80} ({type(other).__name__}), expected a session: make "
                "another bl.Session(session.model, text)."
            )
        if other is not None:
            check_open(other, "CompareRuns")
        self._other: Any = other
        super().__init__(session, None, **controls)
        if other is not None:
            self._watch(other, self._on_session, ["version", "edits"])

    def defaults(self) -> dict[str, Any]:
        """A, B and the difference."""
        return {**ATTENTION, "layout": "3"}

    @property
    def value(self) -> pd.DataFrame:
        """Next tokens: label, and their probability in A and in B."""
        labels, before, after = self.session.next_of_two(*self._runs())
        return pd.DataFrame({"label": labels, "a": before, "b": after})

    def answer_compare(self, layer: int, head: int, values: bool) -> Answer:
        """Patterns of A, of B, and B minus A on the aligned tokens; value-weighted too."""
        a, b = self._runs()
        pairs = self.session.aligned(a, b)
        troubles: list[str] = []
        panels: list[dict[str, Any]] = []
        buffers: list[bytes] = []
        for quantity, said in (("pattern", ""), ("value", ", value-weighted"))[: 1 + bool(values)]:
            first, second = (run.pattern(layer, head, quantity=quantity) for run in (a, b))
            change = _change(first, second, pairs)
            sizes = [np.nan_to_num(one).max(initial=0.0) for one in (first, second)]
            top = 1.0 if quantity == "pattern" else float(max(sizes)) or 1.0
            far = float(np.abs(np.nan_to_num(change)).max(initial=0.0)) or 1.0
            for name, of, one in (("A", "a", first), ("B", "b", second)):
                panels.append({"title": name + said, "tokens": of, "top": top, "signed": False})
                buffers.append(lower(quantised(one, top)))
                troubles.append(trouble(one, f"{name}{said}"))
            title = f"B − A{said} (largest {far:.3g})"
            panels.append({"title": title, "tokens": "c", "top": far, "signed": True})
            buffers.append(lower(signed(change, far)))
        labels, before, after = self.session.next_of_two(a, b)
        names = ["all heads", "edited"] if self._other is None else ["A", "B"]
        facts = {
            "a": a.tokens,
            "b": b.tokens,
            "c": [a.tokens[i] for i, _ in pairs],
            "paired": len(pairs),
            "pairs": pairs,
            "names": names,
            "panels": panels,
            "trouble": " ".join(filter(None, troubles)),
            "labels": labels,
            "before": before,
            "after": after,
        }
        return facts, buffers

    def state_dict(self) -> dict[str, Any]:
        """As of every view, and the other session's."""
        other = None if self._other is None else session_state(self._other)
        return {**super().state_dict(), "other": other}

    def load_state_dict(self, state: Any) -> None:
        """As of every view; the other session's too, where there is one."""
        check_kind(state, type(self).__name__)
        beside = part(state, "other", dict | None)
        if both := self._other is not None and beside is not None:
            check_session(self._other, beside)
        super().load_state_dict(state)
        if both:
            load_session(self._other, beside)

    def given(self) -> list[str]:
        """The other session."""
        return [] if self._other is None else ["other"]

    def code(self) -> str:
        """Python that makes this view again; another model is `other_model`."""
        if self._other is None:
            return super().code()
        model = "model" if self._other.model is self.session.model else "other_model"
        return "\n".join([*session_code(self._other, "other", model), super().code()])

    def exported(self) -> list[dict[str, Any]]:
        """The chosen head."""
        at = self.session.selection
        values = self.controls["layout"] == "6"
        return [{"op": "compare", "layer": at.layer, "head": at.head, "values": values}]

    def still(self) -> bytes:
        """A and B side by side."""
        at = self.session.selection
        first, second = (run.pattern(at.layer, at.head) for run in self._runs())
        n = max(len(first), len(second))
        both = [np.pad(one, (0, n - len(one))) for one in (first, second)]
        return matrix(np.concatenate(both, 1), title=f"L{at.layer}H{at.head}: A | B")

    def _runs(self) -> tuple[Any, Any]:
        if self._other is None:
            return self.session.run("clean"), self.session.run("edited")
        return self.session.run("edited"), self._other.run("edited")


def _change(first: np.ndarray, second: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    if not pairs:
        raise InputError("the two texts have no token in common: there is nothing to compare.")
    a, b = (np.array(places) for places in zip(*pairs, strict=True))
    return second[np.ix_(b, b)] - first[np.ix_(a, a)]
