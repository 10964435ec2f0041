"""Hooks that record what forwards leave behind, one forward after the other."""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.model.alibi import rounds
from bloomlab.model.config import as_dtype
from bloomlab.model.hooks import HookPoint
from bloomlab.model.parts import EDITS, KINDS, Part, cropped, gathered


def kinds_named(keep: Any) -> tuple[str, ...]:
    """What to keep, in the order of KINDS; None is all of it."""
    keep = KINDS if keep is None else keep
    names = list(keep) if isinstance(keep, Iterable) and not isinstance(keep, str) else [keep]
    for name in names:
        if name not in KINDS:
            raise UnknownNameError("thing to keep", name, KINDS)
    if not names:
        raise InputError(f"keep is empty, expected some of {', '.join(KINDS)}.")
    return tuple(kind for kind in KINDS if kind in names)


def layers_named(layers: Any, n_layer: int) -> tuple[int, ...]:
    """Numbers of layers in order; negative ones count from the end, None is all."""
    layers = range(n_layer) if layers is None else layers
    chosen = {
        one_of("layer", layer, n_layer)
        for layer in (layers if isinstance(layers, Iterable) else [layers])
    }
    if not chosen:
        raise InputError("layers is empty, expected numbers of layers, or None for all.")
    return tuple(sorted(chosen))


def one_of(kind: str, index: Any, count: int) -> int:
    """`index` counted from the start; raises unless it names one of `count`."""
    try:
        number = count if isinstance(index, bool) else operator.index(index)
    except TypeError:
        number = count
    if not -count <= number < count:
        raise UnknownNameError(
            kind, index, (), where=f"They run from 0 to {count - 1}, or from -{count} to -1."
        )
    return number % count


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class _Keep:
    """A hook that keeps what it sees, detached; a view where nobody else can write to it."""

    into: dict[str, Tensor]
    came_as: dict[str, torch.dtype]
    name: str
    device: Any
    dtype: torch.dtype | None
    tight: bool
    only_reads: ClassVar[bool] = True

    def __call__(self, value: Tensor, hook: HookPoint) -> None:
        kept = value.detach().to(device=self.device, dtype=self.dtype)
        if kept.data_ptr() == value.data_ptr() and (self.tight or hook.may_be_edited()):
            kept = kept.clone(memory_format=torch.contiguous_format)
        self.into[self.name], self.came_as[self.name] = kept, value.dtype


