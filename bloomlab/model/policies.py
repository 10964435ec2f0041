"""Policies: which tokens a cache keeps after every forward.

StreamingLLM (Xiao et al., 2023, arXiv:2309.17453) and heavy hitters (H2O, Zhang et al., 2023,
arXiv:2306.14048).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bloomlab.errors import CacheError


class Policy(Protocol):
    """Says after every forward which tokens of a cache stay; the others' memory is freed.

    A forward is processed whole, a long prompt too, before anything is dropped.
    """

    @property
    def reindex(self) -> bool:
        """Whether positions count the kept tokens without gaps, or keep true distances."""
        ...

    @property
    def watches_pattern(self) -> bool:
        """Whether `kept` needs to know the attention that each token received."""
        ...

    def kept(
        self, valid: Bool[Tensor, "batch key"], received: Float[Tensor, "batch key"] | None
    ) -> Bool[Tensor, "batch key"] | None:
        """True where a token stays, row by row; None: all stay.

        Args:
            valid: False where a token is padding; it may be dropped.
            received: attention each token got so far, if the policy watches the pattern.
        """
        ...


@dataclass(frozen=True)
class Full:
    """Keeps everything: a cache without a policy."""

    reindex: ClassVar[bool] = False
    watches_pattern: ClassVar[bool] = False

    def kept(self, valid: Bool[Tensor, "batch key"], received: Any) -> None:
        """Nothing is dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SinkWindow:
    """Keeps the first and the last tokens (StreamingLLM, Xiao et al., 2023, arXiv:2309.17453).

    Attributes:
        sinks: tokens kept at the beginning of each row, padding not counted.
        window: tokens kept at the end.
        reindex: True counts positions within the cache, as StreamingLLM does and transformers'
            BLOOM would; False keeps the true distance to the sinks.

    Raises:
        CacheError: a negative number of tokens, or an empty window.
    """

    sinks: int = 4
    window: int = 256
    reindex: bool = True
    watches_pattern: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check_counts(self, "sinks", "window")

    def kept(
        self, valid: Bool[Tensor, "batch key"], received: Any
    ) -> Bool[Tensor, "batch key"] | None:
        """The first `sinks` and the last `window` tokens of each row."""
        if valid.shape[1] <= self.sinks + self.window:
            return None
        count = valid.cumsum(-1)
        return valid & ((count <= self.sinks) | (count > count[:, -1:] - self.window))


@dataclass(frozen=True, kw_only=True, slots=True)
class HeavyHitters:
    """Keeps the most attended and the last tokens (H2O, Zhang et al., 2023, arXiv:2306.14048).

    H2O chooses for every head. Here each row keeps one set of tokens for all layers and heads, as
    all of them share positions: attention is summed over layers and heads and over all queries so
    far, as the heads read it (edits at `hook_pattern` and head masks count). A token's sum begins
    with the first forward under this policy. The pattern is needed, so attention is not fused.

    Attributes:
        heavy: tokens kept for the attention they received, among those before the last.
        recent: tokens kept at the end.
        reindex: True counts positions within the cache; False keeps true distances, as H2O does.

    Raises:
        CacheError: a negative number of tokens, or an empty window.
    """

    heavy: int = 128
    recent: int = 128
    reindex: bool = False
    watches_pattern: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check_counts(self, "heavy", "recent")

    def kept(
        self, valid: Bool[Tensor, "batch key"], received: Float[Tensor, "batch key"] | None
    ) -> Bool[Tensor, "batch key"] | None:
        """The last `recent` tokens of each row, and of the others the `heavy` most attended."""
        if valid.shape[1] <= self.heavy + self.recent:
            return None
        assert received is not None
        count = valid.cumsum(-1)
        recent = valid & (count > count[:, -1:] - self.recent)
        rivals = received.masked_fill(recent | ~valid, -1.0)  # below any sum of probabilities
        best = rivals.argsort(dim=-1, descending=True, stable=True)[:, : self.heavy]
        return valid & (recent | torch.zeros_like(valid).scatter(1, best, True))


def check_policy(policy: Any) -> None:
    """Raise unless `policy` is None or can say what stays."""
    if policy is None or (callable(getattr(policy, "kept", None)) and not isinstance(policy, type)):
        return
    raise CacheError(
        f"policy is {policy!r}, expected None, SinkWindow(...), HeavyHitters(...), or an object "
        "with `kept`, `reindex` and `watches_pattern`, as bloomlab.model.policies.Policy says."
    )


def _check_counts(policy: Any, start: str, end: str) -> None:
    for name, least in ((start, 0), (end, 1)):
        value = getattr(policy, name)
        if value < least:
            raise CacheError(f"{type(policy).__name__}({name}={value}): expected {least} or more.")
