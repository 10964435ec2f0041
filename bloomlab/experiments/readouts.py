"""Read-outs: what functions make of hook values, for every token as the model comes to it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments.sites import Point, find_points

Key = tuple[str, str]  # name of the read-out, name of the hook


@dataclass(frozen=True, kw_only=True, eq=False)
class Readout:
    """Numbers read at sites, such as the logits of a fitted probe.

    Attributes:
        name: of the read-out.
        sites: names of sites, each in all layers, or of hooks; see `find_points`.
        function: maps a hook's value [batch pos d] to [batch pos k], and [batch pos head d_head]
            to [batch pos head k]; or one such function for each layer, and the other layers are
            not read. It must leave what it gets as it is.
        outputs: names of the k numbers; None: 0, 1, ...
        heads: numbers of the heads that it is made for, by layer; None: any.
    """

    name: str
    sites: Any
    function: Any
    outputs: tuple[Any, ...] | None = None
    heads: Mapping[Any, tuple[int, ...]] | None = None

    def places(self, model: Any) -> Iterator[tuple[Point, Any]]:
        """The hook points of a model, and what reads there.

        Raises:
            UnknownNameError: a site or a layer that the model lacks.
            InputError: no function.
        """
        points = find_points(model, self.sites)
        by_layer = self.function if isinstance(self.function, Mapping) else None
        if by_layer is not None:
            known = {point.layer for point in points}
            for layer in by_layer:
                if layer not in known:
                    where = f"Read-out {self.name!r} at {self.sites!r}: the model has {len(known)}."
                    raise UnknownNameError("layer", layer, (), where=where)
        for point in points:
            if by_layer is not None and point.layer not in by_layer:
                continue
            function: Any = self.function if by_layer is None else by_layer[point.layer]
            if not callable(function):
                raise InputError(
                    f"read-out {self.name!r}: got {function!r:.60}, expected a function, or a "
                    "mapping of layers to functions."
                )
            if self.heads is not None and point.layer is not None:
                there = tuple(model.blocks[point.layer].attn.heads)
                if there != self.heads[point.layer]:
                    raise InputError(
                        f"read-out {self.name!r} is of heads {self.heads[point.layer]} of layer "
                        f"{point.layer}, but the model has {there}."
                    )
            yield point, function


def linear_readout(
    name: str,
    sites: Any,
    weights: Float[Tensor, "*layer output d"],
    bias: Float[Tensor, "..."] | None = None,
    *,
    outputs: Sequence[Any] | None = None,
) -> Readout:
    """Weights x + bias, such as a linear probe's logits; at half precision in float32.

    Args:
        name: of the read-out.
        sites: as in `Readout`.
        weights: the same in every layer, or its own in each of the first ones.
        bias: of each output, [output] or [layer output] as the weights; None: 0.
        outputs: their names, such as a probe's classes.

    Raises:
        ShapeError: weights, bias or names that do not fit each other.
    """
    if weights.ndim not in (2, 3):
        raise ShapeError("weights", got=weights.shape, expected="[output d] or [layer output d]")
    if bias is not None and bias.shape != weights.shape[:-1]:
        raise ShapeError("bias", got=bias.shape, expected=f"{list(weights.shape[:-1])}")
    if outputs is not None and len(outputs) != weights.shape[-2]:
        raise ShapeError("outputs", got=(len(outputs),), expected=f"{weights.shape[-2]} names")
    biases = torch.zeros_like(weights[..., 0]) if bias is None else bias
    function: Any = partial(_linear, weights=weights, bias=biases)
    if weights.ndim == 3:
        function = {
            layer: partial(_linear, weights=w, bias=b)
            for layer, (w, b) in enumerate(zip(weights, biases, strict=True))
        }
    named = None if outputs is None else tuple(outputs)
    return Readout(name=name, sites=sites, function=function, outputs=named)


def probe_readout(name: str, probes: Any, *, site: str | None = None) -> Readout:
    """The logits of fitted probes (`experiments.probe`), each at its own layer (and head).

    Args:
        name: of the read-out.
        probes: as `probe` gives them.
        site: which of their sites; None, if there is one.

    Raises:
        InputError: several sites and none named, or probes outside the layers.
        UnknownNameError: a site that was not probed.
    """
    known = list(dict.fromkeys(one for one, _, _ in probes.fitted))
    if site is None and len(known) > 1:
        raise InputError(f"there are probes at the sites {known}. Say which by site=....")
    site = known[0] if site is None else site
    if site not in known:
        raise UnknownNameError("probed site", site, known)
    heads: dict[Any, list[Any]] = {}
    for one, layer, head in probes.fitted:
        if one == site:
            heads.setdefault(layer, []).append(head)
    numbers = {layer: tuple(some) for layer, some in heads.items() if None not in some}
    functions = {
        layer: partial(_probed, probes=[probes.one(layer, site=site, head=head) for head in some])
        for layer, some in heads.items()
    }
    return Readout(
        name=name,
        sites=site,
        function=functions,
        outputs=tuple(probes.classes),
        heads=numbers or None,
    )


class Reader:
    """Takes read-outs off the steps of a stream; goes last among its interventions.

    The hooks promise only to read, so that decoding stays as fast as the points allow. Of a step
    that is run twice, for an edit outside the cache, the edited run counts.

    Args:
        model: a BLOOM.
        readouts: one or several, of different names.

    Attributes:
        points: the hook points by name.
        outputs: names of the numbers of each read-out, where given.
        heads: numbers of the heads at each hook that has some.

    Raises:
        InputError: none, several of one name, or something else.
        UnknownNameError: a site or layer that the model lacks.
    """

    enters_cache = True

    def __init__(self, model: Any, readouts: Any) -> None:
        given: list[Any] = [readouts] if isinstance(readouts, Readout) else list(readouts)
        for one in given:
            if not isinstance(one, Readout):
                raise InputError(f"a read-out is {one!r:.60}, expected a Readout.")
        names = [one.name for one in given]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"several read-outs are called {twice[0]!r}; rename one.")
        self.points: dict[str, Point] = {}
        self.outputs = {one.name: one.outputs for one in given}
        self._functions: dict[Key, Callable[[Tensor], Tensor]] = {}
        for one in given:
            for point, function in one.places(model):
                self.points[point.name] = point
                self._functions[one.name, point.name] = function
        self._values: dict[Key, Tensor] = {}
        self.heads = {
            name: tuple(model.blocks[point.layer].attn.heads)
            for name, point in self.points.items()
            if point.by_head
        }

    def hooks(self, start: int, step: int) -> list[tuple[str, Any]]:
        """The pairs of one step; forgets the step before."""
        self._values = {}
        again = step > 0 and start == 0  # without a cache: the whole text once more
        return [(key[1], self._hook(key, read, again)) for key, read in self._functions.items()]

    def taken(self) -> dict[Key, Tensor]:
        """What the last step gave, [batch new *head k] of its new tokens."""
        return self._values

    def _hook(self, key: Key, function: Callable[[Tensor], Tensor], again: bool) -> Any:
        values = self._values

        def read(value: Tensor, hook: Any) -> None:
            if key in values:
                return
            seen = value.detach()[:, -1:] if again else value.detach()
            version = None if seen.is_inference() else seen._version
            got = function(seen)
            if version is not None and seen._version != version:
                raise InputError(
                    f"read-out {key[0]!r} wrote to what it was given at {key[1]}; it may only read."
                )
            self._check(key, seen, got)
            values[key] = got.detach()

        read.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
        return read

    def _check(self, key: Key, seen: Tensor, got: Any) -> None:
        named, what = self.outputs[key[0]], f"what read-out {key[0]!r} makes of a value at {key[1]}"
        if not isinstance(got, Tensor):
            raise InputError(f"{what} is {got!r:.60}, expected a tensor.")
        k = "k" if named is None else len(named)
        if (
            got.ndim != seen.ndim
            or got.shape[:-1] != seen.shape[:-1]
            or k not in ("k", got.shape[-1])
        ):
            axes = ", ".join(map(str, (*seen.shape[:-1], k)))
            raise ShapeError(what, got=got.shape, expected=f"({axes})")


def _linear(value: Tensor, *, weights: Tensor, bias: Tensor) -> Tensor:
    if value.shape[-1] != weights.shape[-1]:
        raise ShapeError("weights", got=weights.shape, expected=f"[output {value.shape[-1]}]")
    wide = torch.promote_types(value.dtype, torch.float32)
    return value.to(wide) @ weights.to(value.device, wide).mT + bias.to(value.device, wide)


def _probed(value: Tensor, *, probes: list[Any]) -> Tensor:
    if value.ndim == 3:
        return probes[0].logits(value)
    if value.shape[2] != len(probes):
        raise ShapeError("the probed heads", got=(len(probes),), expected=f"{value.shape[2]}")
    return torch.stack([one.logits(value[:, :, i]) for i, one in enumerate(probes)], 2)
