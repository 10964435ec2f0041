"""Views as one HTML file: the same scripts, and answers in the place of a kernel."""

import base64
import html
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bloomlab.errors import InputError

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 16px; display: grid; grid-template-columns: minmax(0, 1fr); gap: 16px;
  background: Canvas; color: CanvasText; }}
{style}
</style></head><body>
{views}
</body></html>
"""
SUFFIXES = (".html", ".htm")
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
VIEW = """<div id="view{i}"></div>
<script type="application/json" id="state{i}">{state}</script>
<script type="module">
{script}
const state = JSON.parse(document.getElementById("state{i}").textContent);
openPage(state, document.getElementById("view{i}"));
</script>"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A view for a page.

    Attributes:
        script: draws it.
        style: of all views.
        state: its facts, controls, place and answers.
    """

    script: str
    style: str
    state: Mapping[str, Any]


def asked(question: Mapping[str, Any]) -> str:
    """A question as JavaScript writes it: keys sorted, whole numbers without a fraction."""
    whole = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in question.items()
    }
    return json.dumps(whole, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def packed(answers: Mapping[str, tuple[dict[str, Any], list[bytes]]]) -> dict[str, Any]:
    """Answers by question; arrays deflated, as base64."""
    return {
        question: [facts, [base64.b64encode(zlib.compress(one, 9)).decode() for one in buffers]]
        for question, (facts, buffers) in answers.items()
    }


def page(title: str, views: Sequence[Saved]) -> str:
    """The file. Tokens and prompts are data in it, never markup."""
    parts = []
    for i, view in enumerate(views):
        state = json.dumps(view.state, ensure_ascii=False).replace("<", "\\u003c")
        script = view.script.replace("export default", "const entry =")
        parts.append(VIEW.format(i=i, state=state, script=script))
    style = views[0].style
    return PAGE.format(
        title=html.escape(title[:120]), policy=POLICY, style=style, views="\n".join(parts)
    )


def page_path(path: Any) -> Path:
    """Where a page is to be written.

    Raises:
        InputError: no .html or .htm, or in no folder.
    """
    try:
        target = Path(path)
    except TypeError as error:
        raise InputError(f"a path is {path!r:.80}, expected one as 'page.html'.") from error
    if target.suffix.lower() not in SUFFIXES:
        raise InputError(f"{str(path)!r} is no name of a page: it must end with .html or .htm.")
    if not target.parent.is_dir():
        raise InputError(f"cannot write {str(path)!r}: there is no folder {str(target.parent)!r}.")
    return target


def write_page(target: Path, title: str, views: Sequence[Saved]) -> Path:
    """Write the file.

    Raises:
        InputError: it cannot be written.
    """
    try:
        target.write_text(page(title, views), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {str(target)!r}: {error.strerror or error}.") from error
    return target
