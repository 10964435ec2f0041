"""The texts that something runs on, as tensors: ids, mask, and slices of both."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.errors import InputError, ShapeError


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Token ids of examples and which of them are attended.

    Attributes:
        tokens: ids, on the model's device.
        mask: False for padding; None where nothing is.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"] | None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.tokens)

    @property
    def attended(self) -> Bool[Tensor, "batch pos"]:
        """The mask, written out."""
        return torch.ones_like(self.tokens, dtype=torch.bool) if self.mask is None else self.mask

    def rows(self, start: int, stop: int) -> "Dataset":
        """The examples from `start` to `stop`."""
        mask = None if self.mask is None else self.mask[start:stop]
        return Dataset(tokens=self.tokens[start:stop], mask=mask)

    def chunks(self, size: int, *, progress: bool = False) -> Iterator[tuple[int, "Dataset"]]:
        """The examples in groups of at most `size`, each with the number of its first.

        Args:
            size: examples in a group; the last may have fewer.
            progress: show a bar if it takes more than two seconds to go through them.

        Raises:
            InputError: a size below 1.
        """
        if size < 1:
            raise InputError(f"rows is {size}, expected 1 or more.")
        with tqdm(total=len(self), unit="text", delay=2, disable=not progress) as bar:
            for start in range(0, len(self), size):
                part = self.rows(start, start + size)
                yield start, part
                bar.update(len(part))


def dataset(model: Any, tokens: Any, attention_mask: Any = None) -> Dataset:
    """Texts, ids or a dict of ids and mask, as a Dataset.

    Args:
        model: decides the device and, for text, the tokenizer.
        tokens: a text, texts, ids [batch pos], or a mapping with `input_ids` or `tokens` and
            perhaps `attention_mask`.
        attention_mask: [batch pos], 0 for padding; None: nothing is (text brings its own).

    Raises:
        InputError: no examples, or no token ids.
        ShapeError: a mask that does not fit.
    """
    if isinstance(tokens, Dataset):
        return tokens
    if hasattr(tokens, "keys"):
        inside = {"tokens", "input_ids"} & set(tokens.keys())
        if len(inside) != 1:
            raise InputError(
                f"a batch has the entries {sorted(tokens.keys())}, expected `input_ids` or "
                "`tokens`, and perhaps `attention_mask`."
            )
        if attention_mask is None:
            attention_mask = tokens.get("attention_mask")
        tokens = tokens[inside.pop()]
    if isinstance(tokens, str | list | tuple) and len(tokens):
        tokens, own = model.to_tokens_and_mask(tokens)
        attention_mask = own if attention_mask is None else attention_mask
    if not isinstance(tokens, Tensor) or tokens.is_floating_point():
        raise InputError(
            f"the data is {type(tokens).__name__} {tokens!r:.60}, expected text, texts, or token "
            "ids [batch pos]."
        )
    if tokens.ndim == 1:
        raise ShapeError("tokens", got=tokens.shape, expected="[batch pos]", fix="Use ids[None].")
    if tokens.ndim != 2:
        raise ShapeError("tokens", got=tokens.shape, expected="[batch pos]")
    if not tokens.numel():
        raise InputError(
            f"the dataset is empty: {tuple(tokens.shape)} token ids. Give at least one example."
        )
    ids = tokens.to(model.device)
    if attention_mask is None:
        return Dataset(tokens=ids, mask=None)
    mask = torch.as_tensor(attention_mask, device=model.device) != 0
    if mask.shape != ids.shape:
        raise ShapeError("attention_mask", got=mask.shape, expected=f"{list(ids.shape)}")
    if blank := (~mask.any(-1)).nonzero()[:, 0].tolist():
        raise InputError(f"example {blank[0]} is all padding; drop it.")
    return Dataset(tokens=ids, mask=None if bool(mask.all()) else mask)
