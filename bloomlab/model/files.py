"""Checkpoint files: where they are (package, folder, hub), whether to trust them, what is in."""

import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  # httpx's
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bloomlab.errors import CheckpointError
from bloomlab.model.hub import hub_trouble
from bloomlab.tokens import DEMO, PHASES

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
HUB_FILES = ["*.json", "model*.safetensors", "merges.txt", "chat_template*"]
HUB_PICKLES = ["pytorch_model*.bin"]
WEIGHT_FILE = re.compile(r"model([-_]\d+-of-\d+)?\.safetensors(\.index\.json)?")
FORMATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def find_folder(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
) -> Path:
    """The folder of a checkpoint: "demo", a path, or a hub id (downloaded once, then cached).

    "demo-phases" with a revision such as "step300" is a step in the training of a smaller packaged
    model; `phases` lists them.

    Raises:
        CheckpointError: no such folder, or the hub cannot be reached or does not have it.
    """
    if not isinstance(name, str | Path) or not str(name):
        raise CheckpointError(f"{name!r} names no model; expected 'demo', a folder or a hub id.")
    if name == "demo":
        if revision not in (None, "main"):
            raise CheckpointError(
                f"'demo' has no revision {revision!r}: it is packaged as it is. A training history "
                "has 'demo-phases'."
            )
        return DEMO
    if name == "demo-phases":
        return _phase(revision)
    path, text = Path(name).expanduser(), str(name)
    if path.is_dir():
        return path
    is_path = isinstance(name, Path) or path.is_absolute() or text.startswith((".", "~"))
    if path.exists() or is_path or text.count("/") > 1:
        raise CheckpointError(
            f"{text!r} {'is a file' if path.exists() else 'does not exist'}; expected a folder "
            f"with config.json and {SINGLE} (or shards), a hub id such as 'bigscience/bloom-560m', "
            "or 'demo'."
        )

    def snapshot(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                text,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=patterns,
                ignore_patterns=["*/*"],  # other formats and training states lie in subfolders
            )
        )

    try:
        folder = snapshot(HUB_FILES)
        if allow_pickle and not any(folder.glob("*.safetensors")):
            folder = snapshot(HUB_FILES + HUB_PICKLES)
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        why = hub_trouble(error, text, revision=revision, local_files_only=local_files_only)
        raise CheckpointError(
            f"cannot get {text!r}{f' at revision {revision!r}' if revision else ''}: no such "
            f"folder here, and {why} Check the name and the network, or load a folder, or the "
            "packaged model: bl.load('demo')."
        ) from error
    return folder


def phases() -> list[str]:
    """Revisions of the packaged model "demo-phases", in the order of training."""
    return sorted((p.name for p in PHASES.glob("step*")), key=lambda name: int(name[4:]))


def _phase(revision: str | None) -> Path:
    known = phases()
    if revision is not None and revision not in known:
        raise CheckpointError(
            f"'demo-phases' has no revision {revision!r}; it has {', '.join(known)}."
        )
    return PHASES / (revision or known[-1])


