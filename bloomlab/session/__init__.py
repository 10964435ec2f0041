"""What views ask of a model: a prompt, edits, a selection, and the runs they make."""

from bloomlab.session.edits import Edits
from bloomlab.session.generation import Generated
from bloomlab.session.run import Run
from bloomlab.session.selection import Selection
from bloomlab.session.session import Session

__all__ = ["Edits", "Generated", "Run", "Selection", "Session"]
