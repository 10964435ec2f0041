"""Checkpoint files: where they are (package, folder, hub), whether they can be trusted, what they hold."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bloomlab.errors import CheckpointError

DEMO = Path(__file__).parent.parent / "demo" / "checkpoint"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def find_folder(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    allow_pickle: bool = False,
) -> Path:
    """The folder of a checkpoint: "demo", a path, or a hub id (downloaded once, then cached).

    Raises:
        CheckpointError: no such folder, or the hub cannot be reached or does not have it.
    """
    if str(name) == "demo":
        return DEMO
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    looks_like_path = (
        path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") > 1
    )
    if path.exists() or looks_like_path:
        kind = "a file" if path.exists() else "missing"
        raise CheckpointError(
            f"{str(name)!r} is {kind}, expected a folder with config.json and {SINGLE} (or shards), "
            "'demo', or a hub id such as 'bigscience/bloom-560m'."
        )
    patterns = ["*.json", "*.safetensors", *(["*.bin"] if allow_pickle else [])]
    try:
        return Path(
            snapshot_download(
                str(name),
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=local_files_only,
                allow_patterns=patterns,
            )
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"cannot get {str(name)!r}{f' at revision {revision!r}' if revision else ''}: no such "
            f"folder here, and the hub says: {_first_line(error)} Check the name and the network, "
            "or load a folder, or the packaged model: bl.load('demo')."
        ) from error


class Weights(Mapping[str, Tensor]):
    """The tensors of a checkpoint by name, read when asked for; shapes are known before.

    Raises:
        CheckpointError: no weights, a pickle, a truncated file, an index that does not fit its
            shards, a shard name that leaves the folder.
    """

    def __init__(self, folder: Path, *, allow_pickle: bool = False, device: Any = "cpu") -> None:
        self.folder, self._device = folder, str(device)
        self._pickled: dict[str, Tensor] = {}
        if (folder / SINGLE).exists():
            self._files = dict.fromkeys(_names(folder / SINGLE), folder / SINGLE)
        elif (folder / INDEX).exists():
            self._files = _indexed(folder, INDEX)
            for file in sorted(set(self._files.values())):
                _require({n for n, f in self._files.items() if f == file}, _names(file), file)
        else:
            self._files = self._unpickled(allow_pickle)
        self._open: dict[Path, Any] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, name: str) -> Tensor:
        if name in self._pickled:
            return self._pickled[name]
        return self._reader(name).get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it."""
        if name in self._pickled:
            return tuple(self._pickled[name].shape)
        return tuple(self._reader(name).get_slice(name).get_shape())

    def _reader(self, name: str) -> Any:
        file = self._files[name]
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt", device=self._device)
        return self._open[file]

    def _unpickled(self, allow_pickle: bool) -> dict[str, Path]:
        found = [f for f in (PICKLE, PICKLE_INDEX) if (self.folder / f).exists()]
        if not found:
            raise CheckpointError(f"no weights in {self.folder}: expected {SINGLE} or {INDEX}.")
        if not allow_pickle:
            raise CheckpointError(
                f"{self.folder} holds only pickled weights ({found[0]}), which can run code when "
                "read. If you trust their source: allow_pickle=True; better, convert them to "
                "safetensors with save_pretrained."
            )
        files = (
            [self.folder / PICKLE]
            if found[0] == PICKLE
            else sorted(set(_indexed(self.folder, PICKLE_INDEX).values()))
        )
        for file in files:
            try:
                tensors = torch.load(file, map_location=self._device, weights_only=True, mmap=True)
            except Exception as error:  # torch.load raises whatever the pickle provokes
                raise CheckpointError(f"cannot read {file}: {_first_line(error)}") from error
            self._pickled |= tensors
        return dict.fromkeys(self._pickled, files[0])


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: no such file, or not a JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"no {file.name} in {file.parent}: this is no BLOOM checkpoint."
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file} holds a {type(content).__name__}, expected a JSON object.")
    return content


def _names(file: Path) -> list[str]:
    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file} is missing; the index lists it. Is the download complete?"
        ) from error
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} is truncated or no safetensors file ({_first_line(error)}). Get it again."
        ) from error


def _indexed(folder: Path, index: str) -> dict[str, Path]:
    """Tensor name -> shard file, from an index; shards must lie in the folder itself."""
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / index} has no weight_map.")
    for shard in set(weight_map.values()):
        if not isinstance(shard, str) or Path(shard).name != shard or shard in ("", ".", ".."):
            raise CheckpointError(
                f"{folder / index} names the shard {shard!r}, which is not a plain file name: refused."
            )
    return {name: folder / shard for name, shard in weight_map.items()}


def _require(wanted: set[str], found: list[str], file: Path) -> None:
    if missing := sorted(wanted - set(found)):
        raise CheckpointError(
            f"{file} lacks {len(missing)} tensors that the index places there, such as {missing[0]!r}."
        )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}".strip()
