"""What is changed in a model while it runs: heads scaled or averaged, slopes scaled."""

import operator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bloomlab.errors import InputError, ShapeError
from bloomlab.interventions import Intervention, mean_heads, scale_heads, scale_slopes

LARGEST = 10.0  # factor of a head or a slope


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Edits:
    """Edits of all heads; arrays are read-only, methods give new edits.

    Attributes:
        scale: factor of each head's output; 0 silences it, 1 leaves it.
        mean: heads that write their mean over the prompt's tokens in the clean run instead.
        slopes: factor of each head's ALiBi slope; 0 takes the bias away.

    Raises:
        ShapeError: the three differ in shape, or are no [layer head].
        InputError: a factor that is no number from 0 to 10.
    """

    scale: Float[np.ndarray, "layer head"]
    mean: Bool[np.ndarray, "layer head"]
    slopes: Float[np.ndarray, "layer head"]

    def __post_init__(self) -> None:
        for name, dtype in (("scale", np.float32), ("mean", bool), ("slopes", np.float32)):
            value = _numbers(name, getattr(self, name)).astype(dtype)
            if value.ndim != 2 or value.shape != np.shape(self.scale):
                raise ShapeError(name, got=value.shape, expected="[layer head], as the others")
            if not ((value >= 0) & (value <= LARGEST)).all():
                raise InputError(f"{name} holds numbers outside 0 to {LARGEST:g}.")
            value.flags.writeable = False
            object.__setattr__(self, name, value)

    @classmethod
    def none(cls, n_layer: int, n_head: int) -> "Edits":
        """Nothing is changed."""
        ones = np.ones((n_layer, n_head), dtype=np.float32)
        return cls(scale=ones, mean=np.zeros(ones.shape, dtype=bool), slopes=ones)

    def __repr__(self) -> str:
        return f"Edits(){self.code()}" if not self.is_none else "Edits(): nothing is changed"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Edits) and self.key == other.key

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # compared, never looked up

    @cached_property
    def key(self) -> tuple[tuple[int, ...], bytes, bytes, bytes]:
        """Equal for equal edits."""
        shape, scale = self.scale.shape, self.scale.tobytes()
        return shape, scale, self.mean.tobytes(), self.slopes.tobytes()

    @property
    def is_none(self) -> bool:
        """Whether nothing is changed."""
        return self == Edits.none(*self.scale.shape)

    def with_heads(self, heads: Any, *, scale: Any = 0.0, mean: bool = False) -> "Edits":
        """Another factor for some heads, [(layer, head), ...]; without one they are silenced.

        With `mean` they write their mean instead.

        Raises:
            InputError: no such heads.
        """
        scales, means = self.scale.copy(), self.mean.copy()
        for layer, head in _checked_pairs(heads):
            self.require(layer, head)
            means[layer, head] = mean
            scales[layer, head] = 1.0 if mean else _numbers("scale", scale)
        return replace(self, scale=scales, mean=means)

    def with_slope(self, layer: int, head: int, factor: Any) -> "Edits":
        """Another factor for one head's slope."""
        self.require(layer, head)
        slopes = self.slopes.copy()
        slopes[layer, head] = _numbers("slopes", factor)
        return replace(self, slopes=slopes)

    def with_mask(self, mask: Any) -> "Edits":
        """The factors of all heads, [layer head]; slopes stay."""
        scale = _numbers("scale", mask)
        if scale.shape != self.scale.shape:
            raise ShapeError("head_mask", got=scale.shape, expected=str(self.scale.shape))
        return replace(self, scale=scale, mean=np.zeros(self.scale.shape, dtype=bool))

    def first_difference(self, other: "Edits") -> int:
        """First layer that runs with `self` and with `other` compute otherwise."""
        pairs = ((getattr(self, n), getattr(other, n)) for n in ("scale", "mean", "slopes"))
        differs = np.any([(mine != theirs).any(-1) for mine, theirs in pairs], axis=0)
        return int(differs.argmax()) if differs.any() else len(self.scale)

    def interventions(self, kept: Any, means: list[Float[Tensor, "_ d_head"]]) -> Any:
        """The edits as interventions.

        Args:
            kept: numbers of each layer's heads: pruned ones cannot be edited.
            means: of each layer's heads in the clean run.
        """
        found: list[Intervention] = []
        for layer, heads in enumerate(kept):
            averaged = [head for head in heads if self.mean[layer, head]]
            if averaged:
                found.append(mean_heads(layer, averaged, mean=means[layer]))
            for make, factors in ((scale_heads, self.scale), (scale_slopes, self.slopes)):
                for factor in np.unique(factors[layer]).tolist():
                    those = [head for head in heads if factors[layer, head] == factor]
                    if factor != 1 and those:
                        found.append(make(layer, those, factor=factor))
        return found

    def slopes_of(self, layer: int, slopes: Float[Tensor, " head"], heads: Any) -> Tensor:
        """The edited slopes of a layer's heads (numbers)."""
        factors = torch.from_numpy(self.slopes[layer, list(heads)]).to(slopes)
        return slopes * factors

    def code(self) -> str:
        """Python that makes these edits from `session.edits`; empty for none."""
        lines = []
        for value in np.unique(self.scale).tolist():
            if value != 1:
                chosen = _pairs(self.scale == value)
                lines.append(f".with_heads({chosen}, scale={_shortest(value)})")
        if self.mean.any():
            lines.append(f".with_heads({_pairs(self.mean)}, mean=True)")
        for layer, head in np.argwhere(self.slopes != 1).tolist():
            factor = _shortest(self.slopes[layer, head])
            lines.append(f".with_slope({layer}, {head}, {factor})")
        return "".join(lines)

    def require(self, layer: int, head: int) -> None:
        """Raise InputError unless there is such a head."""
        n_layer, n_head = self.scale.shape
        if not (0 <= layer < n_layer and 0 <= head < n_head):
            raise InputError(
                f"no head L{layer}H{head}: layers are 0 to {n_layer - 1}, heads 0 to {n_head - 1}."
            )


def _numbers(name: str, values: Any) -> Float[np.ndarray, "..."]:
    if isinstance(values, Tensor):
        values = values.detach().float().cpu()
    try:
        return np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError):
        raise InputError(f"{name} holds something that is no number.") from None


def _shortest(factor: Any) -> str:
    """As few digits as give the same float32."""
    return np.format_float_positional(np.float32(factor), trim="-")


def _pairs(chosen: Bool[np.ndarray, "layer head"]) -> str:
    return repr([tuple(pair) for pair in np.argwhere(chosen).tolist()])


def _checked_pairs(heads: Any) -> list[tuple[int, int]]:
    try:
        pairs = [(operator.index(layer), operator.index(head)) for layer, head in heads]
    except (TypeError, ValueError):
        raise InputError(
            f"heads are {heads!r:.60}, expected pairs of layer and head, such as [(2, 7), (1, 0)]."
        ) from None
    return pairs
