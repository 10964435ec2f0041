"""What MkDocs does with these pages beyond Markdown: fills slots, adds executed notebooks.

A slot is a comment on a line of its own:
`<!-- include: FILE -->` a Markdown file of the repository, its links turned to pages of the site;
`<!-- rows: FILE NAME -->` the table of that file whose first column is called NAME;
`<!-- notebooks -->` the list of notebooks; `<!-- commands -->` the command line's own help.
"""

import json
import logging
import posixpath
import re
from collections.abc import Callable, Iterator
from inspect import Signature, signature
from pathlib import Path
from typing import Any, NamedTuple, get_args

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.models import OptionInfo

LOG = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).parent.parent
SLOT = re.compile(
    r"^<!-- (include|rows|notebooks|commands)(?:: (\S+))?(?: (\S+))? -->$", re.MULTILINE
)
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_UNSAID = (Signature.empty, None, False, "")  # defaults that a table need not show
PAGES = {  # files of the repository that have a page of their own
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "bloomlab/demo/README.md": "demo.md",
    "bloomlab/excerpts/README.md": "excerpts.md",
    "notebooks": "notebooks.md",
}


class Notebook(NamedTuple):
    """A notebook as its first cell presents it."""

    name: str
    title: str
    question: str


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site, and those of the folder of executed notebooks, if one is given.

    Raises:
        PluginError: the folder that is named is not there.
    """
    if not (given := config.extra.get("notebook_pages")):
        return files
    folder = Path(given)
    if not folder.is_dir():
        raise PluginError(f"no folder of notebook pages {given!r}: docs/pages.py writes one.")
    for file in sorted(folder.iterdir()):
        name = f"notebooks/{file.name}"
        files.append(File.generated(config, name, abs_src_path=str(file.resolve())))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its slots filled."""
    source = page.file.src_uri

    def filled(slot: re.Match[str]) -> str:
        kinds: dict[str, Callable[[], str]] = {
            "include": lambda: included(slot[2], source),
            "rows": lambda: rows_of(slot[2], slot[3], source),
            "notebooks": lambda: notebook_list(files, source),
            "commands": lambda: "\n".join(command_lines()),
        }
        return kinds[slot[1]]()

    return SLOT.sub(filled, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page, with names of tests that break at their underscores, not within words."""

    def breakable(name: re.Match[str]) -> str:
        return re.sub("([_/])", r"\1<wbr>", name[0])

    return re.sub(r"(?<=<code>)tests?[_/][\w/.]+(?=</code>)", breakable, html)


def included(name: str, page: str) -> str:
    """A file of the repository, for a page of the site.

    Links to what is no page of the site lose their target and stay as text: the site is read
    where the repository is not.
    """
    file = ROOT / name
    if not file.is_file():
        LOG.warning("%s includes %s, which is not there.", page, name)  # ends a strict build
        return f"# {name}"

    def link(found: re.Match[str]) -> str:
        text, target, place = found[1], found[2], found[3] or ""
        if re.match(r"[a-z]+:", target):
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        inside = PAGES.get(target, target.removeprefix("docs/"))
        if inside == target and not target.startswith("docs/"):
            return text
        return f"[{text}]({posixpath.relpath(inside, posixpath.dirname(page) or '.')}{place})"

    return LINK.sub(link, file.read_text(encoding="utf-8"))


def rows_of(name: str, first: str, page: str) -> str:
    """The table of a file whose first column has this name, so that it is written once."""
    found = re.search(
        rf"^\| {re.escape(first)} \|.*\n(?:\|.*\n)+", included(name, page), re.MULTILINE
    )
    if found is None:
        LOG.warning("%s: %s has no table that begins with %r.", page, name, first)
        return ""
    return found[0]


def notebooks(folder: Path = ROOT / "notebooks") -> list[Notebook]:
    """Title and question of each notebook, from its first cell."""
    found = []
    for file in sorted(folder.glob("*.ipynb")):
        first = json.loads(file.read_text(encoding="utf-8"))["cells"][0]["source"]
        text = "".join(first)
        title = re.search(r"^# (.+)$", text, re.MULTILINE)
        question = re.search(r"^\*\*Question: (.+?)\*\*", text, re.MULTILINE | re.DOTALL)
        if title is None or question is None:
            raise PluginError(f"{file.name}: the first cell lacks a title or a question.")
        found.append(Notebook(file.stem, title[1], " ".join(question[1].split())))
    return found


def notebook_list(files: Files, page: str) -> str:
    """A table of the notebooks; titles are links where the executed page is in the site."""
    rows = ["| notebook | question |", "|---|---|"]
    for one in notebooks():
        target, title = f"notebooks/{one.name}.html", one.title
        if files.get_file_from_path(target):
            title = f"[{title}]({posixpath.relpath(target, posixpath.dirname(page) or '.')})"
        question = one.question[0].upper() + one.question[1:]
        rows.append(f"| {title}<br>`{one.name}.ipynb` | {question} |")
    return "\n".join(rows)


def command_lines() -> Iterator[str]:
    """A section for each command: what it does, its arguments and options."""
    from bloomlab.cli import app

    for command in app.registered_commands:
        assert command.callback is not None
        told = "\n".join(map(str.strip, (command.callback.__doc__ or "").splitlines()))
        yield f"## bloomlab {command.callback.__name__}\n\n{told}\n"
        yield "| argument | | default |\n|---|---|---|"
        for name, parameter in signature(command.callback).parameters.items():
            kind, given = get_args(parameter.annotation)
            label = name.upper()
            if isinstance(given, OptionInfo):
                flag = kind is bool
                types = [one for one in get_args(kind) or [kind] if one is not type(None)]
                label = f"--{name.replace('_', '-')}" + ("" if flag else f" {_word(types[0])}")
            default = "" if parameter.default in _UNSAID else f"`{parameter.default}`"
            yield f"| `{label}` | {given.help} | {default} |"
        yield ""


def _word(kind: Any) -> str:
    plain = (get_args(kind) or [kind])[0]
    return {Path: "FOLDER", int: "NUMBER", float: "NUMBER"}.get(plain, "TEXT")
