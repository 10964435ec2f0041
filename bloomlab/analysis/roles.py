"""What heads look at: targets, scores on eligible rows, and what ALiBi alone would look at.

A role is a set of keys for each query, `targets`; a query that has some is eligible, and a head's
score is the mean attention of eligible queries to their targets, 0 ... 1. (Averaging over all rows
dilutes: a perfect induction head on a text said twice gets no more than 1/2.) An ALiBi head scores
without having learned anything, so scores are to be read beside those of `content_free_pattern`.
Induction and previous-token heads: Olsson et al. (2022, arXiv:2209.11895); positional heads: Voita
et al. (2019, arXiv:1905.09418); sinks: Xiao et al. (2023, arXiv:2309.17453).
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def visible_keys(attended: Bool[Tensor, "batch key"]) -> Bool[Tensor, "batch key key"]:
    """Which key [.. .. key] each attended query sees: itself and attended ones before it."""
    n = attended.shape[-1]
    causal = torch.ones(n, n, dtype=torch.bool, device=attended.device).tril()
    return causal & attended[:, None, :] & attended[:, :, None]


def previous_targets(attended: Bool[Tensor, "batch key"]) -> Bool[Tensor, "batch key key"]:
    """The token before the query."""
    return at_distance(attended, 1)


def first_targets(attended: Bool[Tensor, "batch key"]) -> Bool[Tensor, "batch key key"]:
    """The text's first token, for all queries after it: the attention sink of most models."""
    is_first = attended & (attended.cumsum(-1) == 1)
    return _before(attended) & is_first[:, None, :]


def duplicate_targets(
    tokens: Int[Tensor, "batch key"], attended: Bool[Tensor, "batch key"]
) -> Bool[Tensor, "batch key key"]:
    """Earlier tokens that are the same as the query's."""
    return _before(attended) & (tokens[:, :, None] == tokens[:, None, :])


def induction_targets(
    tokens: Int[Tensor, "batch key"], attended: Bool[Tensor, "batch key"]
) -> Bool[Tensor, "batch key key"]:
    """What followed earlier tokens that are the same as the query's; never the query itself."""
    followed = at_distance(attended, 1).to(torch.float32)  # [.. next before]
    same = duplicate_targets(tokens, attended).to(torch.float32)
    return _before(attended) & ((same @ followed.mT) > 0)


def listed_targets(
    tokens: Int[Tensor, "batch key"], attended: Bool[Tensor, "batch key"], ids: Int[Tensor, " some"]
) -> Bool[Tensor, "batch key key"]:
    """Earlier tokens that are among some ids: delimiters, say."""
    return _before(attended) & torch.isin(tokens, ids)[:, None, :]


def at_distance(
    attended: Bool[Tensor, "batch key"], distance: int
) -> Bool[Tensor, "batch key key"]:
    """The token so many attended tokens before the query; 0: itself."""
    return visible_keys(attended) & (_distance(attended) == distance)


def attention_to(
    pattern: Float[Tensor, "#batch head key key"], targets: Bool[Tensor, "batch key key"]
) -> Float[Tensor, "batch head key"]:
    """Attention of each query to all its targets together, 0 ... 1."""
    return (pattern * targets[:, None]).sum(-1)


def role_score(
    pattern: Float[Tensor, "#batch head key key"], targets: Bool[Tensor, "batch key key"]
) -> Float[Tensor, " head"]:
    """Mean attention of eligible queries to their targets, 0 ... 1; NaN where none is eligible."""
    return mean_over_rows(attention_to(pattern, targets), targets.any(-1))


def mean_over_rows(
    values: Float[Tensor, "#batch head key"], rows: Bool[Tensor, "batch key"]
) -> Float[Tensor, " head"]:
    """Mean of each head's values over some queries; NaN where there are none."""
    return torch.where(rows[:, None], values, 0).sum((0, 2)) / rows.sum()


def attention_entropy(pattern: Float[Tensor, "*lead query key"]) -> Float[Tensor, "*lead query"]:
    """Entropy of each attention row, in bits; 0 = one key, log2(key) = uniform."""
    return -torch.xlogy(pattern, pattern).sum(-1) / math.log(2)


def attention_distance(
    pattern: Float[Tensor, "#batch head key key"], attended: Bool[Tensor, "batch key"]
) -> Float[Tensor, "batch head key"]:
    """Expected distance from query to key, in attended tokens; 0 = itself."""
    distance = _distance(attended) * visible_keys(attended)
    return (pattern * distance[:, None]).sum(-1)


def looks_at_distance(
    pattern: Float[Tensor, "#batch head key key"],
    attended: Bool[Tensor, "batch key"],
    distance: int,
) -> Bool[Tensor, "batch head key"]:
    """Whether the key of most attention is so many tokens before the query.

    A head is positional (Voita et al.) if this holds of nearly every query, at one distance.
    """
    key = torch.arange(pattern.shape[-1], device=pattern.device)
    most = pattern.argmax(-1, keepdim=True) == key
    return (most & at_distance(attended, distance)[:, None]).any(-1)


def content_free_pattern(
    slopes: Float[Tensor, " head"], attended: Bool[Tensor, "batch key"]
) -> Float[Tensor, "batch head key key"]:
    """The pattern of heads for which all tokens are alike: ALiBi alone (Press et al., 2022).

    The key d tokens back gets (1 - r) r^d / (1 - r^(i + 1)) of query i, r = exp(-slope). Rows of
    padding are zero.
    """
    seen = visible_keys(attended)[:, None]
    bias = -slopes[:, None, None] * _distance(attended)[:, None].to(slopes)
    return bias.masked_fill(~seen, -torch.inf).softmax(-1).masked_fill(~seen, 0)


def _before(attended: Tensor) -> Tensor:
    """Visible keys without the query itself."""
    return visible_keys(attended).tril(-1)


def _distance(attended: Tensor) -> Tensor:
    """Attended tokens from each key to each query: [batch query key]."""
    positions = attended.cumsum(-1)
    return positions[:, :, None] - positions[:, None, :]
