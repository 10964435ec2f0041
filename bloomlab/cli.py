"""The command line: `bloomlab lab | info | generate | bench`. Slow imports wait for a command."""

import hashlib
import json
import os
import re
import sys
from pathlib import Path
from typing import Annotated

import typer

import bloomlab
from bloomlab.errors import BloomlabError, InputError

TOUR = "00_tour.ipynb"
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what would steer a terminal
COPIED = ".bloomlab.json"  # in the user's folder: what was copied, to tell an edited notebook

app = typer.Typer(
    help="A Jupyter-first research lab for the BLOOM language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; what a user can mend ends in one message and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]  # TextIO
    try:
        app(prog_name="bloomlab")
    except BloomlabError as error:
        typer.echo(f"bloomlab: {error}", err=True)
        raise SystemExit(1) from None


def _version(wanted: bool) -> bool:
    if wanted:
        typer.echo(f"bloomlab {bloomlab.__version__}")
        raise typer.Exit
    return wanted


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


@app.command(context_settings={"ignore_unknown_options": True})
def lab(
    jupyter_arguments: Annotated[
        list[str] | None, typer.Argument(help="Passed on to `jupyter lab`.", show_default=False)
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where your copy of the notebooks is kept.")] = Path(
        "bloomlab-notebooks"
    ),
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the server.")] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Open no browser.")] = False,
) -> None:
    """Open JupyterLab on your own copy of the notebooks, starting with the tour.

    A notebook that you changed is never overwritten.
    """
    copied, kept = copy_notebooks(packaged_notebooks(), folder)
    typer.echo(f"Your notebooks: {folder.resolve()} ({len(copied)} copied)", err=True)
    if kept:
        typer.echo(
            f"Kept as you have them: {', '.join(kept)}. The packaged ones differ; for those too, "
            "rename yours or choose another --folder.",
            err=True,
        )
    given = jupyter_arguments or []
    arguments = [f"--ServerApp.root_dir={folder.resolve()}"]
    if not any(argument.startswith("--LabApp.default_url") for argument in given):
        arguments.append(f"--LabApp.default_url=/lab/tree/{TOUR}")
    if port is not None:
        arguments.append(f"--ServerApp.port={port}")
    if no_browser and "--no-browser" not in given:
        arguments.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0 and "--allow-root" not in given:
        typer.echo("Running as root, as in a container: passing --allow-root.", err=True)
        arguments.append("--allow-root")

    from jupyterlab.labapp import LabApp

    LabApp.launch_instance(argv=[*arguments, *given])


def packaged_notebooks() -> Path:
    """The folder of the notebooks: in the wheel, or in the repository it was installed from.

    Raises:
        BloomlabError: neither is there.
    """
    package = Path(bloomlab.__file__).parent
    if (package / "notebooks").is_dir():
        return package / "notebooks"
    if (package.parent / "pyproject.toml").exists() and (package.parent / "notebooks").is_dir():
        return package.parent / "notebooks"
    raise BloomlabError(
        f"no notebooks in {package}: the installation is incomplete. Install bloomlab again."
    )


def copy_notebooks(source: Path, folder: Path) -> tuple[list[str], list[str]]:
    """Copy what is new or newer; the names copied, and those kept because they were edited.

    Raises:
        InputError: the folder cannot be written.
    """
    if folder.resolve() == source.resolve():
        return [], []
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"{folder} is a file, expected a folder. Choose another place with --folder."
        )
    copied, kept = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = _copied_before(folder)
        for file in sorted(source.rglob("*")):
            name = file.relative_to(source)
            if not file.is_file() or any(part.startswith((".", "__")) for part in name.parts):
                continue
            target, fresh = folder / name, file.read_bytes()
            old = target.read_bytes() if target.exists() else None
            if old is not None and old != fresh and _digest(old) != known.get(name.as_posix()):
                kept.append(name.as_posix())
                continue
            if old != fresh:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(fresh)
                copied.append(name.as_posix())
            known[name.as_posix()] = _digest(fresh)
        (folder / COPIED).write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot keep notebooks in {folder}: {error.strerror or error}. Choose another place "
            "with --folder."
        ) from error
    return copied, kept


