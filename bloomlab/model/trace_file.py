"""A recording in a file: safetensors, with the rules of each part in the header."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bloomlab.errors import CheckpointError
from bloomlab.model.config import ALIBI_MODES
from bloomlab.model.parts import KINDS, Part

FORMAT, VERSION = "bloomlab trace", 1


def write_parts(path: Path, parts: Iterable[Part], *, n_layer: int) -> None:
    """Write parts to one file, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    headers = []
    for number, part in enumerate(parts):
        named = {
            **part.values,
            "keys": part.keys,
            **{f"slopes.{layer}": slope for layer, slope in enumerate(part.slopes)},
        }
        tensors |= {f"{number}/{n}": t.cpu().contiguous().clone() for n, t in named.items()}
        dtype = str(part.dtype).removeprefix("torch.")
        rules = {"mode": part.mode, "rounded": part.rounded, "dtype": dtype}
        headers.append({**rules, "names": sorted(named), "heads": part.heads})
    header = {"version": VERSION, "n_layer": n_layer, "parts": headers}
    metadata = {"format": FORMAT, "trace": json.dumps(header)}
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as scratch:
            save_file(tensors, Path(scratch) / path.name, metadata)
            os.replace(Path(scratch) / path.name, path)
    except OSError as error:
        raise CheckpointError(f"cannot save the trace to {path}: {error}") from error


def read_parts(path: Path, *, device: Any) -> tuple[list[Part], int]:
    """The parts that `write_parts` wrote, and the number of layers of their model.

    Raises:
        CheckpointError: no such file, truncated, not a trace, or parts of it missing.
    """
    with _opened(path, device) as file:
        header = _header(path, file.metadata() or {})
        held = set(file.keys())
        parts = []
        for number, rules in enumerate(header["parts"]):
            wanted = [f"{number}/{name}" for name in rules["names"]]
            if missing := sorted(set(wanted) - held):
                raise CheckpointError(f"{path} lacks {missing[0]!r}, which its header lists.")
            values = {name.split("/")[1]: file.get_tensor(name) for name in wanted}
            parts.append(_part(path, values, rules, n_layer=header["n_layer"]))
    return parts, header["n_layer"]


@contextmanager
def _opened(path: Path, device: Any) -> Iterator[Any]:
    try:
        reader = safe_open(path, framework="pt", device=str(device))
    except FileNotFoundError as error:
        raise CheckpointError(f"no trace at {path}: there is no such file.") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is truncated or no safetensors file ({error}); expected one that "
            "trace.save(path) wrote."
        ) from error
    with reader as file:
        yield file


def _header(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no trace; expected a file that trace.save(path) wrote.")
    try:
        header = json.loads(metadata["trace"])
        version = header["version"]
        if version == VERSION:
            rules = [(p["mode"], p["dtype"], list(map(str, p["names"]))) for p in header["parts"]]
            known = all(mode in ALIBI_MODES and _dtype(dtype) for mode, dtype, _ in rules)
            known = known and all(isinstance(p["rounded"], bool) for p in header["parts"])
            if rules and known and int(header["n_layer"]) > 0:
                return header
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: the trace's header is damaged ({error!r}).") from error
    raise CheckpointError(
        f"{path} is a trace of version {version!r}, or with rules this bloomlab does not know; "
        f"it reads version {VERSION}."
    )


def _part(path: Path, values: dict[str, Tensor], rules: dict[str, Any], *, n_layer: int) -> Part:
    try:
        keys = values.pop("keys")
        slopes = tuple(values.pop(f"slopes.{layer}").cpu() for layer in range(n_layer))
        shape = tuple(values["tokens"].shape)
        fits = values["valid"].shape == shape and keys.shape == shape[1:]
    except KeyError as error:
        raise CheckpointError(f"{path}: the trace's header does not list {error}.") from error
    columns = {n: t for n, t in values.items() if n.split(".")[0] in KINDS}
    wrong = [n for n, t in columns.items() if tuple(t.shape[:2]) != shape]
    if not fits or wrong:
        name = wrong[0] if wrong else "valid"
        raise CheckpointError(f"{path}: the trace's {name} does not fit its tokens {list(shape)}.")
    heads = rules.get("heads")
    if heads is not None and [len(some) for some in heads] != [len(some) for some in slopes]:
        raise CheckpointError(f"{path}: the trace's heads do not fit its slopes.")
    return Part(
        heads=None if heads is None else tuple(map(tuple, heads)),
        values=values,
        keys=keys.cpu(),
        slopes=slopes,
        mode=rules["mode"],
        rounded=rules["rounded"],
        dtype=_dtype(rules["dtype"]),
    )


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{name} is no number format")
    return dtype
