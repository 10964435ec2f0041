"""What the numbers of a study depend on, as JSON: model, data, arguments, code, versions."""

import functools
import hashlib
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.experiments.dataset import Dataset

PACKAGE = Path(__file__).parents[1]
CODE = ("analysis", "experiments", "model")  # folders whose code makes the numbers
NO_CONTENT = ("_name_or_path", "dtype", "transformers_version")  # of a configuration


def study(
    *, model: Any, data: Dataset | Mapping[str, Dataset], arguments: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Everything that is needed to repeat a study, and to know it again.

    Args:
        model: its weights, ALiBi slopes and configuration are hashed.
        data: its ids and masks are hashed, under their names if it has several parts.
        arguments: kept as they are; see `plain`.
        seed: of all that is drawn.

    Raises:
        InputError: an argument that JSON cannot hold.
    """
    return {
        "model": model_identity(model),
        "data": data_identity(data),
        "arguments": plain("arguments", arguments),
        "seed": seed,
        "versions": {
            "bloomlab": version("bloomlab"),
            "torch": torch.__version__,
            "transformers": version("transformers"),
            "python": platform.python_version(),
        },
        "code": code_hash(),
        "device": model.device.type,
    }


@torch.no_grad()
def model_identity(model: Any) -> dict[str, Any]:
    """Class, dtype and a hash over weights, slopes and configuration; not over names and places."""
    fields = {n: v for n, v in model.config.to_dict().items() if n not in NO_CONTENT}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True, default=str).encode())
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        _add(digest, name, value)
    for name, module in model.named_modules():
        if isinstance(getattr(module, "slopes", None), Tensor):
            _add(digest, f"{name}.slopes", module.slopes)
    return {
        "class": type(model).__name__,
        "dtype": str(model.dtype),
        "sha256": digest.hexdigest(),
    }


def data_identity(data: Dataset | Mapping[str, Dataset]) -> dict[str, Any]:
    """Shape and a hash over ids and mask; for named parts, of each."""
    if not isinstance(data, Dataset):
        return {name: data_identity(part) for name, part in data.items()}
    digest = hashlib.sha256()
    _add(digest, "tokens", data.tokens)
    _add(digest, "attended", data.attended)
    return {"shape": list(data.tokens.shape), "sha256": digest.hexdigest()}


@functools.cache
def code_hash() -> str:
    """A hash over the package's code that numbers come from."""
    digest = hashlib.sha256()
    for folder in CODE:
        for file in sorted((PACKAGE / folder).rglob("*.py")):
            digest.update(file.relative_to(PACKAGE).as_posix().encode() + b"\0")
            digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()


def plain(name: str, value: Any) -> Any:
    """An argument as JSON holds it: numbers, text, lists, and what stands for other things.

    A tensor becomes lists; a Dataset its hash; a function its name and a hash of its code, without
    what it closes over.

    Raises:
        InputError: another kind of object; names the argument.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Dataset):
        return data_identity(value)
    if isinstance(value, Mapping):
        return {str(key): plain(f"{name}[{key!r}]", part) for key, part in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(f"{name}[{i}]", part) for i, part in enumerate(value)]
    if isinstance(value, FunctionType):
        digest = hashlib.sha256(repr(_code(value.__code__)).encode())
        return {"function": value.__qualname__, "sha256": digest.hexdigest()}
    if isinstance(value, functools.partial):
        parts = value.func, value.args, value.keywords
        return {"partial": plain(name, list(parts))}
    raise InputError(
        f"{name} is a {type(value).__name__}, which cannot be stored with results. Expected "
        "numbers, text, tensors, lists of them, or a function."
    )


def _code(code: CodeType) -> tuple[Any, ...]:
    """What a function does, wherever it stands."""
    inner = [_code(part) if isinstance(part, CodeType) else part for part in code.co_consts]
    return code.co_code, code.co_names, code.co_varnames, inner


def _add(digest: Any, name: str, value: Tensor) -> None:
    digest.update(f"{name} {value.dtype} {tuple(value.shape)}\0".encode())
    flat = value.detach().contiguous().cpu().flatten()
    digest.update(flat.view(torch.uint8).numpy().data)
