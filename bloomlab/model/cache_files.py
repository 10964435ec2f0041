"""Key-value caches as safetensors files."""

import dataclasses
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from bloomlab.errors import BloomlabError, CacheError, CheckpointError
from bloomlab.model.cache_state import Held
from bloomlab.model.files import FORMATS
from bloomlab.model.marks import Marks
from bloomlab.model.pieces import Pieces, whole
from bloomlab.model.policies import Full, HeavyHitters, SinkWindow

FORMAT, VERSION = "bloomlab.KVCache", 1
POLICIES = {kind.__name__: kind for kind in (Full, SinkWindow, HeavyHitters)}


def write(path: str | Path, cache: Held) -> None:
    """Write a cache to one file, which replaces an old one only when it is complete.

    Raises:
        CheckpointError: the file cannot be written.
        CacheError: a policy that is none of ours.
    """
    name = type(cache.policy).__name__
    if cache.policy is not None and type(cache.policy) is not POLICIES.get(name):
        raise CacheError(
            f"save: a file cannot hold the policy {cache.policy!r}; save a fork without it: "
            "plain = past.fork(); plain.policy = None."
        )
    tensors = {
        f"layers.{layer}.{place}.{part}": tensor
        for layer, pieces in enumerate(cache._layers)
        for place, piece in enumerate(pieces)
        for part, tensor in (("k", piece.k), ("v", piece.v))
    }
    if cache._marks is not None:
        tensors |= cache._marks._asdict()
    if cache._received is not None:
        tensors["received"] = cache._received
    about = {
        "version": VERSION,
        "n_layer": len(cache._layers),
        "rows": cache.n_rows,
        "length": len(cache),
        "seen": cache.seen,
        "evicted": cache._evicted,
        "policy": cache.policy and [name, dataclasses.asdict(cache.policy)],  # pyright: ignore[reportArgumentType]  # ours are dataclasses
    }
    path = Path(path).expanduser()
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".saving-") as folder:
            scratch = Path(folder) / path.name
            apart = {
                name: tensor.detach().clone(memory_format=torch.contiguous_format)
                for name, tensor in tensors.items()
            }
            save_file(apart, scratch, {FORMAT: json.dumps(about)})
            os.replace(scratch, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"cannot save the cache to {path}: {error}") from error


def read(path: str | Path, *, device: torch.device | str) -> dict[str, Any]:
    """The fields of a cache that `write` wrote, all checked.

    Raises:
        CheckpointError: no such file, or one that is truncated, foreign or inconsistent.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f"{path} is no file; expected one that KVCache.save wrote.")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            described = (file.metadata() or {}).get(FORMAT)
            if described is None:
                raise CheckpointError(
                    f"{path} is a safetensors file but no KVCache; expected one that KVCache.save "
                    "wrote."
                )
            about = json.loads(described)
            if about["version"] != VERSION:
                raise CheckpointError(
                    f"{path} has version {about['version']}, this bloomlab reads {VERSION}."
                )
            names = list(file.keys())
            return _fields(about, {name: file.get_tensor(name) for name in names})
    except (SafetensorError, OSError) as error:
        if isinstance(error, BloomlabError):
            raise
        raise CheckpointError(f"{path} is truncated or no safetensors file: {error}") from error
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise CheckpointError(f"{path} is inconsistent ({error}); save the cache again.") from error


def _fields(about: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    n_layer, rows, length, seen = (about[name] for name in ("n_layer", "rows", "length", "seen"))
    for count in (n_layer, rows, length, seen):
        _require(type(count) is int and count >= 0, f"a count is {count!r}")
    _require(type(about["evicted"]) is bool and seen >= length, "what was evicted is unclear")
    marks = None
    if "valid" in tensors:
        marks = Marks(*(tensors.pop(name) for name in Marks._fields))
        kinds = [(t.dtype, tuple(t.shape)) for t in marks]
        whole_number, shape = torch.int64, (rows, length)
        expected = [(whole_number, shape), (torch.bool, shape), (whole_number, (rows,))]
        _require(kinds == expected, f"positions and validity are {kinds}")
    received = tensors.pop("received", None)
    _require(received is None or received.shape == (rows, length), "received attention")
    layers = [_layer(layer, tensors, rows=rows, length=length) for layer in range(n_layer)]
    _require(not tensors, f"unexpected tensors {sorted(tensors)}")
    _require(len({p.k.dtype for pieces in layers for p in pieces}) <= 1, "several dtypes")
    return {
        "layers": layers,
        "rows": rows,
        "length": length,
        "seen": seen,
        "marks": marks,
        "received": received,
        "evicted": about["evicted"],
        "policy": about["policy"] and POLICIES[about["policy"][0]](**about["policy"][1]),
    }


def _layer(layer: int, tensors: dict[str, Tensor], *, rows: int, length: int) -> Pieces:
    pieces: list[Any] = []
    while (k := tensors.pop(f"layers.{layer}.{len(pieces)}.k", None)) is not None:
        v = tensors.pop(f"layers.{layer}.{len(pieces)}.v")
        fits = k.ndim == 4 and k.shape == v.shape and k.dtype == v.dtype and k.shape[2]
        _require(bool(fits) and k.dtype in FORMATS.values(), f"keys and values of layer {layer}")
        _require(rows % len(k) == 0, f"layer {layer} holds {len(k)} rows for {rows}")
        pieces.append(whole(k, v))
    _require(len({p.k.shape[1::2] for p in pieces}) <= 1, f"heads of layer {layer}")
    held = sum(piece.length for piece in pieces)
    _require(held == length, f"layer {layer} holds {held} of {length} tokens")
    return tuple(pieces)


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(what)
