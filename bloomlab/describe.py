"""A model in words and numbers: its card, its sizes, where it fits. Loads no weights."""

import math
import re
from collections import Counter
from pathlib import Path

from huggingface_hub import snapshot_download
from safetensors import safe_open

from bloomlab.errors import CheckpointError
from bloomlab.machine import free_ram, gpus
from bloomlab.model.checkpoint import HEADS, PREFIX, SLOPES, read_config
from bloomlab.model.files import (
    DEMO,
    FORMATS,
    INDEX,
    PHASES,
    SINGLE,
    Weights,
    find_folder,
    read_json,
)
from bloomlab.model.hub import hub_trouble
from bloomlab.sizes import WIDTHS, Sizes, fit_lines, readable, shape_line, sizes_of

CARDS = ("README.md", "MODEL_CARD.md")


def described_folder(name: str, *, revision: str | None = None) -> Path:
    """A folder with a model's config.json; of a hub id only the small files are fetched.

    Raises:
        CheckpointError: no such folder, or the hub cannot be reached or does not have it.
    """
    try:
        folder = find_folder(name, revision=revision, local_files_only=True)
        if (folder / "config.json").exists() or Path(name).expanduser().is_dir():
            return folder
    except CheckpointError as error:
        if error.__cause__ is None:  # a path, not a hub id that is not downloaded yet
            raise
    try:
        wanted = ["config.json", *CARDS]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:
        why = hub_trouble(error, name, revision=revision)
        raise CheckpointError(
            f"cannot describe {name!r}: no such folder here, and {why} Check the name and the "
            "network, or give a folder or 'demo'."
        ) from error


def model_lines(name: str, folder: Path, *, tokens: int) -> list[str]:
    """Shape, parameters and bytes of the model in a folder, and where it fits; a line each.

    Parameters are counted in the headers of the files, or by the formula where there are none.

    Raises:
        CheckpointError: no BLOOM, or damaged files.
    """
    sizes = sizes_of(read_config(folder))
    stored = _stored(folder, tied=sizes.tie_word_embeddings)
    parameters = sizes.parameters if stored is None else stored[0]
    files = (
        "no safetensors here; counted from config.json"
        if stored is None
        else ", ".join(f"{readable(size)} {dtype}" for dtype, size in stored[1].items())
    )
    width = max(map(len, WIDTHS))
    return [
        f"{name}: {shape_line(sizes)}",
        f"  parameters      {parameters:,}",
        f"  weights stored  {files}",
        "  bytes by dtype",
        *(
            f"    {dtype:<{width}}  weights {readable(parameters * size):>8}   "
            f"KV cache {sizes.cache * size:,} bytes per token"
            for dtype, size in WIDTHS.items()
        ),
        f"Does it fit? weights + KV cache of one row of {tokens:,} tokens, a tenth of the memory "
        "left for activations:",
        *(f"  {line}" for line in _fits(sizes, tokens, parameters)),
    ]


def _fits(sizes: Sizes, tokens: int, parameters: int) -> list[str]:
    memory = {"RAM": free_ram()[0]} | {gpu: free for gpu, (free, _) in gpus().items()}
    return [
        *fit_lines(sizes, memory, tokens=tokens, parameters=parameters),
        *([] if len(memory) > 1 else ["GPU: none found"]),
    ]


def _stored(folder: Path, *, tied: bool) -> tuple[int, dict[str, int]] | None:
    """Parameters, and bytes by dtype, from the headers of the files; None if there are none.

    Raises:
        CheckpointError: damaged files.
    """
    if not any((folder / name).exists() for name in (SINGLE, INDEX)):
        return None
    Weights(folder)  # raises if the files are not whole
    single = (folder / SINGLE).exists()
    files = {SINGLE} if single else set(read_json(folder / INDEX)["weight_map"].values())
    parameters, sizes = 0, Counter[str]()
    for file in sorted(files):
        with safe_open(folder / file, framework="numpy") as opened:
            names = opened.keys()
            for name in names:
                piece = opened.get_slice(name)
                stored, count = piece.get_dtype(), math.prod(piece.get_shape())
                dtype = str(FORMATS.get(stored, stored)).removeprefix("torch.")
                sizes[dtype] += count * WIDTHS.get(dtype, 1)
                copy = tied and name.removeprefix(PREFIX).startswith(HEADS[0])
                parameters += 0 if copy or name.endswith(SLOPES) else count
    return parameters, dict(sizes)


def model_card(folder: Path) -> str | None:
    """The text of a folder's model card without its metadata; None if it has no card."""
    for card in (_home(folder) / name for name in CARDS):
        if card.is_file():
            text = card.read_text(encoding="utf-8", errors="replace")
            text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
            return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)  # nothing steers a terminal
    return None


def _home(folder: Path) -> Path:
    return DEMO.parent if folder == DEMO or folder.parent == PHASES else folder