class Recording:
    """Hooks that record forwards one after the other; `crop` and `gather` it as the cache.

    It knows a cache by its forwards only: begin with an empty one; tokens evicted from it and
    entries written into it cannot be followed.

    Args:
        model: the model whose forwards will run.
        keep: what to keep of "q", "k", "v" and "resid"; None: all.
        layers: which layers; None: all. The last one brings the final residual stream along.
        dtype: number format to keep q, k, v and resid in; None: as they are. (A residual stream
            may exceed float16's range.)
        device: where to keep everything; None: where it is.

    Raises:
        UnknownNameError: nothing that can be kept has such a name, or no such layer.
        InputError: arguments of the wrong kind.
    """

    def __init__(
        self,
        model: Any,
        *,
        keep: Any = None,
        layers: Any = None,
        dtype: Any = None,
        device: Any = None,
    ) -> None:
        self._model = model
        self._keep = kinds_named(keep)
        self._layers = layers_named(layers, len(model.blocks))
        self._dtype, self._device = as_dtype(dtype), device
        self._parts: list[Part] = []
        self._valid = torch.ones(0, 0, dtype=torch.bool)  # batch pos
        self._seen: dict[str, Tensor] = {}  # by the forward that is under way
        self._came_as: dict[str, torch.dtype] = {}
        points = [
            (f"blocks.{layer}.{KINDS[kind]}", f"{kind}.{layer}")
            for layer in self._layers
            for kind in self._keep
        ]
        last = len(model.blocks) - 1
        if "resid" in self._keep and last in self._layers:
            points.append((f"blocks.{last}.hook_resid_post", f"resid.{last + 1}"))
        self._names = [name for _, name in points]
        # q, k and v are views of one tensor: alone, each would keep all of it alive
        loose = {"resid"} | (set("qkv") if set("qkv") <= set(self._keep) else set())
        self._hooks = [
            (point, self._keeper(name, self._dtype, tight=name.split(".")[0] not in loose))
            for point, name in points
        ]

    def __len__(self) -> int:
        return self._valid.shape[1]

    def _keeper(self, name: str, dtype: torch.dtype | None = None, *, tight: bool = False) -> _Keep:
        return _Keep(
            into=self._seen,
            came_as=self._came_as,
            name=name,
            device=self._device,
            dtype=dtype,
            tight=tight,
        )

    def hooks(self, edited: Iterable[Any] = ()) -> list[tuple[str, _Keep]]:
        """(name, function) pairs to attach for one forward, after the hooks that edit; then `add`.

        Where a hook that may edit sits at a layer's bias, scores or pattern, these are kept as
        well, each [batch head query key].

        Args:
            edited: names (or functions on names) of the points that hooks yet to be attached edit.
        """
        self._seen.clear()
        names = {name for one in edited for name in self._model.picked(one)}
        extra = []
        for layer in self._layers:
            for kind, point in EDITS.items():
                name = f"blocks.{layer}.{point}"
                if name in names or self._model.hook_dict[name].may_be_edited():
                    extra.append((name, self._keeper(f"{kind}.{layer}")))
        return [*self._hooks, *extra]

    def cache_hooks(self) -> list[tuple[str, _Keep]]:
        """Pairs for a second forward of the same tokens, the one whose keys enter the cache.

        For an edit that the cache shall not know: first the edited forward with `hooks` on a fork
        of the cache, then one without the edit with these, then `add`.
        """
        return [
            (
                f"blocks.{layer}.{KINDS[kind]}",
                self._keeper(f"cached_{kind}.{layer}", self._dtype, tight=True),
            )
            for layer in self._layers
            for kind in ("k", "v")
            if kind in self._keep
        ]

    def add(self, ids: Any, mask: Any = None) -> None:
        """Take the forward that just ran with `hooks` attached into the recording.

        Args:
            ids: the new tokens [batch pos]; of a forward over more, the last ones.
            mask: 1 for tokens, 0 for padding [batch pos], earlier tokens included; None: as
                before, and no padding among the new ones.

        Raises:
            InputError: no forward ran with the hooks attached.
            ShapeError: rows or columns that do not fit what is recorded.
        """
        values, past = {**self._seen}, len(self)
        self._seen.clear()
        if missing := [name for name in self._names if name not in values]:
            raise InputError(
                f"nothing to add: no forward gave {missing[0]}. Run the whole model in a "
                "`with model.hooks(fwd_hooks=recorder.hooks())` first."
            )
        batch, new = ids.shape
        device = ids.device if self._device is None else self._device
        ids = ids.detach().to(device, copy=True)
        rows = len(self._valid) if self._parts else batch
        valid = self._valid if self._parts else ids.new_ones(batch, 0, dtype=torch.bool)
        if mask is None and rows == batch:
            mask = torch.cat([valid, valid.new_ones(batch, new)], 1)
        found = (batch, past + new) if mask is None else torch.as_tensor(mask).shape
        if rows != batch or found != (batch, past + new):
            raise ShapeError(
                "the mask of all tokens",
                got=found,
                expected=f"[{rows}, {past + new}]: {past} recorded and {new} new tokens",
                fix="Crop or gather the recorder as the cache; evicted tokens cannot be followed.",
            )
        mask = torch.as_tensor(mask, device=device) == 1
        for name, value in values.items():
            axis = 2 if name.split(".")[0] in EDITS else 1
            if value.shape[axis] != new:  # a forward over the whole text: the rest is recorded
                values[name] = value.narrow(axis, value.shape[axis] - new, new).clone()
        values |= {"tokens": ids, "valid": mask[:, past:]}
        if not torch.equal(valid, mask[:, :past]):
            values["seen"] = mask
        self._valid = torch.cat([valid, mask[:, past:]], 1)
        slopes = [b.attn.slopes.detach().to("cpu", torch.float32) for b in self._model.blocks]
        before = self._parts[-1].slopes if self._parts else ()
        if len(before) != len(slopes) or not all(map(torch.equal, before, slopes)):
            before = tuple(slope.clone() for slope in slopes)
        dtype, kept = self._came_as[self._names[0]], self._model.config.kept_heads
        self._parts.append(
            Part(
                values=values,
                keys=torch.full((new,), past + new),
                slopes=before,
                mode=self._model.config.alibi,
                rounded=rounds(self._model.config.alibi, dtype, self._model.device),
                dtype=dtype,
                heads=tuple(tuple(some) for some in kept) if kept is not None else None,
            )
        )

    def crop(self, length: int) -> None:
        """Go on from the first `length` tokens; a negative length drops from the end."""
        self._parts = cropped(self._parts, length)
        self._valid = self._valid[:, :length]

    def gather(self, rows: Any) -> None:
        """Go on with these rows [row], in this order; a row may come several times (a fork)."""
        self._parts = gathered(self._parts, rows)
        self._valid = self._valid[torch.as_tensor(rows, device=self._valid.device)]
