"""The two halves of a sparse autoencoder, run with checks.

An autoencoder is any object with `encode`, from a hook's value [batch pos d_model] to latents
[batch pos latent], and `decode`, back: SAELens' `SAE`, what `read_sae` reads, or one of your own.
Its width is checked before it runs if it says so: `cfg.d_in`, or `W_enc` [d_model latent].
"""

import operator
from typing import Any

from torch import Tensor

from bloomlab.errors import InputError, ShapeError, UnknownNameError


def check_sae(sae: Any) -> None:
    """Raise an InputError unless `sae` can encode and decode."""
    if not (callable(getattr(sae, "encode", None)) and callable(getattr(sae, "decode", None))):
        raise InputError(
            f"the autoencoder is {type(sae).__name__!r}, expected an object with encode and decode."
        )


def encoded(sae: Any, value: Tensor, name: str) -> Tensor:
    """Latents of a hook's value, [batch pos latent]."""
    width, heads = _width(sae), value.shape[2:].numel()
    if width is not None and width not in (value.shape[-1], heads):
        raise ShapeError(
            f"the value at {name}",
            got=value.shape,
            expected=f"{width} numbers a token, the width of the autoencoder",
            fix="Take an autoencoder of this model and this hook point.",
        )
    try:
        latents = sae.encode(value)
    except RuntimeError as error:  # torch's, for an autoencoder that does not say its width
        raise InputError(
            f"the autoencoder cannot encode {name}, {list(value.shape)} in {value.dtype}: {error} "
            "Is it for a model of another width, or in another dtype or on another device?"
        ) from error
    latents = latents.to_dense() if latents.is_sparse else latents
    if latents.ndim != 3 or latents.shape[:2] != value.shape[:2]:
        expected = f"({value.shape[0]}, {value.shape[1]}, latent)"
        raise ShapeError(f"what encode made of {name}", got=latents.shape, expected=expected)
    return latents


def decoded(sae: Any, latents: Tensor, value: Tensor, name: str) -> Tensor:
    """The value at a hook point that latents stand for, shaped as the one there."""
    new = sae.decode(latents)
    if new.ndim == 3 and value.ndim == 4 and new.shape[-1] == value.shape[2:].numel():
        new = new.reshape(value.shape)  # heads side by side
    if new.shape != value.shape:
        expected = str(tuple(value.shape))
        raise ShapeError(f"what decode made for {name}", got=new.shape, expected=expected)
    return new


def _width(sae: Any) -> int | None:
    """Numbers a token that an autoencoder takes, if it says so."""
    width = getattr(getattr(sae, "cfg", None), "d_in", None)
    weight = getattr(sae, "W_enc", None)
    return weight.shape[0] if width is None and isinstance(weight, Tensor) else width


def named_latents(wanted: Any, latents: Tensor) -> list[int]:
    """The numbers of latents as a list, each of them there."""
    try:
        found = [operator.index(latent) for latent in wanted]
    except TypeError as error:
        raise InputError(f"latents is {wanted!r}, expected a list of whole numbers.") from error
    for latent in found:
        if not 0 <= latent < latents.shape[-1]:
            where = f"The autoencoder has {latents.shape[-1]}, from 0."
            raise UnknownNameError("latent", latent, (), where=where)
    return found
