"""A session as plain values and as Python: what a view needs to be made again."""

from types import UnionType
from typing import Any

import numpy as np

from bloomlab.errors import BloomlabError, InputError
from bloomlab.widgets.heads import heads_off

EDITS = ("scale", "mean", "slopes")
PLACES = ("layer", "head", "query", "key", "step", "run")
Whole = tuple[str, Any, dict[str, Any]]  # prompt, edits, selection


def places(session: Any) -> dict[str, Any]:
    """What the views of a session point at."""
    return {name: getattr(session.selection, name) for name in PLACES}


def session_state(session: Any) -> dict[str, Any]:
    """Prompt and edits of a session."""
    edits = {name: getattr(session.edits, name).tolist() for name in EDITS}
    return {"prompt": session.prompt, "edits": edits}


def part(state: Any, name: str, kind: type | UnionType) -> Any:
    """A part of a state.

    Raises:
        InputError: this is no state, or it lacks the part, or that is something else.
    """
    if not isinstance(state, dict):
        raise InputError(f"a state is {state!r:.80}, expected the dictionary of `state_dict()`.")
    if name not in state or not isinstance(state[name], kind):
        got = f"{name!r} of it is {state[name]!r:.80}" if name in state else f"it lacks {name!r}"
        raise InputError(f"no state that `state_dict()` gives: {got}.")
    return state[name]


def check_kind(state: Any, name: str) -> None:
    """Refuse the state of another kind of view.

    Raises:
        InputError: it is one, or no state.
    """
    if (got := part(state, "view", str)) != name:
        raise InputError(f"a state of {got!r}, expected one of {name!r}.")


def check_session(session: Any, state: Any) -> tuple[str, Any]:
    """Prompt and edits in a state, for a session that stays as it is.

    Raises:
        InputError: the state lacks parts, or is of a model with other heads.
    """
    prompt, found = part(state, "prompt", str), part(state, "edits", dict)
    for name in EDITS:
        part(found, name, list)
    try:
        edits = type(session.edits)(**{name: np.array(found[name]) for name in EDITS})
    except (TypeError, ValueError) as error:
        if isinstance(error, BloomlabError):
            raise
        raise InputError(f"edits of a state are no numbers [layer head]: {error}") from error
    got, expected = edits.scale.shape, session.edits.scale.shape
    if got != expected:
        raise InputError(
            f"a state of a model with {got} layers and heads, expected {expected}: load the model "
            "it was made with."
        )
    return prompt, edits


def whole_state(session: Any) -> dict[str, Any]:
    """Prompt, edits and selection of a session."""
    return {**session_state(session), "selection": places(session)}


def read_whole(session: Any, state: Any, name: str) -> tuple[Whole, dict[str, Any]]:
    """What `load_whole` takes, and the controls in the state; the session stays as it is.

    Raises:
        InputError: the state is of another kind of view or model, or lacks parts.
    """
    check_kind(state, name)
    prompt, edits = check_session(session, state)
    chosen, controls = part(state, "selection", dict), part(state, "controls", dict)
    for place in PLACES:
        part(chosen, place, object)
    type(session.selection)(session.n_layer, session.n_head).set(**chosen)
    return (prompt, edits, chosen), controls


def load_whole(session: Any, whole: Whole) -> None:
    """Give a session its prompt, edits and selection."""
    session.prompt, session.edits, chosen = whole
    session.selection.set(**chosen)


def load_session(session: Any, state: Any) -> None:
    """Give a session the prompt and the edits of a state.

    Raises:
        InputError: the state lacks parts, or is of a model with other heads; nothing changes.
    """
    session.prompt, session.edits = check_session(session, state)


def session_code(session: Any, name: str = "session", model: str = "model") -> list[str]:
    """Lines of Python that make a session again."""
    lines = [f"{name} = bl.Session({model}, {session.prompt!r})"]
    if made := session.edits.code():
        off = heads_off(session.edits.scale)
        lines.append(f"{name}.edits = {name}.edits{made}" + (f"  # off: {off}" if off else ""))
    return lines
