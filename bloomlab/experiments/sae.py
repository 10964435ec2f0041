"""Sparse autoencoders spliced into a run (Bricken et al., 2023; Marks et al., arXiv:2403.19647)."""

from collections.abc import Callable, Mapping
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.experiments.sae_halves import (
    check_sae,
    decoded,
    encoded,
    named_latents,
)
from bloomlab.interventions import Intervention

Edit = Callable[[Tensor], Tensor]


def splice_sae(sae: Any, name: Any, *, error_term: bool = True, edit: Any = None) -> Intervention:
    """The value at a hook point replaced by an autoencoder's reconstruction of it.

    Works wherever an intervention does, so it can be scheduled: `.at_columns`, `.during`, ....
    With the error term (Marks et al., 2024, arXiv:2403.19647) what the autoencoder misses is added
    back: without an edit the run is unchanged, to the bit, and gradients flow through the latents
    alone.

    Args:
        sae: an autoencoder of the values at this point, any object with `encode` and `decode`.
        name: the hook point, e.g. "blocks.3.hook_resid_post"; at `attn.hook_z` an autoencoder gets
            [batch pos head d_head] and has to flatten heads itself, as SAELens' does.
        error_term: add what the unedited reconstruction misses.
        edit: maps latents [batch pos latent] to new ones of the same shape; `scale_latents` makes
            one. None: they stay.

    Raises:
        InputError: no autoencoder, or an edit that is no function.
        ShapeError: when it acts: an autoencoder of another width, or an edit that changes shapes.
    """
    check_sae(sae)
    if not isinstance(name, str):
        raise InputError(f"a hook name is {name!r}, expected a string.")
    if edit is not None and not callable(edit):
        raise InputError(
            f"edit is {edit!r}, expected a function of latents, as scale_latents({{latent: 0.0}})."
        )
    act = partial(_spliced, sae=sae, change=edit, error=error_term)
    return Intervention(name=name, edit=act)


def scale_latents(factors: Any) -> Edit:
    """An edit of `splice_sae` that multiplies latents by numbers; 0 ablates.

    Args:
        factors: number of a latent -> its factor.

    Raises:
        InputError: no factors, or what is no number.
        UnknownNameError: when it acts: a latent that the autoencoder lacks.
    """
    if not isinstance(factors, Mapping) or not factors:
        raise InputError(f"factors is {factors!r}, expected a dict of latent -> factor.")
    for latent, factor in factors.items():
        if isinstance(latent, bool) or not isinstance(latent, int) or latent < 0:
            raise InputError(f"a latent is {latent!r}, expected a whole number from 0.")
        if isinstance(factor, bool) or not isinstance(factor, Real):
            raise InputError(f"the factor of latent {latent} is {factor!r}, expected a number.")
    return partial(_scaled, factors=dict(factors))


def _spliced(old: Tensor, spot: Any, *, sae: Any, change: Any, error: bool) -> Tensor:
    latents = encoded(sae, old, spot.name)
    if change is not None:
        clean, latents = latents, change(latents)
        if not isinstance(latents, Tensor) or latents.shape != clean.shape:
            got = tuple(latents.shape) if isinstance(latents, Tensor) else repr(latents)
            raise InputError(
                f"the edit made {got} of latents {tuple(clean.shape)}; keep the shape."
            )
    new = decoded(sae, latents, old, spot.name)
    if not error:
        return new.to(old)
    plain = new.detach()
    if change is not None:
        with torch.no_grad():  # encoded anew: some autoencoders normalise by what they saw last
            plain = decoded(sae, encoded(sae, old, spot.name), old, spot.name)
    return (old.detach() + (new - plain)).to(old)


def _scaled(latents: Tensor, *, factors: dict[int, Any]) -> Tensor:
    named_latents(list(factors), latents)
    scale = latents.new_ones(latents.shape[-1])
    for latent, factor in factors.items():
        scale[latent] = factor
    return latents * scale
