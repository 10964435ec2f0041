"""Weights as safetensors files of a limited size, with an index where there are several."""

import json
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.model.files import INDEX


def write_weights(
    weights: Mapping[str, Tensor],
    folder: Path,
    *,
    max_shard_size: int | str = "5GB",
    progress: bool = False,
) -> None:
    """Write tensors into a folder, in the files and under the names that transformers uses.

    Args:
        weights: contiguous, no two of the same memory.
        folder: where; files of the same names are overwritten.
        max_shard_size: of a file, in bytes or as "5GB"; a larger tensor gets a file of its own.
        progress: show a bar while it takes long.
    """
    plan = split_torch_state_dict_into_shards(dict(weights), max_shard_size=max_shard_size)
    files = plan.filename_to_tensors.items()
    for file, names in tqdm(files, desc="saving", unit="file", delay=2, disable=not progress):
        save_file({name: weights[name] for name in names}, folder / file, {"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / INDEX).write_text(text, encoding="utf-8")
