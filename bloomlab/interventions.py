"""Edits of a run at named hook points: what `model.stream` and `model.hooks` take beside pairs.

A factory (`mask_heads`, `steer`, `patch`, ...) makes an `Intervention` that acts everywhere; its
methods narrow it, and each narrows further: `steer(3, vector).during("generation").on_rows([0])`.

Columns count the tokens of a row of ids from 0, padding and cached tokens included. Step 0 of a
generation is the forward of the prompt, step t >= 1 that of generated token t - 1 alone. With or
without a cache, an edit gives what one full forward with the same edit at that column gives.
"""

from collections.abc import Mapping
from functools import partial
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bloomlab.errors import CacheError, InputError, ShapeError, UnknownNameError
from bloomlab.schedule import GRIDS, Intervention, Pick, Spot, index_of, numbers, span

__all__ = [
    "Intervention",
    "Spot",
    "freeze_pattern",
    "knock_out",
    "mask_heads",
    "mean_heads",
    "patch",
    "scale_heads",
    "scale_slopes",
    "steer",
]

RECORDED = {"hook_q": "q", "hook_k": "k", "hook_v": "v", "hook_resid_pre": "resid"}  # in a trace


def mask_heads(layer: Any, heads: Any) -> Intervention:
    """Heads that write nothing: their `attn.hook_z` is zero, as under `head_mask`.

    Args:
        layer: number of the layer, from 0.
        heads: a head, several, or None for all; so in every factory.

    Raises:
        InputError: a layer or head that is no whole number from 0, or no heads at all.
    """
    return scale_heads(layer, heads, factor=0.0)


def scale_heads(layer: Any, heads: Any, *, factor: Any) -> Intervention:
    """Heads whose output (`attn.hook_z`) is multiplied by a number; may carry a gradient."""
    return _at_heads(layer, "hook_z", heads, partial(_scaled, factor=_number("factor", factor)))


def mean_heads(layer: Any, heads: Any, *, mean: Any) -> Intervention:
    """Heads whose output is the same everywhere.

    Args:
        layer: number of the layer.
        heads: which of its heads.
        mean: for every head of the layer, [head d_head], as `cache["z", layer].mean((0, 1))`.
    """
    if not isinstance(mean, Tensor) or mean.ndim != 2:
        got = tuple(mean.shape) if isinstance(mean, Tensor) else repr(mean)
        raise InputError(f"mean is {got}, expected a tensor [head d_head], of the layer's heads.")
    return _at_heads(layer, "hook_z", heads, partial(_averaged, mean=mean))


def patch(name: Any, source: Any, *, heads: Any = None) -> Intervention:
    """Values of another run in place of this run's, column by column and row by row.

    At queries x keys (scores, pattern, bias) a column is a query; of a longer run's keys the first
    are taken. Keys and values that are patched in enter the cache by nature.

    Args:
        name: the hook point, e.g. "blocks.0.attn.hook_v".
        source: a tensor shaped like the hook's value in a run from column 0, for as many rows as
            this run or one for all; or a cache or dict that has one under this name; or a trace
            (for q, k, v and `hook_resid_pre`).
        heads: only these.

    Raises:
        InputError: no such source; a trace of something else.
        UnknownNameError: the cache does not hold this name.
        ShapeError: when it acts: the source does not fit the run, or ends before the columns.
    """
    if not isinstance(name, str):
        raise InputError(f"a hook name is {name!r}, expected a string.")
    edit = partial(_replaced, source=_recorded(name, source), fade=False)
    return Intervention(name=name, edit=edit, heads=_heads(heads), by_column=True)


