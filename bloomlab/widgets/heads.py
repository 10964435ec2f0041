"""Heads as text: `L0H0 L1H4-7` <-> a mask with a 0 for each head that is off."""

import re
from itertools import groupby

import numpy as np
from jaxtyping import Float

from bloomlab.errors import InputError, UnknownNameError

_RUN = re.compile(r"L(\d+)H(\d+)(?:-(\d+))?", re.IGNORECASE)


def heads_off(head_mask: Float[np.ndarray, "layer head"]) -> str:
    """The heads whose mask is 0, runs of neighbours joined: `L0H0 L1H4-7`; empty if all are on."""
    runs: list[str] = []
    for layer, row in enumerate(head_mask):
        heads = np.flatnonzero(row == 0).tolist()
        for _, run in groupby(enumerate(heads), key=lambda pair: pair[1] - pair[0]):
            first, *rest = [head for _, head in run]
            runs.append(f"L{layer}H{first}" + (f"-{rest[-1]}" if rest else ""))
    return " ".join(runs)


def mask_without(text: str, n_layer: int, n_head: int) -> Float[np.ndarray, "layer head"]:
    """1 for every head but those in `text`, which are 0; separate them by spaces or commas.

    Raises:
        InputError: if a word is no head or run of heads.
        UnknownNameError: if the model does not have the head.
    """
    mask = np.ones((n_layer, n_head), dtype=np.float32)
    for word in text.replace(",", " ").split():
        match = _RUN.fullmatch(word)
        if match is None:
            raise InputError(f"{word!r} is no head. Write heads as L0H0, runs of heads as L1H4-7.")
        layer, first = int(match[1]), int(match[2])
        last = int(match[3] or first)
        if layer >= n_layer or not first <= last < n_head:
            where = f"Layers are 0 to {n_layer - 1}, heads 0 to {n_head - 1}, as in L0H0 or L1H4-7."
            raise UnknownNameError("head", word, [], where=where)
        mask[layer, first : last + 1] = 0
    return mask
