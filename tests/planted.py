"""Models whose weights are written by hand, so that it is known what every head is for.

`induction_circuit`: `bloomlab.demo.planted`'s, with transformers' model beside it. `linear_model`:
content-free patterns, no MLPs, LayerNorms that only scale: logits are linear in the gate of each
head.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import transformers

import bloomlab as bl
from bloomlab.demo import planted
from bloomlab.demo.planted import FIRM, SHARP, SOFT

__all__ = ["FIRM", "SHARP", "SOFT", "induction_circuit", "linear_model"]


@dataclass(frozen=True, kw_only=True)
class Circuit(planted.PlantedCircuit):
    """A planted circuit; `hf` is transformers' model with the same weights."""

    hf: Any


def induction_circuit(*strengths, **options):
    """The package's circuit, and transformers' model of it."""
    found = planted.induction_circuit(*strengths, **options)
    return Circuit(**vars(found), hf=found.model.to_hf().eval())


def linear_model(*, n_layer=3, n_head=6, d_head=4, n_token=11, seed=0):
    """A float64 model whose logits are linear in each head's gate: to the last bits."""
    width, huge = n_head * d_head, 1e18
    config = transformers.BloomConfig(
        vocab_size=n_token,
        hidden_size=width,
        n_layer=n_layer,
        n_head=n_head,
        layer_norm_epsilon=huge,  # beside it a variance is nothing: the norm divides by sqrt(huge)
    )
    hf = transformers.BloomForCausalLM(config).eval().double()
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _blank(hf, gain=math.sqrt(huge))
        hf.transformer.word_embeddings.weight.normal_(generator=source)
        for block in hf.transformer.h:
            attention = block.self_attention
            values = attention.query_key_value.weight.view(n_head, 3, d_head, width)[:, 2]
            values.copy_(torch.randn(values.shape, generator=source) / math.sqrt(width))
            attention.dense.weight.normal_(generator=source)
            attention.dense.bias.normal_(generator=source)
    return bl.BloomForCausalLM.from_hf(hf)


def _blank(hf, gain=1.0):
    """All weights zero, but the norms' gains."""
    for name, value in hf.named_parameters():
        value.fill_(gain * float("layernorm.weight" in name or "ln_f.weight" in name))
