"""Tiny transformers BLOOMs with every weight random, and ours made from them."""

import contextlib
import logging
import re

import torch
import transformers

import bloomlab as bl

CLASSES = (
    "BloomModel",
    "BloomForCausalLM",
    "BloomForSequenceClassification",
    "BloomForTokenClassification",
    "BloomForQuestionAnswering",
)


def make_hf(kind="BloomForCausalLM", *, seed=0, dtype=torch.float32, **fields):
    """A tiny transformers BLOOM whose biases and LayerNorm weights are random too."""
    fields = {
        "vocab_size": 97,
        "hidden_size": 48,
        "n_layer": 2,
        "n_head": 6,
        "pad_token_id": 3,
    } | fields
    model = getattr(transformers, kind)(transformers.BloomConfig(**fields))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            is_gain = value.ndim == 1 and name.endswith("weight")
            value.copy_(torch.randn(value.shape, generator=generator) * 0.3 + is_gain)
    return model.eval().to(dtype)


def pair(kind="BloomForCausalLM", **fields):
    """transformers' model and ours with the same weights."""
    theirs = make_hf(kind, **fields)
    return theirs, getattr(bl, kind).from_hf(theirs)


def tokens(*shape, seed=1):
    """Random ids that are no special tokens."""
    return torch.randint(4, 97, shape, generator=torch.Generator().manual_seed(seed))


def distance_in_eps(ours, theirs, dtype=None):
    """Largest difference, in units of the dtype's eps times the largest value."""
    ours, theirs = ours.detach(), theirs.detach()
    top = theirs.double().abs().max().clamp(min=1e-30)
    return (
        (ours.double() - theirs.double()).abs().max() / top / torch.finfo(dtype or theirs.dtype).eps
    ).item()


@contextlib.contextmanager
def notices(match):
    """Expect a message in bloomlab's log."""
    said = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    log = logging.getLogger("bloomlab")
    log.addHandler(handler)
    try:
        yield said
    finally:
        log.removeHandler(handler)
    assert any(re.search(match, message) for message in said), said
