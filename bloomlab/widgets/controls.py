"""What a view's controls may be: one table, and the check of what is assigned or loaded."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import traitlets

from bloomlab.errors import InputError, UnknownNameError


@dataclass(frozen=True, slots=True)
class Choice:
    """One of some values; a number may stand for its text."""

    values: tuple[str, ...]

    def __call__(self, value: Any) -> str | None:
        """The value, None if it is not allowed."""
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        return text if isinstance(text, str) and text in self.values else None

    def __str__(self) -> str:
        return "one of " + ", ".join(map(repr, self.values))


@dataclass(frozen=True, slots=True)
class Range:
    """A number, both ends allowed; whole or not."""

    low: float | int
    high: float | int = math.inf
    whole: bool = False

    def __call__(self, value: Any) -> float | int | None:
        """The value, None if it is not allowed."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        if not (math.isfinite(value) and self.low <= value <= self.high):
            return None
        if self.whole:  # JavaScript and JSON may write 3 as 3.0
            return int(value) if value == int(value) else None
        return value

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        return f"{kind} from {self.low:g}" + (
            f" to {self.high:g}" if self.high < math.inf else " up"
        )


@dataclass(frozen=True, slots=True)
class Plain:
    """Any value of a type."""

    type: type
    said: str

    def __call__(self, value: Any) -> Any:
        """The value, None if it is not allowed."""
        return value if isinstance(value, self.type) else None

    def __str__(self) -> str:
        return self.said


Kind = Choice | Range | Plain
SWITCH = Plain(bool, "True or False")
HEAD_MODES = Choice(("pattern", "value", "content", "alibi", "difference"))
HEAD_KINDS: dict[str, Kind] = {"mode": HEAD_MODES}  # one head has no importance to show
MEASURES = ("entropy", "distance", "sink", "previous", "duplicate", "induction", "importance")
KINDS: dict[str, Kind] = {
    "compare": SWITCH,
    "distance": Range(8, 512, whole=True),
    "do_sample": SWITCH,
    "edges": Range(1, 12, whole=True),
    "filter": Plain(str, "a text"),
    "flow": Choice(("head", "value", "mean", "rollout")),
    "form": Choice(("matrix", "lines")),
    "gamma": Range(0.4, 2.5),
    "k": Range(1, 512, whole=True),
    "layout": Choice(("1", "3", "6")),
    "limit": Range(0),
    "max_new_tokens": Range(1, whole=True),
    "mean": SWITCH,
    "mode": Choice((*HEAD_MODES.values, "importance")),
    "scale": Choice(("lab", "heat", "grey")),
    "side": Choice(("from", "to")),
    "sight": Choice(("norms", "cosines", "paths", "parts")),
    "sink": SWITCH,
    "sort": Choice(("place", *MEASURES)),
    "temperature": Range(0.1, 2),
    "threshold": Range(0, 0.5),
    "top_k": Range(0, 512, whole=True),
    "top_p": Range(0.05, 1),
}


class Controls(traitlets.Dict):
    """The trait of a view's controls: what is missing is the view's default, the rest is checked.

    At once, not when notifications are released: there only a TraitError would be rolled back.
    """

    def validate(self, obj: Any, value: Any) -> Any:
        """All controls of a view."""
        return super().validate(obj, controls_of(obj, value))


def controls_of(view: Any, given: Any) -> dict[str, Any]:
    """All controls of a view, those given checked.

    Raises:
        UnknownNameError: the view has no such control.
        InputError: a value is not allowed, or these are no controls.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"controls are {given!r:.80}, expected a dictionary of name and value.")
    defaults, name = view.defaults(), type(view).__name__
    for one in given:
        if one not in defaults:
            where = "" if defaults else f"{name} has no controls."
            raise UnknownNameError("control", one, list(defaults), where=where)
    kinds = {**KINDS, **view.kinds}
    return {**defaults, **{one: _checked(one, v, kinds.get(one)) for one, v in given.items()}}


def _checked(name: str, value: Any, kind: Kind | None) -> Any:
    plain = value.item() if isinstance(value, np.generic) else value
    if kind is None:
        return plain
    found = kind(plain)
    if found is None:
        raise InputError(f"{name} is {plain!r:.80}, expected {kind}.")
    return found
