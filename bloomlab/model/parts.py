"""What forwards left behind, part by part: detached tensors that share memory where they can."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bloomlab.errors import InputError

# What can be kept -> the hook point in a block; [batch pos head d_head], resid [batch pos d_model].
KINDS = {"q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "resid": "hook_resid_pre"}
# What is kept as well where a hook may edit it: q and k no longer tell it. [batch head query key]
EDITS = {
    "alibi": "attn.hook_alibi",
    "scores": "attn.hook_attn_scores",
    "pattern": "attn.hook_pattern",
}


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Part:
    """Consecutive columns of a recording: of one forward, or of several alike.

    Attributes:
        values: "tokens" and "valid" [batch pos]; "q.3" and its like, one a kept layer; what hooks
            edited ("scores.3", ...) [batch head query key]; "seen" [batch key] where the forward
            saw other keys than the valid ones; "cached_k.3", "cached_v.3" where later forwards
            saw other keys and values than this one.
        keys: how many keys the forward of each column had; [pos], on the CPU.
        slopes: ALiBi's slopes of every layer then; [head] each.
        mode: the bias's form then.
        rounded: whether each operation of attention rounded then (see AttentionBias).
        dtype: what attention computed in.
        rows: which rows of `values` are meant, in which order; None: all.
        heads: of a pruned model, numbers of the heads in each layer; None: all.
    """

    values: dict[str, Tensor]
    keys: Int[Tensor, " pos"]
    slopes: tuple[Tensor, ...]
    mode: str
    rounded: bool
    dtype: torch.dtype
    rows: Int[Tensor, " row"] | None = None
    heads: tuple[tuple[int, ...], ...] | None = None

    def get(self, name: str, heads: slice = slice(None)) -> Tensor:
        """A value, its rows in order; of some heads, where it has a head axis."""
        value = self.values[name]
        if heads != slice(None):
            value = value[:, heads] if name.split(".")[0] in EDITS else value[:, :, heads]
        return value if self.rows is None else value[self.rows]

    def cropped(self, own: int, total: int) -> "Part":
        """The first `own` columns, as if the text ended after `total`."""
        values = {}
        for name, value in self.values.items():
            if name.split(".")[0] in EDITS:
                values[name] = value[:, :, :own, :total]
            else:
                values[name] = value[:, : total if name == "seen" else own]
        return replace(self, values=values, keys=self.keys[:own].clamp(max=total))

    def is_like(self, other: "Part") -> bool:
        """Whether the attention of both follows the same rules, and from the stored q and k."""
        peculiar = ("seen", "cached_k", "cached_v", *EDITS)
        names = {name.split(".")[0] for name in (*self.values, *other.values)}
        rules = [(part.mode, part.rounded, part.dtype) for part in (self, other)]
        same = rules[0] == rules[1]
        return same and self.slopes is other.slopes and names.isdisjoint(peculiar)


def cropped(parts: Sequence[Part], length: Any) -> list[Part]:
    """The parts of the first `length` columns; a negative length drops from the end."""
    total = sum(len(part.keys) for part in parts)
    whole = isinstance(length, int) and not isinstance(length, bool)
    if not whole or not length or not -total < length <= total:
        raise InputError(f"crop({length!r}): expected 1 to {total}, the number of tokens recorded.")
    end, start, kept = (length if length > 0 else total + length), 0, []
    for part in parts:
        own = min(len(part.keys), end - start)
        if own > 0:
            kept.append(part.cropped(own, end))
        start += own
    return kept


def gathered(parts: Sequence[Part], rows: Any) -> list[Part]:
    """The parts of some rows, in the given order; a row may come several times. No copy."""
    if not parts:
        raise InputError("gather: nothing is recorded yet.")
    tokens = parts[0].get("tokens")
    try:
        index = torch.as_tensor(rows, device=tokens.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"gather({rows!r}): expected numbers of rows.") from error
    if index.dtype == torch.bool or index.is_floating_point() or index.ndim != 1 or not len(index):
        raise InputError(
            f"gather takes whole numbers [row], at least one, got {index.dtype} {[*index.shape]}; "
            "for a mask pass mask.nonzero()[:, 0]."
        )
    low, high = (int(bound) for bound in index.aminmax())
    if low < -len(tokens) or high >= len(tokens):
        raise InputError(f"gather({index.tolist()}): rows run from 0 to {len(tokens) - 1}.")
    index = index.long() % len(tokens)
    composed = {id(part.rows): index if part.rows is None else part.rows[index] for part in parts}
    return [replace(part, rows=composed[id(part.rows)]) for part in parts]


def moved(parts: Sequence[Part], device: Any, dtype: torch.dtype | None) -> list[Part]:
    """The parts on another device; q, k, v and resid in another number format."""

    def move(name: str, value: Tensor) -> Tensor:
        recast = name.split(".")[0].removeprefix("cached_") in KINDS
        return value.to(device=device, dtype=dtype if recast else None)

    return [
        replace(
            part,
            values={name: move(name, value) for name, value in part.values.items()},
            rows=None if part.rows is None else part.rows.to(device=device),
        )
        for part in parts
    ]
