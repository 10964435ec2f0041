"""A language model with its tokenizer, by name: what most notebooks begin with."""

import inspect
from pathlib import Path
from typing import Any

import torch

from bloomlab.errors import UnknownArgumentError
from bloomlab.model.config import as_device, as_dtype
from bloomlab.model.files import find_folder
from bloomlab.model.heads import BloomForCausalLM
from bloomlab.tokens import BloomTokenizer


def load(
    name: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    alibi: str | None = None,
    allow_pickle: bool = False,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    progress: bool = True,
    **unknown: Any,
) -> Any:
    """A BloomForCausalLM with its tokenizer: `load("demo")`, a hub id, or a folder.

    Args:
        name: "demo" (packaged, offline), a hub id such as "bigscience/bloom-560m", or a folder;
            or "demo-phases", a smaller packaged model with its history (see `revision`).
        device: None takes a GPU if there is one.
        dtype: None takes float32 on a CPU, where half precision is slow and coarse, and the
            file's format on a GPU; "auto" always takes the file's.
        revision: branch, tag or commit of a hub id; a step of "demo-phases", such as "step300"
            (`bloomlab.demo.phases()` lists them).
        alibi: "hf" (bit-like transformers, the default) or "exact" (relative, float32).
        allow_pickle: also read pytorch_model.bin (tensors only).
        cache_dir: where downloads are kept.
        local_files_only: never ask the hub.
        progress: show a bar while it takes long.
        **unknown: refused.

    Raises:
        CheckpointError: not found, or not readable.
        ConfigError: no BLOOM.
        TokenizerError: no tokenizer beside the weights.
    """
    for argument in unknown:
        raise UnknownArgumentError("load", argument, inspect.signature(load))
    place = as_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    wanted = torch.float32 if dtype is None and place.type == "cpu" else as_dtype(dtype)
    folder = find_folder(
        name,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        allow_pickle=allow_pickle,
    )
    model = BloomForCausalLM.from_pretrained(
        folder,
        dtype=wanted,
        device=place,
        alibi=alibi,
        allow_pickle=allow_pickle,
        progress=progress,
    )
    model.config._name_or_path = str(name)
    if model.tokenizer is None:
        model.tokenizer = BloomTokenizer.from_pretrained(folder)
    return model
