"""Whether a generation fits into memory, told before it starts."""

from typing import Any

import psutil
import torch

from bloomlab.errors import InputError
from bloomlab.model.hooks import is_hooked
from bloomlab.sizes import USABLE, readable, sizes_of


def check_memory(model: Any, *, rows: int, prompt: int, length: int, cached: int) -> None:
    """Raise if the keys and values of so many rows, or a hooked layer's pattern, cannot fit.

    Args:
        model: the model that will run.
        rows: rows of the batch, with samples or beams.
        prompt: tokens of the prompt that the first forward reads.
        length: largest length of a row, prompt included.
        cached: tokens already in a cache.

    Raises:
        InputError: with what is needed, what is free and how to need less.
    """
    width = model.embed.weight.element_size()
    per_token = sizes_of(model.config).cache * width
    cache = rows * (length - cached) * per_token
    attention = [block.attn for block in model.blocks]
    eager = any(
        is_hooked(attn.hook_pattern) or is_hooked(attn.hook_attn_scores) for attn in attention
    )
    patterns = rows * model.config.n_head * prompt * (cached + prompt) * 4 * eager
    text = rows * length * 8
    total, free = cache + patterns + text, _free(model.device)
    if total <= free * USABLE:
        return
    hooked = f" + {readable(patterns)} for a hooked layer's scores" if patterns else ""
    raise InputError(
        f"{rows} rows of {length:,} tokens need {readable(total)} ({readable(per_token)} of keys "
        f"and values a token: {readable(cache)}{hooked}), but {readable(free)} are free on "
        f"{model.device}. Lower max_new_tokens, use fewer rows or a shorter prompt, or load the "
        "model with dtype=torch.bfloat16."
    )


def _free(device: torch.device) -> int:
    """Bytes that can still be taken; torch's own unused reserve counts as free."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    return psutil.virtual_memory().available