def _copied_before(folder: Path) -> dict[str, str]:
    try:
        known = json.loads((folder / COPIED).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@app.command()
def info(
    model: Annotated[
        str | None, typer.Argument(help="'demo', a folder or a hub id; none: this machine.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=0, help="Context length to plan for.")] = 2048,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")] = None,
    no_card: Annotated[bool, typer.Option("--no-card", help="Leave out the model card.")] = False,
) -> None:
    """Print a model's card, its sizes and where it fits; without a model, this machine.

    No weights are loaded, and none are downloaded.
    """
    if model is None:
        from bloomlab.machine import machine_lines

        typer.echo("\n".join(machine_lines()))
        return
    from bloomlab.describe import described_folder, model_card, model_lines

    folder = described_folder(model, revision=revision)
    lines = model_lines(model, folder, tokens=tokens)  # before the card: an error stands alone
    if not no_card:
        typer.echo((model_card(folder) or f"{model} has no model card.").rstrip() + "\n")
    typer.echo("\n".join(lines))


@app.command()
def generate(
    model: Annotated[str, typer.Argument(help="'demo', a folder or a hub id.")],
    prompt: Annotated[str, typer.Argument(help="The text to go on from.")],
    max_new_tokens: Annotated[int, typer.Option(help="How many tokens to add at most.")] = 40,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw tokens; else the likeliest.")
    ] = False,
    temperature: Annotated[float, typer.Option(help="Below 1 sharpens the odds.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="Draw from the k likeliest tokens; 0: all.")] = 50,
    top_p: Annotated[float, typer.Option(help="Draw from tokens of this joint probability.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Makes the draws repeatable.")] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="End at this text; may be given again.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="'cpu', 'cuda' ...; none: a GPU if any.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="'float32', 'bfloat16' ...")] = None,
) -> None:
    """Print the prompt and how the model goes on, token by token."""
    from bloomlab.model.load import load

    steps = load(model, device=device, dtype=dtype).stream(
        prompt,
        max_new_tokens=max_new_tokens,
        do_sample=sample,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop_strings=stop or None,
    )
    shown = 0
    for step in steps:
        text = prompt + step.text[0]
        typer.echo(STEERING.sub("", text[shown:]), nl=False)
        shown = len(text)
    typer.echo()


@app.command()
def bench(
    model: Annotated[
        str, typer.Option(help="'demo', a folder, a hub id, or a shape such as '560m'.")
    ] = "demo",
    only: Annotated[
        str, typer.Option(help="Some of forward, prefill, decode ..., parted by commas.")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Short texts, few turns.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="As a Markdown table.")] = False,
    write: Annotated[
        Path | None,
        typer.Option(help="A Markdown page, to make its <!-- table: MODEL --> anew."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="'cpu', 'cuda' ...; none: a GPU if any.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="'float32', 'bfloat16' ...")] = None,
) -> None:
    """Measure speed and memory against transformers, on the same weights, in turn."""
    from bloomlab.bench.cases import chosen, rows
    from bloomlab.bench.models import machine_line, make_pair
    from bloomlab.bench.page import Page
    from bloomlab.bench.plan import QUICK, Plan
    from bloomlab.bench.table import LEGEND, heading, line

    names = chosen([name.strip() for name in only.split(",") if name.strip()])
    page = None if write is None else Page(write, model)  # before anything is measured
    pair = make_pair(model, device=device, dtype=dtype)
    machine, measured = machine_line(pair), []
    typer.echo(f"{machine}\n{LEGEND}\n\n{heading(markdown=markdown)}")
    for row in rows(pair, QUICK if quick else Plan(), names):
        typer.echo(line(row, markdown=markdown))
        measured.append(row)
    if page is not None:
        page.write(machine, measured)
        typer.echo(f"Written to {write}.", err=True)