def steer(where: Any, vector: Any, *, coefficient: Any = 1.0) -> Intervention:
    """`coefficient * vector` added to the stream (activation addition, Turner et al., 2023).

    Args:
        where: a layer, for the stream that enters it (`hook_resid_pre`), or a hook name.
        vector: [d_model], or as long as the last axis at that hook.
        coefficient: number; may carry a gradient, as may the vector.
    """
    if not isinstance(vector, Tensor) or vector.ndim != 1:
        got = tuple(vector.shape) if isinstance(vector, Tensor) else repr(vector)
        raise InputError(f"the steering vector is {got}, expected a tensor of one axis.")
    name = where if isinstance(where, str) else f"blocks.{_layer(where)}.hook_resid_pre"
    edit = partial(_added, vector=vector, coefficient=_number("coefficient", coefficient))
    return Intervention(name=name, edit=edit)


def knock_out(layer: Any, heads: Any, *, keys: Any, queries: Any = None) -> Intervention:
    """Attention edges cut before the softmax, so that the others share (Geva et al., 2023).

    Args:
        layer: number of the layer.
        heads: which of its heads.
        keys: column or columns no longer seen.
        queries: by which columns; None: by all later ones, every token still sees itself.

    Raises:
        InputError: all keys come after all queries; when it acts: a query that saw something
            would see nothing.
    """
    gone = numbers("keys", keys)
    edit = partial(_cut, keys=gone, later=queries is None)
    cut = _at_heads(layer, "hook_attn_scores", heads, edit)
    if queries is None:
        return cut
    lookers = numbers("queries", queries)
    if gone[0] > lookers[-1]:
        raise InputError(f"queries {lookers} come before keys {gone}: they see none of them.")
    return cut.at_columns(lookers)


def freeze_pattern(layer: Any, heads: Any, *, pattern: Any) -> Intervention:
    """Attention patterns given from outside, as they are: rows are not made to sum to 1.

    The row of a query is taken at its column. Keys after the pattern's last get 0; keys that this
    forward does not have yet are left out (0 in any pattern of a run).

    Args:
        layer: number of the layer.
        heads: which of its heads.
        pattern: [batch head query key], batch and head may be 1; [query key] for all heads and
            rows; or a cache that has `blocks.{layer}.attn.hook_pattern`; from a trace,
            `trace.pattern(layer, head)[:, None]`.

    Raises:
        ShapeError: when it acts: the pattern does not fit the run or has no row for a column.
    """
    given = _recorded(f"blocks.{_layer(layer)}.attn.hook_pattern", pattern)
    given = given[None, None] if given.ndim == 2 else given
    return _at_heads(layer, "hook_pattern", heads, partial(_replaced, source=given, fade=True))


def scale_slopes(layer: Any, heads: Any, *, factor: Any) -> Intervention:
    """Heads whose ALiBi slope is multiplied by a number; 0 hides all distances from them.

    Acts on the bias (`attn.hook_alibi`), so it can be scheduled; `attn.slopes` stays as it is.
    """
    return _at_heads(layer, "hook_alibi", heads, partial(_scaled, factor=_number("factor", factor)))


def _at_heads(layer: Any, point: str, heads: Any, edit: partial[Tensor]) -> Intervention:
    name, by_column = f"blocks.{_layer(layer)}.attn.{point}", edit.func in (_replaced, _cut)
    return Intervention(name=name, edit=edit, heads=_heads(heads), by_column=by_column)


def _layer(layer: Any) -> int:
    first, *more = numbers("layer", layer)
    if more:
        raise InputError(f"layer: got {layer!r}, expected one; make an intervention for each.")
    return first


def _heads(heads: Any) -> tuple[int, ...] | None:
    return None if heads is None else numbers("heads", heads)


def _number(what: str, value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim == 0:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"{what} is {value!r}, expected a number or a tensor without axes.")
    return value


def _recorded(name: str, source: Any) -> Tensor:
    """What another run left at a hook point."""
    if isinstance(source, Tensor):
        return source
    layer, point = name.partition(".")[2].partition(".")[0], name.rpartition(".")[2]
    if hasattr(source, "cache_dict"):
        return source[name]
    if isinstance(source, Mapping):
        if name in source:
            return source[name]
        raise UnknownNameError("cached activation", name, map(str, source))
    if layer.isdigit() and hasattr(source, method := RECORDED.get(point, "")):
        return getattr(source, method)(int(layer))
    raise InputError(
        f"no values for {name} in {type(source).__name__!r}: expected a tensor, a cache or dict "
        f"that holds it, or a trace, which holds {', '.join(RECORDED)}."
    )


