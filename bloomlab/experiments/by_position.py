"""Loss and divergence at every position of long texts, whole or through the window of a cache."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bloomlab.analysis.lens import divergence, log_probabilities
from bloomlab.errors import InputError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.model.cache import KVCache

LOGITS = 2**22  # numbers of logits at a time


@torch.no_grad()
def loss_by_position(
    model: Any,
    tokens: Any,
    *,
    policy: Any = None,
    step: int = 16,
    rows: int = 4,
    progress: bool = True,
) -> Float[Tensor, "batch pos"]:
    """Loss in nats of every token but the first: column i is of the token in column i + 1.

    With a policy the text is read `step` tokens at a time, and after each time the cache drops what
    the policy does not keep; so a token sees up to `step` - 1 more than is kept. A step of 1 is
    generation's (StreamingLLM, Xiao et al., 2023, arXiv:2309.17453). Hooks that are attached act.

    Args:
        model: a BLOOM with an unembedding.
        tokens: a text, or several of one length: ids [batch pos].
        policy: of the cache, such as `SinkWindow(window=252)`; None: every token sees all before.
        step: tokens read at once, with a policy.
        rows: texts in a forward.
        progress: show a bar while it takes long.

    Raises:
        InputError: texts of several lengths, fewer than two tokens, a step or rows below 1.
        CacheError: something that is no policy.
    """
    data = _long(model, tokens)
    n_read = data.tokens.shape[1] - 1  # nothing follows the last token
    if n_read < 1:
        raise InputError("the texts have 1 token each, expected 2 or more: the first has no loss.")
    if step < 1:
        raise InputError(f"step is {step!r}, expected 1 or more.")
    step = n_read if policy is None else step
    found: list[Tensor] = []
    for _, part in data.chunks(rows, progress=progress):
        cache = None if policy is None else KVCache(policy=policy)
        nats: list[Tensor] = []
        for start in range(0, n_read, step):
            stop = min(start + step, n_read)
            last = model.backbone(
                part.tokens[:, start:stop], past_key_values=cache, use_cache=cache is not None
            ).last
            targets = part.tokens[:, start + 1 : stop + 1]
            nats.append(_nats(model, last.flatten(0, 1), targets.flatten()).view(targets.shape))
        found.append(torch.cat(nats, 1))
    return torch.cat(found)


@torch.no_grad()
def kl_by_position(
    model: Any, other: Any, tokens: Any, *, rows: int = 4, progress: bool = True
) -> Float[Tensor, "batch pos"]:
    """KL(model's prediction || other's) after every token, in nats; 0 = the same prediction.

    Args:
        model: a BLOOM with an unembedding.
        other: the same, of the same vocabulary: in another number format, say.
        tokens: a text, or several of one length: ids [batch pos].
        rows: texts in a forward.
        progress: show a bar while it takes long.

    Raises:
        InputError: two vocabularies, texts of several lengths, rows below 1.
    """
    sizes = model.config.vocab_size, other.config.vocab_size
    if sizes[0] != sizes[1]:
        raise InputError(f"the models have {sizes[0]} and {sizes[1]} tokens, expected as many.")
    data = _long(model, tokens)
    found: list[Tensor] = []
    for _, part in data.chunks(rows, progress=progress):
        streams = [
            one.backbone(part.tokens.to(one.device), use_cache=False).last.flatten(0, 1)
            for one in (model, other)
        ]
        n = max(1, LOGITS // sizes[0])
        kl: list[Tensor] = []
        for mine, its in zip(*(stream.split(n) for stream in streams), strict=True):
            first, second = _log_probabilities(model, mine), _log_probabilities(other, its)
            kl.append(divergence(first, second.to(first)))
        found.append(torch.cat(kl).view(part.tokens.shape))
    return torch.cat(found)


def _long(model: Any, tokens: Any) -> Dataset:
    data = dataset(model, tokens)
    if data.mask is not None:
        raise InputError("the texts have several lengths: cut them to one, so that none is padded.")
    return data


def _log_probabilities(model: Any, stream: Float[Tensor, "row d_model"]) -> Tensor:
    return log_probabilities(model.unembed(stream[None])[0])


def _nats(
    model: Any, stream: Float[Tensor, "row d_model"], targets: Int[Tensor, " row"]
) -> Float[Tensor, " row"]:
    n = max(1, LOGITS // model.config.vocab_size)
    parts = zip(stream.split(n), targets.split(n), strict=True)
    return torch.cat(
        [F.nll_loss(_log_probabilities(model, s), t, reduction="none") for s, t in parts]
    )
