"""Lab: everything at once, for people who do not want to write code."""

from typing import Any

from bloomlab.session import Session
from bloomlab.widgets.lab import LabView

START = "The cat sat on the mat. The cat sat on"


class Lab(LabView):
    """A prompt, all heads, and every view of them, in one: `bl.Lab(bl.load("demo"))`.

    Args:
        model: a BloomForCausalLM with its tokenizer, or a Session.
        prompt: where to start; None: with the session's own, or a sentence about a cat.

    Attributes:
        session: what all views share; `lab.session.edits`, `lab.session.run()` are for the next
            cell.
    """

    def __init__(self, model: Any, prompt: str | None = None) -> None:
        session = model if isinstance(model, Session) else Session(model, START)
        super().__init__(session)
        if prompt is not None:
            session.prompt = prompt