class Weights(Mapping[str, Tensor]):
    """Tensors by name: a checkpoint folder's, read when asked for, or given ones.

    Attributes:
        source: the folder, in words, for messages.

    Raises:
        CheckpointError: no weights, a pickle, a truncated file, an index that does not fit its
            shards, a shard name that leaves the folder.
    """

    def __init__(
        self,
        source: Path | Mapping[str, Tensor],
        *,
        allow_pickle: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.source = str(source) if isinstance(source, Path) else "the model given"
        self._held: Mapping[str, Tensor] = {}
        self._readers: dict[str, Any] = {}
        if isinstance(source, Mapping):
            self._held = source
        elif (source / SINGLE).exists():
            reader = _opened(source / SINGLE, device)
            self._readers = dict.fromkeys(reader.keys(), reader)
        elif (source / INDEX).exists():
            places = _indexed(source, INDEX)
            readers = {file: _opened(file, device) for file in sorted(set(places.values()))}
            for file, reader in readers.items():
                _require({n for n, f in places.items() if f == file}, reader.keys(), file)
            self._readers = {name: readers[file] for name, file in places.items()}
        else:
            self._held = _unpickled(source, allow_pickle=allow_pickle, device=device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._held or self._readers)

    def __len__(self) -> int:
        return len(self._held or self._readers)

    def __getitem__(self, name: str) -> Tensor:
        return self._held[name] if self._held else self._readers[name].get_tensor(name)

    def check(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise a CheckpointError unless a tensor is floating-point and of this shape; unread."""
        if self._held:
            held = self._held[name]
            found, kind = tuple(held.shape), "no (offloaded?)" if held.is_meta else held.dtype
        else:
            header = self._readers[name].get_slice(name)
            found, kind = tuple(header.get_shape()), header.get_dtype()
        if found != shape:
            raise CheckpointError(
                f"{self.source}: {name} has shape {found}, the configuration expects {shape}. Do "
                "config.json and the weights belong together?"
            )
        if kind not in FORMATS and kind not in FORMATS.values():
            raise CheckpointError(
                f"{self.source}: {name} holds {kind} numbers, expected 16-, 32- or 64-bit floating "
                "point (quantised checkpoints: load the original, or dequantise it first)."
            )


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """An empty folder to write a checkpoint into; at the end its files replace those in `folder`.

    Nothing in `folder` changes before all is written. Each file is then swapped in whole (models
    that map the old one keep it), index and configuration last; left-over shards are removed.
    """
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"cannot save to {folder}: it is a file, expected a folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as name:
        scratch = Path(name)
        yield scratch
        written = [f.relative_to(scratch) for f in scratch.rglob("*") if f.is_file()]
        stale = {f for f in folder.iterdir() if WEIGHT_FILE.fullmatch(f.name)}
        for file in sorted(written, key=lambda f: (f.name == "config.json", f.name == INDEX)):
            (folder / file).parent.mkdir(exist_ok=True)
            os.replace(scratch / file, folder / file)
        for file in stale - {folder / f for f in written}:
            file.unlink()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: no such file, or not a JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no {file.name} in {file.parent}: this is no BLOOM checkpoint. Expected a folder as "
            "save_pretrained writes it."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file} is no readable JSON file: {_first_line(error)}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, expected a JSON object.")
    return content


def _opened(file: Path, device: torch.device | str) -> Any:
    try:
        return safe_open(file, framework="pt", device=str(device))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file} is missing; the index lists it. Is the download complete?"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is truncated or no safetensors file ({_first_line(error)}). Get it again "
            "(in a git clone: with git-lfs)."
        ) from error


def _indexed(folder: Path, index: str) -> dict[str, Path]:
    """Tensor name -> shard file, from an index; shards must lie in the folder itself."""
    places = read_json(folder / index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{folder / index} has no weight_map (tensor name -> shard file).")
    for shard in places.values():
        plain = isinstance(shard, str) and Path(shard).name == shard and "\\" not in shard
        if not plain or shard in ("", ".."):
            raise CheckpointError(
                f"{folder / index} names the shard {shard!r}, expected a plain file name: refused."
            )
    return {name: folder / shard for name, shard in places.items()}


def _require(wanted: set[str], found: Iterable[str], file: Path) -> None:
    if missing := sorted(wanted - set(found)):
        raise CheckpointError(
            f"{file} lacks {len(missing)} tensors that the index places there, such as "
            f"{missing[0]!r}. Do the index and the shards belong together?"
        )


def _unpickled(
    folder: Path, *, allow_pickle: bool, device: torch.device | str
) -> dict[str, Tensor]:
    found = [f for f in (PICKLE, PICKLE_INDEX) if (folder / f).exists()]
    if not found:
        raise CheckpointError(
            f"no weights in {folder}: expected {SINGLE} or {INDEX}"
            f"{f' or {PICKLE}' if allow_pickle else ' (pickles only with allow_pickle=True)'}."
        )
    if not allow_pickle:
        raise CheckpointError(
            f"{folder} holds only pickled weights ({found[0]}), which can run code when read. "
            "Pass allow_pickle=True to read them all the same, tensors only, and save_pretrained "
            "to have them as safetensors."
        )
    single = found[0] == PICKLE
    files = {folder / PICKLE} if single else set(_indexed(folder, PICKLE_INDEX).values())
    tensors: dict[str, Tensor] = {}
    for file in sorted(files):
        try:
            new_format = zipfile.is_zipfile(file)  # only this one can be mapped
            held = torch.load(file, map_location=device, weights_only=True, mmap=new_format)
        except Exception as error:  # whatever the pickle provokes
            raise CheckpointError(
                f"cannot read {file} ({type(error).__name__}): it is missing, damaged, or holds "
                "Python objects, which are never read. Expected a dict of tensors."
            ) from error
        if not isinstance(held, dict) or not all(isinstance(t, Tensor) for t in held.values()):
            raise CheckpointError(f"{file} holds no plain dict of tensors (a training state?).")
        tensors |= held
    return tensors


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".strip()
