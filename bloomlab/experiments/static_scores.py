"""What heads do in a plain forward: how sure they look, and how much they write. No metric."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.gated_runs import GatedRuns


@torch.no_grad()
def attention_confidence(runs: GatedRuns) -> Float[Tensor, "example layer head"]:
    """Mean over queries of the largest attention weight (Voita et al., 2019, arXiv:1905.09418).

    Probability, 0..1. The end-of-text token counts neither as query nor as key, and the first token
    of an example, which sees nothing but itself, not as query. 0 where no query is left.
    """
    eos = runs.model.config.eos_token_id

    def largest(pattern: Tensor, part: Dataset, layer: int) -> Tensor:
        counts = part.attended & (part.attended.cumsum(-1) > 1)
        if eos is not None:
            ends = part.tokens == eos
            counts = counts & ~ends
            pattern = pattern.masked_fill(ends[:, None, None], 0)
        return _mean_at(pattern.amax(-1).mT, counts)

    return _over_layers(runs, "pattern", largest)


@torch.no_grad()
def output_norm(runs: GatedRuns) -> Float[Tensor, "example layer head"]:
    """Mean over tokens of the length of what a head writes to the stream, z W_O."""

    def length(z: Tensor, part: Dataset, layer: int) -> Tensor:
        weights = runs.model.blocks[layer].attn.W_O.to(torch.promote_types(z.dtype, torch.float32))
        gram = weights @ weights.mT  # head d_head d_head; the stream is much wider
        z = z.to(gram)
        squares = (torch.einsum("bthd,hde->bthe", z, gram) * z).sum(-1)
        return _mean_at(squares.clamp(min=0).sqrt(), part.attended)

    return _over_layers(runs, "z", length)


def _mean_at(values: Tensor, counts: Tensor) -> Float[Tensor, "batch head"]:
    """Mean of [batch pos head] where it counts."""
    total = values.masked_fill(~counts[..., None], 0).sum(1)
    return total / counts.sum(1).clamp(min=1)[:, None]


def _over_layers(
    runs: GatedRuns, point: str, reduce: Callable[[Tensor, Dataset, int], Tensor]
) -> Float[Tensor, "example layer head"]:
    """A number of each example and head, made of a hook point as soon as it is there."""
    found = []
    wide = torch.promote_types(runs.model.dtype, torch.float32)
    for some in runs.chunks():
        part = runs.data.rows(some.start, some.stop)
        kept: list[Tensor] = []

        def keep(layer: int, part: Dataset = part, kept: list[Tensor] = kept) -> Any:
            return lambda value, hook: kept.append(reduce(value, part, layer).to(wide))

        layers = range(len(runs.mask))
        hooks = [(f"blocks.{layer}.attn.hook_{point}", keep(layer)) for layer in layers]
        with runs.model.hooks(fwd_hooks=hooks):
            runs.model.backbone(
                part.tokens,
                attention_mask=None if part.mask is None else part.mask.long(),
                head_mask=runs.mask,
                use_cache=False,
            )
        found.append(torch.stack(kept, 1).cpu())
    return torch.cat(found)
