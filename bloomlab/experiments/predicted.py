"""What a model says by itself: the usual answer of experiments that ask what changes it."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.recorded import given

ANSWERED = ("probability", "cross_entropy", "accuracy")  # metrics of one right token


@torch.no_grad()
def likeliest(model: Any, data: Dataset, positions: Any, rows: int) -> Int[Tensor, " example"]:
    """The likeliest next token of each text at a position.

    Args:
        model: a BLOOM with an unembedding.
        data: the texts.
        positions: one column.
        rows: texts in a forward.

    Raises:
        InputError: no column, several, or one that is padding in some text.
    """
    found = torch.as_tensor([] if positions is None else positions).reshape(-1)
    n = data.tokens.shape[1]
    if len(found) != 1 or not -n <= int(found[0]) < n:
        raise InputError(f"positions is {positions!r}: without answers, name one position.")
    column = int(found[0])
    if lacking := (~data.attended[:, column]).nonzero()[:, 0].tolist():
        raise InputError(
            f"positions is {positions!r}, which is padding in text {lacking[0]}: pad on the left."
        )
    last = [
        model.backbone(part.tokens, attention_mask=given(part.mask), use_cache=False).last
        for _, part in data.chunks(rows)
    ]
    return torch.cat([model.unembed(one[:, column]).argmax(-1) for one in last])
