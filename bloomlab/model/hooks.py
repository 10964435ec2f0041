"""Hook points that cost nothing when unused. The only file that imports transformer_lens."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformer_lens import ActivationCache as TLActivationCache
from transformer_lens import FactoredMatrix
from transformer_lens import HookedRootModule as TLHookedRootModule
from transformer_lens.config import TransformerBridgeConfig
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import Slice

from bloomlab.errors import InputError, UnknownNameError, UnsupportedError

__all__ = [
    "ActivationCache",
    "FactoredMatrix",
    "HookPoint",
    "HookedRootModule",
    "TransformerBridgeConfig",
    "hooked",
    "is_hooked",
]

HookFunction = Callable[..., Any]
Hooks = Sequence[tuple[str | Callable[[str], bool], HookFunction]]

# TransformerLens knows some points by several names; ours are on the right.
ALIASES = {
    r"blocks\.(\d+)\.hook_in": r"blocks.\1.hook_resid_pre",
    r"blocks\.(\d+)\.hook_out": r"blocks.\1.hook_resid_post",
    r"blocks\.(\d+)\.ln1\.hook_in": r"blocks.\1.hook_resid_pre",
    r"blocks\.(\d+)\.ln2\.hook_in": r"blocks.\1.hook_resid_mid",
    r"blocks\.(\d+)\.hook_(attn_in|[qkv]_input)": r"blocks.\1.attn.hook_\2",
    r"blocks\.(\d+)\.attn\.([qkv])\.hook_out": r"blocks.\1.attn.hook_\2",
    r"blocks\.(\d+)\.attn\.o\.hook_in": r"blocks.\1.attn.hook_z",
    r"blocks\.(\d+)\.attn\.(o\.)?hook_out": r"blocks.\1.hook_attn_out",
    r"blocks\.(\d+)\.mlp\.in\.hook_out": r"blocks.\1.mlp.hook_pre",
    r"blocks\.(\d+)\.mlp\.out\.hook_in": r"blocks.\1.mlp.hook_post",
    r"blocks\.(\d+)\.mlp\.(out\.)?hook_out": r"blocks.\1.hook_mlp_out",
}
# Points that would multiply the memory of a run: cached only when named or switched on in `cfg`.
GATES = {
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_result": "use_attn_result",
}


def is_hooked(point: HookPoint) -> bool:
    """Whether anything is attached to a hook point."""
    return bool(point._forward_hooks or point._backward_hooks or point._forward_pre_hooks)


def hooked(point: HookPoint, value: Tensor) -> Tensor:
    """`value` as the hooks of `point` leave it; untouched, and nearly for free, without hooks."""
    # the body of is_hooked, inlined: this runs twenty times a layer
    if point._forward_hooks or point._backward_hooks or point._forward_pre_hooks:
        return point(value)
    return value


class ActivationCache(TLActivationCache):
    """TransformerLens' cache; its residual decompositions refuse a stream that is no sum."""

    def decompose_resid(self, *args: Any, **kwargs: Any) -> Any:
        """Embedding, attention and MLP outputs whose sum is the residual stream."""
        self._require_additive_stream()
        return super().decompose_resid(*args, **kwargs)

    def get_full_resid_decomposition(self, *args: Any, **kwargs: Any) -> Any:
        """Every head, neuron and bias term whose sum is the residual stream."""
        self._require_additive_stream()
        return super().get_full_resid_decomposition(*args, **kwargs)

    def _require_additive_stream(self) -> None:
        if self.model.config.apply_residual_connection_post_layernorm:
            raise UnsupportedError(
                "this BLOOM has apply_residual_connection_post_layernorm=True: its skip connection "
                "carries the LayerNorm's output, so the residual stream is not a sum of component "
                "outputs. Use accumulated_resid, or hook_resid_pre/mid/post."
            )


