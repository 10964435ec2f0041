"""Trace: what one run left behind; any head's attention is rebuilt from it on demand."""

from collections.abc import Iterable
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bloomlab.errors import InputError, UnknownArgumentError, UnsupportedError
from bloomlab.model.config import as_dtype
from bloomlab.model.kept import places_of
from bloomlab.model.parts import KINDS, Part, cropped, gathered, moved
from bloomlab.model.rebuild import Quantity, Rebuilding, columns_named
from bloomlab.model.recording import Recording, one_of
from bloomlab.model.trace_file import read_parts, write_parts

Index = Any  # a number, maybe negative; checked by hand, so that errors speak plainly


class Trace:
    """What a forward or a whole generation left behind: `model.trace(...)` or `Recorder.trace`.

    Keeps q, k, v and the residual stream; patterns and scores are rebuilt for the head and the
    queries asked for, as eager attention computes them (before head mask and dropout, as
    `hook_pattern` holds them), in the run's own number format if the stored one can hold it, else
    in float32 at least. Where a hook may have edited a layer's bias, scores or pattern, those of
    the run are handed out.

    `layer` and `head` may be negative; `queries` are columns: None (all), a number, a slice or
    several numbers. Everything keeps its batch axis.
    """

    def __init__(self, parts: Iterable[Part], *, n_layer: int) -> None:
        self._parts, self.n_layer = list(parts), n_layer
        self._attention = Rebuilding(self._parts)
        if not self._parts:
            raise InputError("nothing is recorded yet: run a forward and `add` it first.")
        held = [name.split(".") for name in self._parts[0].values if "." in name]
        self.kept = tuple(kind for kind in KINDS if any(kind == name[0] for name in held))
        self.layers = tuple(sorted({int(i) for _, i in held if int(i) < n_layer}))

    def __len__(self) -> int:
        return len(self._attention)

    def __repr__(self) -> str:
        rows, columns = self.tokens.shape
        layers = f"{len(self.layers)} of {self.n_layer} layers"
        first = self._parts[0].values[f"{self.kept[0]}.{self.layers[0]}"]
        dtype = str(first.dtype).removeprefix("torch.")
        kept = f"{' '.join(self.kept)} in {dtype} on {first.device}"
        return f"Trace({rows} rows, {columns} tokens, {layers}, {kept}, {self.nbytes:,} bytes)"

    @cached_property
    def tokens(self) -> Int[Tensor, "batch pos"]:
        """Token ids."""
        return torch.cat([part.get("tokens") for part in self._parts], 1)

    @property
    def attention_mask(self) -> Bool[Tensor, "batch pos"]:
        """False for padding."""
        return self._attention.valid

    @property
    def positions(self) -> Int[Tensor, "batch pos"]:
        """Position of each token among the attended ones, as ALiBi counts; 0 for padding."""
        return self._attention.positions

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self._parts[0].values["tokens"].device

    @property
    def nbytes(self) -> int:
        """Bytes of memory kept alive; what forks, crops and views share counts once."""
        tensors = [t for part in self._parts for t in (*part.values.values(), *part.slopes)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
        return sum(storage.nbytes() for storage in storages.values())

    # -- what was kept -----------------------------------------------------------------------------

    def q(self, layer: Index) -> Float[Tensor, "batch pos head d_head"]:
        """Queries of a layer."""
        return self._kept("q", self._layer(layer))

    def k(self, layer: Index) -> Float[Tensor, "batch pos head d_head"]:
        """Keys of a layer."""
        return self._kept("k", self._layer(layer))

    def v(self, layer: Index) -> Float[Tensor, "batch pos head d_head"]:
        """Values of a layer."""
        return self._kept("v", self._layer(layer))

    def resid(self, layer: Index) -> Float[Tensor, "batch pos d_model"]:
        """Residual stream before a layer; before the final norm for `layer` = number of layers."""
        if layer == self.n_layer:
            return self._kept("resid", self._layer(-1) + 1)
        return self._kept("resid", self._layer(layer))

    # -- what is rebuilt ---------------------------------------------------------------------------

    def pattern(
        self, layer: Index, head: Index, queries: Any = None
    ) -> Float[Tensor, "batch query key"]:
        """Attention probabilities of a head; a query that sees no key spreads as in its forward."""
        return self._head(self._attention.pattern, layer, head, queries)

    def scores(
        self, layer: Index, head: Index, queries: Any = None
    ) -> Float[Tensor, "batch query key"]:
        """Biased and masked scores of a head, in logits; the lowest number if hidden.

        As `hook_attn_scores` holds them: q.k/sqrt(d_head) + ALiBi, in the form the run used.
        """
        return self._head(self._attention.scores, layer, head, queries, hidden=None)

    def content(
        self, layer: Index, head: Index, queries: Any = None
    ) -> Float[Tensor, "batch query key"]:
        """The part of the scores that depends on what tokens say: q.k/sqrt(d_head), in logits.

        Also where a query does not see the key.
        """
        return self._head(self._attention.content, layer, head, queries, everywhere=True)

    def alibi(
        self, layer: Index, head: Index, queries: Any = None
    ) -> Float[Tensor, "batch query key"]:
        """The part of the scores that depends on position, in logits; also at hidden keys.

        Slope x key position ("hf") or -slope x distance ("exact"), as the run had it; the two
        differ by a constant per query.
        """
        return self._head(self._attention.whole_alibi, layer, head, queries, everywhere=True)

    def value_weighted(
        self, layer: Index, head: Index, queries: Any = None
    ) -> Float[Tensor, "batch query key"]:
        """Attention probability x Euclidean norm of the key's value vector v.

        Kobayashi et al. (2020, arXiv:2004.10102) take the norm after the output matrix W_O, which
        a trace does not hold; here it is the norm before.
        """
        self._require("v")
        return self._head(self._attention.value_weighted, layer, head, queries)

    def thumbnails(self, size: int = 64) -> Float[Tensor, "batch layer head query key"]:
        """Patterns of all heads of the kept layers, max-pooled to `size` x `size` cells.

        The cells are those of torch's adaptive_max_pool2d; a shorter text is not enlarged. Made
        layer by layer and some queries at a time: no layer's patterns are held whole.
        """
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InputError(f"size is {size!r}, expected a number of pixels.")
        self._require("q", "k")
        if len({len(self._parts[0].slopes[layer]) for layer in self.layers}) > 1:
            raise UnsupportedError(
                "layers of this pruned model differ in heads: take `pattern(layer, head)` instead."
            )
        return torch.stack([self._attention.thumbnails(layer, size) for layer in self.layers], 1)

    # -- another trace -----------------------------------------------------------------------------

    def crop(self, length: int) -> "Trace":
        """The first `length` tokens, padding counted; a negative length drops from the end.

        No copy: the memory stays with whoever holds the longer trace.
        """
        return Trace(cropped(self._parts, length), n_layer=self.n_layer)

    def gather(self, rows: Any) -> "Trace":
        """The given rows [row], in the given order; a row may come several times. No copy."""
        return Trace(gathered(self._parts, rows), n_layer=self.n_layer)

    def to(self, device: Any = None, dtype: Any = None) -> "Trace":
        """The trace on another device, or with q, k, v and resid in another number format."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        return Trace(moved(self._parts, device, as_dtype(dtype)), n_layer=self.n_layer)

    def save(self, path: Any) -> None:
        """Write everything to one safetensors file; whole or not at all."""
        write_parts(Path(path), self._attention.merged(), n_layer=self.n_layer)

    @classmethod
    def load(cls, path: Any, device: Any = "cpu") -> "Trace":
        """A trace that `save` wrote.

        Raises:
            CheckpointError: no such file, truncated, not a trace, or parts of it missing.
        """
        parts, n_layer = read_parts(Path(path), device=device)
        return cls(parts, n_layer=n_layer)

    # -- looking up --------------------------------------------------------------------------------

    def _head(
        self,
        quantity: Quantity,
        layer: Index,
        head: Index,
        queries: Any,
        **where: Any,
    ) -> Float[Tensor, "batch query key"]:
        layer = self._layer(layer)
        self._require("q", "k")
        if (numbers := self._parts[0].heads) is not None:
            head = places_of([head], numbers[layer], layer=layer)[0]
        head = one_of(f"head of layer {layer}", head, len(self._parts[0].slopes[layer]))
        heads, columns = slice(head, head + 1), columns_named(queries, len(self))
        return self._attention.rebuilt(quantity, layer, heads, columns, **where)[:, 0]

    def _layer(self, layer: Index) -> int:
        layer = one_of("layer", layer, self.n_layer)
        if layer not in self.layers:
            kept = ", ".join(map(str, self.layers))
            raise InputError(
                f"layer {layer} was not kept, only {kept}. Trace with layers=[{layer}, ...], or "
                "layers=None for all."
            )
        return layer

    def _require(self, *kinds: str) -> None:
        for kind in kinds:
            if kind not in self.kept:
                raise InputError(
                    f"{kind} was not kept, only {', '.join(self.kept)}. Trace with "
                    f"keep={(*self.kept, kind)}, or keep=None for all."
                )

    def _kept(self, kind: str, layer: int) -> Tensor:
        self._require(kind)
        values = [part.get(f"{kind}.{layer}") for part in self._parts]
        return values[0] if len(values) == 1 else torch.cat(values, 1)


class Recorder(Recording):
    """Records forwards one after the other; see `Recording` for arguments and methods.

    ```
    recorder = Recorder(model)
    with model.hooks(fwd_hooks=[*interventions, *recorder.hooks()]):
        model(ids, past_key_values=past)
    recorder.add(ids)
    ```
    """

    @property
    def trace(self) -> Trace:
        """What is recorded so far: a snapshot, sharing tensors with later ones."""
        return Trace(self._parts, n_layer=len(self._model.blocks))


@torch.no_grad()
def record(
    model: Any,
    inputs: Any,
    *,
    attention_mask: Any = None,
    head_mask: Any = None,
    fwd_hooks: Any = (),
    keep: Any = None,
    layers: Any = None,
    dtype: Any = None,
    device: Any = None,
    **unknown: Any,
) -> Trace:
    """The trace of one forward; `model.trace(...)` comes here. No logits are computed.

    Args:
        model: any BLOOM of this package.
        inputs: tokens [batch pos], or text.
        attention_mask: [batch pos], 0 for padding.
        head_mask: as for a forward.
        fwd_hooks: (name, function) pairs in force during the run; the trace holds what they left.
        keep: what to keep of "q", "k", "v" and "resid"; None: all.
        layers: which layers to keep; None: all.
        dtype: number format to keep q, k, v and resid in; None: as they are.
        device: where to keep everything; None: where it is.
        **unknown: refused.

    Raises:
        UnknownArgumentError: an argument a trace does not take.
        InputError: inputs or options of the wrong kind.
    """
    for name in unknown:
        raise UnknownArgumentError("trace", name, list(signature(record).parameters)[1:-1])
    if isinstance(inputs, str | list | tuple):
        inputs, from_text = model.to_tokens_and_mask(inputs)
        attention_mask = from_text if attention_mask is None else attention_mask
    recorder = Recorder(model, keep=keep, layers=layers, dtype=dtype, device=device)
    with model.hooks(fwd_hooks), model.hooks(recorder.hooks()):
        model.backbone(inputs, attention_mask=attention_mask, head_mask=head_mask, use_cache=False)
    recorder.add(inputs, attention_mask)
    return recorder.trace