def _scaled(old: Tensor, spot: Spot, *, factor: Any) -> Tensor:
    return old * factor


def _added(old: Tensor, spot: Spot, *, vector: Tensor, coefficient: Any) -> Tensor:
    if len(vector) != old.shape[-1]:
        raise ShapeError(
            f"the steering vector at {spot.name}", got=vector.shape, expected=f"({old.shape[-1]},)"
        )
    return old + (coefficient * vector).to(old)


def _averaged(old: Tensor, spot: Spot, *, mean: Tensor) -> Tensor:
    if mean.shape != (spot.n_head, old.shape[-1]):
        expected = f"({spot.n_head}, {old.shape[-1]}), of every head of the layer"
        raise ShapeError(f"the mean at {spot.name}", got=mean.shape, expected=expected)
    return mean[index_of([spot.heads], mean)].to(old).expand_as(old)


def _replaced(old: Tensor, spot: Spot, *, source: Tensor, fade: bool) -> Tensor:
    """The same place of another run; with `fade`, 0 for keys that it did not have."""
    n_column, n_last = spot.columns[-1] + 1, old.shape[-1]
    heads, grid = [spot.n_head] * (old.ndim == 4), spot.name.endswith(GRIDS)
    there = source.movedim(2, 1) if grid and source.ndim == 4 else source  # as a Spot has it
    if (
        there.ndim != old.ndim
        or not all(
            n in (1, wanted)
            for n, wanted in zip(
                (len(there), *there.shape[2:-1]), (spot.n_row, *heads), strict=True
            )
        )
        or not (there.shape[-1] == n_last or (grid and (fade or there.shape[-1] > n_last)))
    ):
        axes = ["pos", f"at least {n_last}"] if grid else ["pos", *heads, n_last]
        axes = [spot.n_row, *(heads if grid else []), *axes]
        raise ShapeError(
            f"the source of {spot.name}",
            got=source.shape,
            expected=f"({', '.join(map(str, axes))})",
            fix="Batch and head may be 1.",
        )
    if there.shape[1] < n_column:
        raise ShapeError(
            f"the source of {spot.name}",
            got=source.shape,
            expected=f"at least {n_column} columns",
            fix="It ends before the run; narrow the intervention by at_columns or during.",
        )
    if grid:
        _require_every_key(old, spot)
    there = there.expand(spot.n_row, -1, *heads, -1)
    picks: list[Pick] = [spot.rows, span(spot.columns), spot.heads][: old.ndim - 1]
    new = there[index_of(picks, there)][..., :n_last].to(old)
    return F.pad(new, (0, n_last - new.shape[-1]))


def _cut(old: Tensor, spot: Spot, *, keys: tuple[int, ...], later: bool) -> Tensor:
    _require_every_key(old, spot)
    key = torch.arange(spot.end, device=old.device)
    gone = torch.isin(key, torch.tensor(keys, device=old.device))[None]
    if later:
        gone = gone & (key < torch.tensor(spot.columns, device=old.device)[:, None])
    lowest = torch.finfo(old.dtype).min
    new = old.masked_fill(gone[:, None], lowest)
    blind = (old > lowest / 2).any(-1) & (new <= lowest / 2).all(-1)  # row column head
    if bool(blind.any()):
        column = spot.columns[int(blind.any(-1).any(0).nonzero()[0])]
        raise InputError(
            f"knock_out leaves the query at column {column} no key to see at {spot.name}; "
            "leave it one, or drop this query from `queries`."
        )
    return new


def _require_every_key(old: Tensor, spot: Spot) -> None:
    if old.shape[-1] != spot.end:
        raise CacheError(
            f"{spot.name} has {old.shape[-1]} keys for {spot.end} columns: the cache was thinned "
            "out, or `start` is not its length; keys cannot be told by their column then."
        )
