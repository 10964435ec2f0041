"""A session as plain values and as Python: what a view needs to be made again."""

from typing import Any

import numpy as np

from bloomlab.errors import InputError
from bloomlab.widgets.heads import heads_off

EDITS = ("scale", "mean", "slopes")


def session_state(session: Any) -> dict[str, Any]:
    """Prompt and edits of a session."""
    edits = {name: getattr(session.edits, name).tolist() for name in EDITS}
    return {"prompt": session.prompt, "edits": edits}


def load_session(session: Any, state: dict[str, Any]) -> None:
    """Give a session the prompt and the edits of a state.

    Raises:
        InputError: the state is of a model with other heads.
    """
    edits = {
        name: np.array(state["edits"][name], dtype=getattr(session.edits, name).dtype)
        for name in EDITS
    }
    got, expected = edits["scale"].shape, session.edits.scale.shape
    if got != expected:
        raise InputError(
            f"a state of a model with {got} layers and heads, expected {expected}: load the model "
            "it was made with."
        )
    session.prompt = state["prompt"]
    session.edits = type(session.edits)(**edits)


def session_code(session: Any, name: str = "session", model: str = "model") -> list[str]:
    """Lines of Python that make a session again."""
    lines = [f"{name} = bl.Session({model}, {session.prompt!r})"]
    if made := session.edits.code():
        off = heads_off(session.edits.scale)
        lines.append(f"{name}.edits = {name}.edits{made}" + (f"  # off: {off}" if off else ""))
    return lines
