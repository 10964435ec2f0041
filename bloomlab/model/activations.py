"""What a run leaves behind: hooks that cache every activation, and TransformerLens' cache."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from bloomlab.errors import InputError, UnknownNameError, UnsupportedError
from bloomlab.model.hooks import (
    HookedRootModule,
    HookPoint,
    Slice,
    TLActivationCache,
    get_act_name,
)

Picker = str | Callable[[str], bool]
NamesFilter = Picker | Iterable[Picker] | None

# Points that would multiply the memory of a run: cached only when named or switched on in `cfg`.
GATES = {
    "hook_attn_in": "use_attn_in",
    "hook_mlp_in": "use_hook_mlp_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_result": "use_attn_result",
}


class ActivationCache(TLActivationCache):
    """TransformerLens' cache; its residual decompositions refuse a stream that is no sum."""

    model: Any  # a LensProtocol

    def __getitem__(self, key: Any) -> Tensor:
        """An activation by name, alias or shorthand: `cache["pattern", 3]`.

        Raises:
            UnknownNameError: no such hook point, or one that was not cached.
        """
        if isinstance(key, str) and key in self.cache_dict:
            return self.cache_dict[key]
        parts = list(key) if isinstance(key, tuple) else [key]
        if len(parts) > 1 and isinstance(parts[1], int) and parts[1] < 0:
            parts[1] += self.model.cfg.n_layers
        if len(parts) == 2 and parts[0] == "alibi":
            parts.append("attn")
        name, grad, _ = get_act_name(*parts).partition("_grad")
        found = self.model.resolve_hook_name(name) + grad
        if found not in self.cache_dict:
            raise UnknownNameError(
                "cached activation", found, self.cache_dict, where="Was it in names_filter?"
            )
        return self.cache_dict[found]

    def logit_attrs(self, *args: Any, **kwargs: Any) -> Any:
        """What each part of the stream adds to the tokens' logits, in logits.

        Unlike TransformerLens' on unfolded weights, with the gain of the final LayerNorm: the
        parts of a whole stream sum to the logit less the share of the LayerNorm's bias.
        """
        folded = TLActivationCache(self.cache_dict, _FoldedGain(self.model), self.has_batch_dim)
        return folded.logit_attrs(*args, **kwargs)

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "ActivationCache":
        """The cache of some rows."""
        part = super().apply_slice_to_batch_dim(batch_slice)
        return ActivationCache(part.cache_dict, self.model, has_batch_dim=part.has_batch_dim)

    def decompose_resid(self, *args: Any, **kwargs: Any) -> Any:
        """Embedding, attention and MLP outputs whose sum is the residual stream."""
        self._require_additive_stream()
        return super().decompose_resid(*args, **kwargs)

    def get_full_resid_decomposition(self, *args: Any, **kwargs: Any) -> Any:
        """Every head, neuron and bias term whose sum is the residual stream."""
        self._require_additive_stream()
        self._require_whole_layers("get_full_resid_decomposition")
        return super().get_full_resid_decomposition(*args, **kwargs)

    def stack_head_results(self, *args: Any, **kwargs: Any) -> Any:
        """What every head writes to the stream, stacked; needs as many heads in every layer."""
        self._require_whole_layers("stack_head_results")
        return super().stack_head_results(*args, **kwargs)

    def _require_whole_layers(self, method: str) -> None:
        if self.model.config.kept_heads is not None:
            raise UnsupportedError(
                f"{method}: heads of this model were pruned, so layers hold different numbers of "
                "them. Take cache['z', layer] or cache['result', layer]; entry i of the head axis "
                "is head model.blocks[layer].attn.heads[i]."
            )

    def _require_additive_stream(self) -> None:
        if self.model.config.apply_residual_connection_post_layernorm:
            raise UnsupportedError(
                "this BLOOM has apply_residual_connection_post_layernorm=True: its skip connection "
                "carries the LayerNorm's output, so the residual stream is not a sum of component "
                "outputs. Use accumulated_resid, or hook_resid_pre/mid/post."
            )


