"""What a sparse autoencoder finds at every token."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.experiments.dataset import dataset
from bloomlab.experiments.sae_halves import (
    check_sae,
    encoded,
    named_latents,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Latents:
    """Latents of every token.

    Attributes:
        name: the hook point.
        tokens: ids of the texts.
        mask: False for padding.
        index: the number in the autoencoder of each latent kept.
        values: activations, 0 at padding.
    """

    name: str
    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    index: Int[Tensor, " latent"]
    values: Float[Tensor, "batch pos latent"]

    @property
    def frame(self) -> pd.DataFrame:
        """One row for every latent that is not 0 at a token: text pos token latent value.

        `pos` counts the attended tokens of a text from 0.
        """
        text, column, place = self.values.nonzero().unbind(-1)
        pos = self.mask.long().cumsum(-1) - 1
        found = {
            "text": text,
            "pos": pos[text, column],
            "token": self.tokens[text, column],
            "latent": self.index[place],
            "value": self.values[text, column, place],
        }
        return pd.DataFrame({name: numbers.cpu().numpy() for name, numbers in found.items()})


@torch.no_grad()
def sae_latents(
    model: Any,
    sae: Any,
    name: Any,
    tokens: Any,
    attention_mask: Any = None,
    *,
    latents: Any = None,
    batch_size: int = 16,
    progress: bool = True,
) -> Latents:
    """What an autoencoder finds at a hook point, for every token; `.frame` lists what is active.

    Args:
        model: a BLOOM of any class.
        sae: an autoencoder of the values at this point, any object with `encode` and `decode`.
        name: the hook point, with an axis of positions.
        tokens: texts, ids [batch pos] or a dict with `attention_mask`.
        attention_mask: [batch pos], 0 for padding.
        latents: only these latents are kept, in this order; None: all, which for n latents is
            4 * n bytes a token.
        batch_size: texts per forward.
        progress: show a bar while it takes long.

    Raises:
        InputError: no data, no autoencoder, or a batch size below 1.
        UnknownNameError: a hook point the model lacks, or a latent the autoencoder lacks.
        ShapeError: an autoencoder of another width.
    """
    check_sae(sae)
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}, expected a whole number from 1.")
    data = dataset(model, tokens, attention_mask)
    if not isinstance(name, str):
        raise InputError(f"a hook name is {name!r}, expected a string.")
    name = model.resolve_hook_name(name)
    found: list[Tensor] = []

    def read(value: Tensor, hook: Any) -> None:
        found.append(_kept(encoded(sae, value, name), latents))

    read.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
    for _, part in data.chunks(batch_size, progress=progress):
        mask = None if part.mask is None else part.mask.long()
        with model.hooks(fwd_hooks=[(name, read)]):
            model.backbone(part.tokens, attention_mask=mask, use_cache=False)
    values = torch.cat(found)
    index = torch.arange(values.shape[-1]) if latents is None else torch.as_tensor(latents)
    return Latents(
        name=name,
        tokens=data.tokens,
        mask=data.attended,
        index=index.to(values.device),
        values=values.masked_fill(~data.attended[..., None], 0.0),
    )


def _kept(latents: Tensor, wanted: Any) -> Tensor:
    return latents if wanted is None else latents[..., named_latents(wanted, latents)]
