"""What the browser runs: the scripts of a view put together, and the one style sheet."""

from functools import cache
from importlib.resources import files

SHARED = ("wire", "colors", "shell", "matrix", "drawing", "tokens")
FOLDER = files("bloomlab.widgets") / "js"


@cache
def script(parts: tuple[str, ...], title: str, draw: str) -> str:
    """The ESM of a view: what all share, its own parts, and which of them draws."""
    sources = [(FOLDER / f"{name}.js").read_text("utf-8") for name in (*SHARED, *parts, "entry")]
    return f'const TITLE = "{title}", VIEW = {draw};\n' + "\n".join(sources)


@cache
def style() -> str:
    """The one style sheet of all views."""
    return (FOLDER / "view.css").read_text("utf-8")