class _FoldedGain:
    """A model whose unembedding directions carry the final LayerNorm's gain."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def tokens_to_residual_directions(self, tokens: Any) -> Tensor:
        return self._model.tokens_to_residual_directions(tokens) * self._model.ln_final.w


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class Store:
    """A hook that keeps what it sees, detached."""

    cache: dict[str, Tensor]
    positions: Slice
    device: Any
    drop_batch: bool
    suffix: str = ""
    only_reads: ClassVar[bool] = True

    def __call__(self, value: Tensor, hook: HookPoint) -> None:
        """Put `value` under the hook point's name."""
        name = str(hook.name)
        kept = value.detach().to(self.device)
        if hook.may_be_edited() and kept.data_ptr() == value.data_ptr():
            kept = kept.clone()  # the next hook may write to it
        if self.drop_batch and len(kept) != 1:
            raise InputError(
                f"remove_batch_dim needs one row, {name} has {len(kept)}; leave it out."
            )
        per_head = value.ndim == 4 and not name.endswith(("scores", "pattern", "alibi"))
        kept = kept[0] if self.drop_batch else kept
        self.cache[name + self.suffix] = self.positions.apply(kept, dim=-3 if per_head else -2)


class Caching(HookedRootModule):
    """A hooked module that hands back its activations."""

    cfg: Any

    def run_with_cache(
        self,
        *inputs: Any,
        names_filter: NamesFilter = None,
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
                (`return_type="loss"`). The parameters' `grad` grows too.
            reset_hooks_end: remove all hooks of this call at the end.
            clear_contexts: also empty the hook points' `ctx`.
            pos_slice: keep these positions only.
            return_cache_object: False gives a plain dict.
            **forward_arguments: as for a forward.

        Raises:
            UnknownNameError: a name in `names_filter` that no hook point has.
            InputError: `incl_bwd` without a loss, `remove_batch_dim` with several rows.
        """
        cache, fwd, bwd = self.get_caching_hooks(
            names_filter, incl_bwd, device, remove_batch_dim, pos_slice=pos_slice
        )
        with self.hooks(fwd, bwd, reset_hooks_end, clear_contexts):
            out = self(*inputs, **{"return_type": "logits", **forward_arguments})
            if incl_bwd:
                if not (isinstance(out, Tensor) and out.numel() == 1 and out.requires_grad):
                    raise InputError(
                        "incl_bwd=True needs a scalar with a gradient: pass return_type='loss', "
                        "outside torch.no_grad()."
                    )
                out.backward()
        wrapped = ActivationCache(cache, self, has_batch_dim=not remove_batch_dim)
        return out, wrapped if return_cache_object else cache

    def get_caching_hooks(
        self,
        names_filter: NamesFilter = None,
        incl_bwd: bool = False,
        device: Any = None,
        remove_batch_dim: bool = False,
        cache: dict[str, Tensor] | None = None,
        pos_slice: Any = None,
    ) -> tuple[dict[str, Tensor], list[Any], list[Any]]:
        """A dict and the hooks that fill it; nothing is attached (see `run_with_cache`)."""
        cache = {} if cache is None else cache
        if names_filter is None:
            gates = {name: GATES.get(name.rsplit(".", 1)[-1]) for name in self.hook_dict}
            names = [name for name, gate in gates.items() if not gate or getattr(self.cfg, gate)]
        else:
            if isinstance(names_filter, str) or callable(names_filter):
                names_filter = [names_filter]
            wanted = {name for one in names_filter for name in self.picked(one)}
            names = [name for name in self.hook_dict if name in wanted]
        options = {"device": device, "drop_batch": remove_batch_dim}
        store = Store(cache=cache, positions=Slice.unwrap(pos_slice), **options)
        store_grad = replace(store, suffix="_grad")
        fwd = [(name, store) for name in names]
        return cache, fwd, [(name, store_grad) for name in names] if incl_bwd else []

    def add_caching_hooks(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Attach the hooks of `get_caching_hooks` until `reset_hooks`; the dict they fill."""
        cache, *both = self.get_caching_hooks(*args, **kwargs)
        for direction, pairs in zip(("fwd", "bwd"), both, strict=True):
            for name, fn in pairs:
                self.add_hook(name, fn, direction)
        return cache

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
