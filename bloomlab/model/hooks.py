"""Hook points that cost nothing when unused. The only file that imports transformer_lens."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformer_lens import ActivationCache as TLActivationCache
from transformer_lens import FactoredMatrix
from transformer_lens import HookedRootModule as TLHookedRootModule
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.hook_points import HookPoint as TLHookPoint
from transformer_lens.utilities.components_utils import get_act_name
from transformer_lens.utilities.matrix import composition_scores
from transformer_lens.utilities.slice import Slice

from bloomlab.errors import InputError, UnknownNameError

__all__ = [
    "FactoredMatrix",
    "HookPoint",
    "HookedRootModule",
    "Slice",
    "TLActivationCache",
    "TransformerBridgeConfig",
    "composition_scores",
    "get_act_name",
    "hooked",
    "hooked_edit",
    "is_hooked",
]

HookFunction = Callable[..., Any]
# (name or function on names, hook) pairs; checked by hand, so that errors speak plainly
Hooks = Any

# TransformerLens knows some points by several names; ours are on the right. Its `attn.hook_out` and
# `mlp.hook_out` are missing: on a BLOOM they hold the stream, elsewhere the layer's contribution.
ALIASES = {
    r"blocks\.(\d+)\.(ln1\.)?hook_in": r"blocks.\1.hook_resid_pre",
    r"blocks\.(\d+)\.hook_out": r"blocks.\1.hook_resid_post",
    r"blocks\.(\d+)\.ln2\.hook_in": r"blocks.\1.hook_resid_mid",
    r"blocks\.(\d+)\.hook_(attn_in|[qkv]_input)": r"blocks.\1.attn.hook_\2",
    r"blocks\.(\d+)\.attn\.([qkv])\.hook_out": r"blocks.\1.attn.hook_\2",
    r"blocks\.(\d+)\.attn\.o\.hook_in": r"blocks.\1.attn.hook_z",
    r"blocks\.(\d+)\.attn\.o\.hook_out": r"blocks.\1.hook_attn_out",
    r"blocks\.(\d+)\.mlp\.in\.hook_out": r"blocks.\1.mlp.hook_pre",
    r"blocks\.(\d+)\.mlp\.out\.hook_in": r"blocks.\1.mlp.hook_post",
    r"blocks\.(\d+)\.mlp\.out\.hook_out": r"blocks.\1.hook_mlp_out",
}


class HookPoint(TLHookPoint):
    """A named value. Hooks get a copy of it, so that editing in place harms nobody else.

    Not autograd, which may need the value as it was, nor a cache that holds the same tensor. A
    hook function that never edits may say so by an attribute `only_reads = True`: no copy then.
    """

    def may_be_edited(self) -> bool:
        """Whether a hook is attached that does not promise only to read."""
        readers = sum(getattr(handle.user_hook, "only_reads", False) for handle in self.fwd_hooks)
        return len(self._forward_hooks) > readers


def is_hooked(point: TLHookPoint) -> bool:
    """Whether anything is attached to a hook point."""
    return bool(point._forward_hooks or point._backward_hooks or point._forward_pre_hooks)


def hooked(point: HookPoint, value: Tensor) -> Tensor:
    """`value` as the hooks of `point` leave it; untouched, and nearly for free, without hooks."""
    # the body of is_hooked, inlined: this runs twenty times a layer
    if point._forward_hooks or point._backward_hooks or point._forward_pre_hooks:
        return hooked_edit(point, value)[0]
    return value


def hooked_edit(point: HookPoint, value: Tensor) -> tuple[Tensor, bool]:
    """`hooked`, and whether a hook set the value: returned one, or wrote to it in place."""
    given = value.clone() if point.may_be_edited() else value
    before = None if given.is_inference() else given._version
    result = point(given)
    if before is None:  # inference mode counts no versions
        edited = result is not given or not torch.equal(given, value)
    else:
        edited = result is not given or given._version != before
    if isinstance(result, Tensor) and result.shape == value.shape:
        return result, edited
    if isinstance(result, Tensor) and broadcasts(result, value):
        return result.expand(value.shape), edited
    got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
    raise InputError(
        f"a hook at {point.name} returned {got}, expected a tensor {tuple(value.shape)} "
        "(or None, to leave the value as it is)."
    )


def broadcasts(value: Tensor, to: Tensor) -> bool:
    """Whether `value` can stand for every entry of a tensor like `to`."""
    sizes = zip(reversed(value.shape), reversed(to.shape), strict=False)
    return value.ndim <= to.ndim and all(size in (1, wanted) for size, wanted in sizes)


class HookedRootModule(TLHookedRootModule):
    """TransformerLens' root module with checked names and aliases."""

    _counting = 0  # interventions attached by `hooks` that count columns or steps

    def require_whole_text(self, past: int) -> None:
        """Raise if a forward goes on from cached tokens while attached interventions count from 0.

        Raises:
            InputError: how to attach them for such a forward.
        """
        if self._counting and past:
            raise InputError(
                f"this forward goes on from {past} cached tokens, but interventions that count "
                "columns or steps are attached as for a whole text. Pass them to generate or "
                f"stream (interventions=[...]), or attach edit.hooks(start={past}, step=...)."
            )

    def resolve_hook_name(self, name: str) -> str:
        """Our name of a hook point that TransformerLens may also call otherwise.

        Raises:
            UnknownNameError: no such hook point; suggests the nearest names.
        """
        if name in self.hook_dict:
            return name
        for alias, ours in ALIASES.items():
            if re.fullmatch(alias, name) and (found := re.sub(alias, ours, name)) in self.hook_dict:
                return found
        raise UnknownNameError(
            "hook point", name, self.hook_dict, where="`model.hook_dict` lists all names."
        )

    def picked(self, names: Any) -> list[str]:
        """Our names of the hook points that a name, an alias or a function on names picks."""
        if not isinstance(names, str) and not callable(names):
            raise InputError(f"a hook name is {names!r}, expected a string or a function on names.")
        if callable(names):
            return [name for name in self.hook_dict if names(name)]
        return [self.resolve_hook_name(names)]

    def add_hook(
        self, name: str | Callable[[str], bool], hook: HookFunction, *args: Any, **kwargs: Any
    ) -> None:
        """Attach a hook until `reset_hooks`; prefer `hooks` or `run_with_hooks`, which clean up."""
        for found in self.picked(name):
            super().add_hook(found, hook, *args, **kwargs)

    @contextmanager
    def hooks(
        self,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
    ) -> Iterator["HookedRootModule"]:
        """Attach hooks for the length of a `with`; gone afterwards, also after an error.

        Args:
            fwd_hooks: pairs of a hook name (or a function that picks names) and a function
                `fn(value, hook)`, which may return a new value or edit in place; or
                interventions, for a forward from column 0 at step 0.
            bwd_hooks: the same, on gradients; they stay with what was computed inside, so the
                backward pass may run later.
            reset_hooks_end: False leaves them attached, until `reset_hooks`.
            clear_contexts: also empty the `ctx` of these hook points.

        Raises:
            UnknownNameError: a name that no hook point has; nothing is attached then.
        """
        fwd_hooks = [fwd_hooks] if hasattr(fwd_hooks, "hooks") else fwd_hooks  # a lone one
        counting = sum(getattr(one, "counts", False) for one in fwd_hooks)
        fwd_hooks = [
            pair
            for one in fwd_hooks
            for pair in (one.hooks(start=0, step=0) if hasattr(one, "hooks") else [one])
        ]
        for pair in (*fwd_hooks, *bwd_hooks):
            if not isinstance(pair, tuple | list) or len(pair) != 2 or not callable(pair[1]):
                raise InputError(f"hooks come as a list of (name, function) pairs, got {pair!r}.")
        fwd = [(self.hook_dict[name], fn) for names, fn in fwd_hooks for name in self.picked(names)]
        bwd = [(self.hook_dict[name], fn) for names, fn in bwd_hooks for name in self.picked(names)]
        added = []
        self.context_level += 1
        self._counting += counting
        try:
            for point, fn in fwd:
                added.append((point, point.add_hook(fn, "fwd", level=self.context_level)))
            for point, fn in bwd:
                added.append((point, point.add_hook(fn, "bwd", level=self.context_level)))
            yield self
        finally:
            self.context_level -= 1
            self._counting -= counting
            for point, handle in added:
                if reset_hooks_end:
                    handle.hook.remove()
                    point.fwd_hooks = [other for other in point.fwd_hooks if other is not handle]
                    point.bwd_hooks = [other for other in point.bwd_hooks if other is not handle]
                if clear_contexts:
                    point.clear_context()

    def run_with_hooks(
        self,
        *inputs: Any,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **forward_arguments: Any,
    ) -> Any:
        """The logits (or what `return_type` says) of a forward with hooks attached; see `hooks`."""
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*inputs, **{"return_type": "logits", **forward_arguments})