class HookedRootModule(TLHookedRootModule):
    """TransformerLens' root module with checked names, aliases and a real ActivationCache."""

    cfg: Any

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

    def add_hook(
        self, name: str | Callable[[str], bool], hook: HookFunction, *args: Any, **kwargs: Any
    ) -> None:
        """Attach a hook until `reset_hooks`; prefer `hooks` or `run_with_hooks`, which clean up."""
        super().add_hook(
            self.resolve_hook_name(name) if isinstance(name, str) else name, hook, *args, **kwargs
        )

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
                `fn(value, hook)`, which may return a new value or edit in place.
            bwd_hooks: the same, on gradients.
            reset_hooks_end: False leaves them attached, until `reset_hooks`.
            clear_contexts: also empty the hook points' `ctx`.

        Raises:
            UnknownNameError: a name that no hook point has; nothing is attached then.
        """
        checked = [
            [
                (self.resolve_hook_name(name) if isinstance(name, str) else name, fn)
                for name, fn in pairs
            ]
            for pairs in (fwd_hooks, bwd_hooks)
        ]
        with super().hooks(*checked, reset_hooks_end, clear_contexts):
            yield self

    def run_with_hooks(
        self,
        *inputs: Any,
        fwd_hooks: Hooks = (),
        bwd_hooks: Hooks = (),
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **forward_arguments: Any,
    ) -> Any:
        """The logits (or what `return_type` says) of a forward with hooks attached."""
        if bwd_hooks and reset_hooks_end:
            raise InputError(
                "run_with_hooks removes bwd_hooks before a backward pass can run. Use "
                "`with model.hooks(bwd_hooks=...)` around forward and backward, or reset_hooks_end=False."
            )
        with self.hooks(fwd_hooks, bwd_hooks, reset_hooks_end, clear_contexts):
            return self(*inputs, **{"return_type": "logits", **forward_arguments})

    def run_with_cache(
        self,
        *inputs: Any,
        names_filter: str | Sequence[str] | Callable[[str], bool] | None = None,
        device: Any = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        return_cache_object: bool = True,
        **forward_arguments: Any,
    ) -> Any:
        """The logits (or what `return_type` says) and every activation on the way.

        Args:
            *inputs: tokens or text, as for a forward.
            names_filter: a hook name, several, or a function that picks names; None takes all but
                the points that multiply memory (`hook_result`, `hook_q_input`, ...), which come
                when named or switched on by `set_use_attn_result(True)` and its like.
            device: where to keep the activations; None leaves them where they are.
            remove_batch_dim: drop the batch axis (one row only).
            incl_bwd: also run backward and cache gradients as `<name>_grad`; needs a scalar
                (`return_type="loss"`).
            reset_hooks_end: remove all hooks of this call at the end.
            clear_contexts: also empty the hook points' `ctx`.
            pos_slice: keep these positions only.
            return_cache_object: False gives a plain dict.
            **forward_arguments: as for a forward.

        Raises:
            UnknownNameError: a name in `names_filter` that no hook point has.
        """
        cache, fwd, bwd = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, pos_slice=pos_slice
        )
        with self.hooks(fwd, bwd, reset_hooks_end, clear_contexts):
            out = self(*inputs, **{"return_type": "logits", **forward_arguments})
            if incl_bwd:
                out.backward()
        wrapped = ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)
        return out, wrapped if return_cache_object else cache

    def get_caching_hooks(
        self,
        names_filter: Any = None,
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Any = None,
    ) -> tuple[dict[str, Tensor], list[Any], list[Any]]:
        """A dict and the hooks that fill it; nothing is attached (see `run_with_cache`)."""
        cache = {} if cache is None else cache
        positions = Slice.unwrap(pos_slice)
        # A user's hook may write in place to a tensor that a cached one shares memory with.
        copy = any(is_hooked(point) for point in self.hook_points())

        def store(value: Tensor, hook: HookPoint, suffix: str = "") -> None:
            name = str(hook.name)
            kept = value.detach().to(device)
            if copy and kept.data_ptr() == value.data_ptr():
                kept = kept.clone()
            if remove_batch_dim and kept.shape[0] != 1:
                raise InputError(
                    f"remove_batch_dim needs one row, {name} has {kept.shape[0]}; leave it out."
                )
            kept = kept[0] if remove_batch_dim else kept
            per_head = value.ndim == 4 and not name.endswith(("scores", "pattern", "alibi"))
            cache[name + suffix] = positions.apply(kept, dim=-3 if per_head else -2)

        names = [name for name in self.hook_dict if self._picked(name, names_filter)]
        if isinstance(names_filter, str):
            names_filter = [names_filter]
        if names_filter is not None and not callable(names_filter):
            wanted = {self.resolve_hook_name(name) for name in names_filter}
            names = [name for name in self.hook_dict if name in wanted]

        def store_gradient(value: Tensor, hook: HookPoint) -> None:
            store(value, hook, "_grad")

        fwd = [(name, store) for name in names]
        return cache, fwd, [(name, store_gradient) for name in names] if incl_bwd else []

    def _picked(self, name: str, names_filter: Any) -> bool:
        if callable(names_filter):
            return bool(names_filter(name))
        gate = GATES.get(name.rsplit(".", 1)[-1])
        return gate is None or bool(getattr(self.cfg, gate))

    def set_use_attn_result(self, use: bool) -> None:
        """Whether a run caches each head's own output (`attn.hook_result`)."""
        self.cfg.use_attn_result = use

    def set_use_hook_mlp_in(self, use: bool) -> None:
        """Whether a run caches the MLP's input before its LayerNorm (`hook_mlp_in`)."""
        self.cfg.use_hook_mlp_in = use

    def set_use_attn_in(self, use: bool) -> None:
        """Whether a run caches each head's input (`attn.hook_attn_in`)."""
        self._require_one_fork(use, self.cfg.use_split_qkv_input)
        self.cfg.use_attn_in = use

    def set_use_split_qkv_input(self, use: bool) -> None:
        """Whether a run caches the inputs of each head's q, k and v (`attn.hook_q_input`, ...)."""
        self._require_one_fork(use, self.cfg.use_attn_in)
        self.cfg.use_split_qkv_input = use

    @staticmethod
    def _require_one_fork(use: bool, other: bool) -> None:
        if use and other:
            raise InputError(
                "use_attn_in and use_split_qkv_input exclude each other; switch one off."
            )
