"""Streams read as predictions: the logit lens' numbers, a few rows of logits at a time.

Logit lens: nostalgebraist (2020); tuned lens: Belrose et al. (2023, arXiv:2303.08112).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.errors import InputError

ReadOut = Callable[[Tensor], Tensor]  # stream [row d_model] -> logits [row vocab]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What streams of several layers predict. Logarithms and entropies are natural: in nats.

    Attributes:
        top: the likeliest tokens, in order.
        top_logprob: their log-probabilities.
        chosen_logprob: log-probabilities of chosen tokens.
        chosen_rank: how many tokens are likelier; 0 is the likeliest.
        last: the final prediction's likeliest token.
        last_logprob: what each stream gives that token.
        last_rank: as `chosen_rank`, of that token.
        entropy: of the prediction; 0 to log(vocab).
        kl: of the final prediction from this one, KL(final || this).
    """

    top: Int[Tensor, "layer row k"]
    top_logprob: Float[Tensor, "layer row k"]
    chosen_logprob: Float[Tensor, "layer row some"]
    chosen_rank: Int[Tensor, "layer row some"]
    last: Int[Tensor, " row"]
    last_logprob: Float[Tensor, "layer row"]
    last_rank: Int[Tensor, "layer row"]
    entropy: Float[Tensor, "layer row"]
    kl: Float[Tensor, "layer row"]

    @staticmethod
    def joined(parts: Sequence["Reading"]) -> "Reading":
        """Readings of several groups of rows as one."""
        together: dict[str, Tensor] = {}
        for field in fields(Reading):
            values: list[Tensor] = [getattr(part, field.name) for part in parts]
            together[field.name] = torch.cat(values, 0 if field.name == "last" else 1)
        return Reading(**together)


def read_streams(
    streams: Sequence[Float[Tensor, "row d_model"]],
    read_outs: Sequence[ReadOut],
    final: Float[Tensor, "row d_final"],
    unembed: ReadOut,
    *,
    chosen: Int[Tensor, "row some"],
    k: int,
    at_once: int,
) -> Reading:
    """What each stream predicts at every row, beside the final prediction; on the CPU.

    Logits are there for `at_once` rows of one layer, and of the final prediction: never for all
    layers or all rows. Numbers are computed in float32 at least.

    Args:
        streams: one for each layer.
        read_outs: what makes logits [row vocab] of each.
        final: what the model itself reads its logits from.
        unembed: what makes logits of it.
        chosen: tokens whose probability and rank are wanted, for each row.
        k: how many of the likeliest tokens are kept.
        at_once: rows whose logits are in memory.

    Raises:
        InputError: k or at_once below 1, k above the vocabulary, or no rows.
    """
    if k < 1 or at_once < 1 or not len(final):
        raise InputError(
            f"k is {k}, at_once {at_once}, for {len(final)} rows: expected 1 or more of each."
        )
    parts: list[Reading] = []
    for first in range(0, len(final), at_once):
        some = slice(first, first + at_once)
        after = log_probabilities(unembed(final[some]))
        if k > after.shape[-1]:
            raise InputError(f"k is {k}, but the vocabulary has {after.shape[-1]} tokens.")
        last = after.argmax(-1)
        wanted = torch.cat([chosen[some], last[:, None]], 1)
        read = [
            _read(log_probabilities(read_out(stream[some])), after, wanted, k)
            for stream, read_out in zip(streams, read_outs, strict=True)
        ]
        top, top_logprob, logprob, rank, entropy, kl = (
            torch.stack(values).cpu() for values in zip(*read, strict=True)
        )
        parts.append(
            Reading(
                top=top,
                top_logprob=top_logprob,
                chosen_logprob=logprob[..., :-1],
                chosen_rank=rank[..., :-1],
                last=last.cpu(),
                last_logprob=logprob[..., -1],
                last_rank=rank[..., -1],
                entropy=entropy,
                kl=kl,
            )
        )
    return Reading.joined(parts)


def log_probabilities(logits: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
    """Log-probabilities in nats, in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def divergence(
    final: Float[Tensor, "row vocab"], read: Float[Tensor, "row vocab"]
) -> Float[Tensor, " row"]:
    """KL(final || read) of log-probabilities, in nats; 0 = the same prediction."""
    return (final.exp() * (final - read)).sum(-1)


def ranks(
    values: Float[Tensor, "row vocab"], chosen: Int[Tensor, "row some"]
) -> Int[Tensor, "row some"]:
    """How many tokens have a higher value than each chosen one; 0 is the highest."""
    of = values.gather(-1, chosen)
    found = [(values > of[:, i : i + 1]).sum(-1) for i in range(of.shape[1])]
    return torch.stack(found, -1)


def _read(logprob: Tensor, after: Tensor, wanted: Tensor, k: int) -> tuple[Tensor, ...]:
    top = logprob.topk(k, -1)
    entropy = -(logprob.exp() * logprob).sum(-1)
    chosen = logprob.gather(-1, wanted)
    return (
        *(top.indices, top.values, chosen, ranks(logprob, wanted)),
        *(entropy, divergence(after, logprob)),
    )
