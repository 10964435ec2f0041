"""Attention rebuilt from recorded queries and keys: any heads, any rows, never more than asked."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from bloomlab.errors import InputError
from bloomlab.model.alibi import AttentionBias, token_positions
from bloomlab.model.parts import Part
from bloomlab.model.scores import attention_pattern, attention_scores

CELLS = 2**22  # of patterns held at a time while thumbnails are made


class Group(NamedTuple):
    """Consecutive columns whose attention one computation rebuilds."""

    start: int
    stop: int
    parts: list[Part]


class Asked(NamedTuple):
    """Some queries of one group, and how many keys bear on them."""

    group: Group
    layer: int
    heads: slice
    columns: Int[Tensor, " query"]
    n_key: int


Quantity = Callable[[Asked], Tensor]


class Rebuilding:
    """The attention of recorded parts; quantities are methods to hand to `rebuilt`."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts

    def __len__(self) -> int:
        return sum(len(part.keys) for part in self.parts)

    @cached_property
    def valid(self) -> Bool[Tensor, "batch pos"]:
        """False for padding."""
        return torch.cat([part.get("valid") for part in self.parts], 1)

    @cached_property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Position of each token among the valid ones; 0 for padding."""
        return token_positions(self.valid)

    @cached_property
    def groups(self) -> list[Group]:
        """The parts, with those together that follow the same rules."""
        found: list[Group] = []
        start = 0
        for part in self.parts:
            stop = start + len(part.keys)
            last = found[-1].parts[-1] if found else None
            if last is not None and last.is_like(part):
                found[-1] = Group(found[-1].start, stop, [*found[-1].parts, part])
            else:
                found.append(Group(start, stop, [part]))
            start = stop
        return found

    def merged(self) -> list[Part]:
        """One part a group, each with memory of its own."""
        found = []
        for group in self.groups:
            first = group.parts[0]
            values = {n: torch.cat([p.get(n) for p in group.parts], 1) for n in first.values}
            keys = torch.cat([part.keys for part in group.parts])
            found.append(replace(first, values=values, keys=keys, rows=None))
        return found

    def rebuilt(
        self,
        quantity: Quantity,
        layer: int,
        heads: slice,
        columns: Int[Tensor, " query"],
        *,
        hidden: float | None = 0.0,
        everywhere: bool = False,
    ) -> Float[Tensor, "batch head query key"]:
        """A quantity for some queries; `hidden` (None: the lowest number) at keys past its own.

        With `everywhere` it is computed at those keys too.
        """
        pieces, places = [], []
        device = self.valid.device
        for group in self.groups:
            here = ((columns >= group.start) & (columns < group.stop)).nonzero()[:, 0]
            if not len(here):
                continue
            mine = columns[here]
            n_key = len(self) if everywhere else self._n_key(group, mine)
            asked = Asked(group, layer, heads, mine, n_key)
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                piece = quantity(asked)
            if missing := len(self) - piece.shape[-1]:
                fill = torch.finfo(piece.dtype).min if hidden is None else hidden
                piece = F.pad(piece, (0, missing), value=fill)
            pieces.append(piece)
            places.append(here)
        if len(pieces) == 1:
            return pieces[0]
        return torch.cat(pieces, 2)[:, :, torch.cat(places).argsort().to(device)]

    def pattern(self, asked: Asked) -> Float[Tensor, "batch head query key"]:
        """Attention probabilities."""
        if (edited := self._edited("pattern", asked)) is not None:
            return edited
        scores, bias = self.scores(asked), self._bias(asked)
        keys = torch.cat([part.keys for part in asked.group.parts])
        own = keys[asked.columns - asked.group.start]
        if bias.has_blind_queries and int(own.min()) < asked.n_key:
            # a query that sees nothing spreads over the keys of its forward, not over later ones
            later = torch.arange(asked.n_key) >= own[:, None]
            scores = scores.masked_fill(later.to(scores.device), -torch.inf)
        return attention_pattern(scores, self._computed_in("q", asked))

    def scores(self, asked: Asked) -> Float[Tensor, "batch head query key"]:
        """Biased and masked scores, in logits."""
        if (edited := self._edited("scores", asked)) is not None:
            return edited
        q, k = self._queries(asked), self._keys("k", asked)
        return attention_scores(q, k, bias=self._bias(asked), alibi=self.alibi(asked))

    def content(self, asked: Asked) -> Float[Tensor, "batch head query key"]:
        """q.k/sqrt(d_head), in logits, float32 at least."""
        q, k = self._queries(asked), self._keys("k", asked)
        wide = torch.promote_types(q.dtype, torch.float32)
        return q.to(wide) @ k.to(wide).mT / q.shape[-1] ** 0.5

    def alibi(self, asked: Asked) -> Float[Tensor, "#batch head #query key"]:
        """The bias alone, in logits."""
        if (edited := self._edited("alibi", asked)) is not None:
            return edited
        slopes = asked.group.parts[0].slopes[asked.layer][asked.heads]
        return self._bias(asked).alibi(slopes)

    def whole_alibi(self, asked: Asked) -> Float[Tensor, "batch head query key"]:
        """The bias alone, for every row and query, whether they differ or not."""
        alibi = self.alibi(asked)
        return alibi.expand(len(self.valid), -1, len(asked.columns), -1)

    def value_weighted(self, asked: Asked) -> Float[Tensor, "batch head query key"]:
        """Attention probability x norm of the key's value."""
        v = self._keys("v", asked)
        norm = v.to(torch.promote_types(v.dtype, torch.float32)).norm(dim=-1)
        return self.pattern(asked) * norm[:, :, None]

    def thumbnails(self, layer: int, size: int) -> Float[Tensor, "batch head query key"]:
        """Patterns of a layer's heads, max-pooled to `size` x `size` cells, or as they are."""
        n_head = len(self.parts[0].slopes[layer])
        bins = adaptive_bins(len(self), min(size, len(self)))
        cells = len(self.valid) * n_head * len(self) * bins.shape[1]
        bands = []
        for band in bins.split(max(1, CELLS // cells)):
            columns, rows = band.unique(return_inverse=True)
            pattern = self.rebuilt(self.pattern, layer, slice(n_head), columns)
            pattern = pattern[..., bins.to(pattern.device)].amax(-1)
            bands.append(pattern[:, :, rows.to(pattern.device)].amax(3))
        return torch.cat(bands, 2)

    # -- what a quantity is made of ----------------------------------------------------------------

    def _n_key(self, group: Group, columns: Tensor) -> int:
        n_key = int(torch.cat([part.keys for part in group.parts])[columns - group.start].max())
        if "seen" in group.parts[0].values or self._padded:
            return n_key
        return min(n_key, int(columns.max()) + 1)  # later keys are hidden

    @cached_property
    def _padded(self) -> bool:
        return not bool(self.valid.all())

    def _bias(self, asked: Asked) -> AttentionBias:
        first, device = asked.group.parts[0], self.valid.device
        columns = asked.columns.to(device)
        positions, seen = self.positions, self.valid
        if "seen" in first.values:
            seen = first.get("seen")
            seen = F.pad(seen, (0, max(0, asked.n_key - seen.shape[1])), value=True)
        elif not self._padded:  # all rows are alike
            positions, seen = positions[:1], None
        dtype = self._computed_in("q", asked)
        return AttentionBias(
            query_positions=positions[:, columns],
            key_positions=positions[:, : asked.n_key],
            keys_seen=None if seen is None else seen[:, : asked.n_key],
            mode=first.mode,
            dtype=dtype,
            first=int(columns.min()),
            columns=columns,
            rounded=first.rounded and dtype == first.dtype,
        )

    def _computed_in(self, kind: str, asked: Asked) -> torch.dtype:
        first = asked.group.parts[0]
        stored = first.values[f"{kind}.{asked.layer}"].dtype
        exact = torch.promote_types(stored, first.dtype) == stored
        return first.dtype if exact else torch.promote_types(first.dtype, torch.float32)

    def _queries(self, asked: Asked) -> Float[Tensor, "batch head query d_head"]:
        name = f"q.{asked.layer}"
        q = torch.cat([part.get(name, asked.heads) for part in asked.group.parts], 1)
        q = q[:, (asked.columns - asked.group.start).to(q.device)]
        return q.transpose(1, 2).to(self._computed_in("q", asked))

    def _keys(self, kind: str, asked: Asked) -> Float[Tensor, "batch head key d_head"]:
        """Keys or values as the group's forwards saw them: those before it, as they were cached."""
        found, start = [], 0
        for part in self.parts:
            name, cached = f"{kind}.{asked.layer}", f"cached_{kind}.{asked.layer}"
            earlier = start < asked.group.start and cached in part.values
            found.append(part.get(cached if earlier else name, asked.heads))
            start += len(part.keys)
            if start >= asked.n_key:
                break
        k = torch.cat(found, 1)[:, : asked.n_key]
        return k.transpose(1, 2).to(self._computed_in("q", asked))

    def _edited(self, kind: str, asked: Asked) -> Tensor | None:
        first, name = asked.group.parts[0], f"{kind}.{asked.layer}"
        if name not in first.values:
            return None
        columns = (asked.columns - asked.group.start).to(self.valid.device)
        return first.get(name, asked.heads)[:, :, columns, : asked.n_key]


def adaptive_bins(length: int, size: int) -> Int[Tensor, "pos key"]:
    """Columns of each cell of adaptive pooling from `length` to `size`; the last one repeated."""
    cells = torch.arange(size)
    start, stop = cells * length // size, ((cells + 1) * length + size - 1) // size
    width = int((stop - start).max())
    return torch.minimum(start[:, None] + torch.arange(width), stop[:, None] - 1)


def columns_named(queries: Any, length: int) -> Int[Tensor, " query"]:
    """Columns that None (all), a number, a slice or several numbers pick among `length`."""
    columns = torch.arange(length)
    if isinstance(queries, slice):
        columns = columns[queries]
    elif queries is not None:
        try:
            wanted = torch.as_tensor(queries, device="cpu").reshape(-1)
        except (TypeError, ValueError, RuntimeError):
            wanted = torch.tensor([0.0])
        if len(wanted) and (wanted.dtype == torch.bool or wanted.is_floating_point()):
            raise InputError(f"queries are {queries!r}, expected whole numbers: columns.")
        low, high = (int(n) for n in wanted.aminmax()) if len(wanted) else (0, 0)
        if low < -length or high >= length:
            raise InputError(f"queries {low} to {high}: columns run from 0 to {length - 1}.")
        columns = columns[wanted.long()]
    if not len(columns):
        raise InputError(f"queries {queries!r} pick none of the {length} columns.")
    return columns
