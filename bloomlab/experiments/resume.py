"""Runs that differ from a clean one in a few heads, resumed where they begin to differ.

The cone rule: what layer l holds at column t is the clean run's unless an edit lies upstream, in an
earlier layer (or this one) and at an earlier column (or this one). So a run resumes between the
attention and the MLP of the first edited layer, whose attention is not computed again (its output
is a sum over heads); columns before the first edited one are read from the clean run's cache; and
the last layer answers at the asked columns only.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.errors import InputError, UnsupportedError
from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.edits import Edit, Edits, Evaluations
from bloomlab.experiments.onward import Onward
from bloomlab.experiments.recorded import recorded
from bloomlab.model.cache import KVCache
from bloomlab.model.hooks import is_hooked


@dataclass(kw_only=True)
class CleanRun:
    """A run of some examples, and all that others need to resume from it.

    Args:
        model: a BLOOM with an unembedding, no hooks attached.
        data: the examples.
        columns: whose logits will be asked for.
        since: first column that any edit touches.
        head_mask: [layer head]; heads scaled in this run and in all that resume.

    Raises:
        InputError: hooks are attached, or the model is in training mode.
    """

    model: Any
    data: Dataset
    columns: Int[Tensor, " pos"]
    since: int = 0
    head_mask: Float[Tensor, "layer head"] | None = None
    evaluations: Evaluations = field(default_factory=Evaluations)

    def __post_init__(self) -> None:
        require_bare(self.model)
        self.n_layer = self.model.config.n_layer
        self.place = self.data.tokens.device
        self.columns = self.columns.to(self.place)
        self._go = Onward(
            model=self.model,
            data=self.data,
            columns=self.columns,
            head_mask=self.head_mask,
            past=KVCache() if self.since else None,
            evaluations=self.evaluations,
        )
        (self._mid, self._z), last = recorded(
            self.model,
            self.data,
            ["hook_resid_mid", "attn.hook_z"],
            head_mask=self.head_mask,
            past=self._go.past,
        )
        self.evaluations.layers += len(self.data) * self.n_layer
        self.stream: Float[Tensor, "batch pos d_model"] = last[:, self.columns]

    def z(self, layer: int) -> Float[Tensor, "batch pos head d_head"]:
        """What the heads of a layer read, under the run's head mask."""
        return self._z[layer]

    def begin(self, run: Edits) -> Float[Tensor, "batch pos d_model"] | None:
        """The stream between attention and MLP of the first edited layer, from `since` on.

        None where nothing changes, to the last bit: the edit writes what was written, or to nobody.
        """
        first = min(run)
        write = self._write(run[first], first)
        if len(run) == 1 and not bool(write.any()):
            return None
        mid = self._mid[first][:, self.since :]
        return mid.to(write.dtype).add(write).to(mid.dtype)

    def finish(
        self, runs: list[Edits], begun: list[Float[Tensor, "batch query d_model"]]
    ) -> Float[Tensor, "row pos d_model"]:
        """Output of the final norm at the asked columns: all examples of the first run, and so on.

        All runs begin to differ in the same layer; `begun` is what `begin` gave for each.
        """
        late = self.columns >= self.since
        if bool(late.all()):
            return self._finished(runs, torch.cat(begun))
        stream = self.stream.repeat(len(runs), 1, 1)
        if bool(late.any()):
            stream[:, late] = self._finished(runs, torch.cat(begun))
        return stream

    def _finished(self, runs: list[Edits], mid: Tensor) -> Tensor:
        first, asked = min(runs[0]), self.columns[self.columns >= self.since] - self.since
        block = self.model.blocks[first]
        few = len(self.columns) < mid.shape[1] and not self.since
        if first == self.n_layer - 1 and few:
            mid = mid[:, self.columns]
        resid = block.from_mid(mid, rounded=self._go.rounded)
        self.evaluations.mlps += len(mid)
        if first < self.n_layer - 1:
            resid = self._onward(resid, runs, first + 1)
        elif not few:
            resid = resid[:, asked]
        return self.model.ln_final(resid)

    def _write(self, edit: Edit, layer: int) -> Tensor:
        """What an edit adds to the stream from `since` on."""
        attn = self.model.blocks[layer].attn
        heads, columns = list(edit.heads), self._columns_of(edit)
        before = self._z[layer][:, columns][:, :, heads]
        # the change is small beside the stream; in half precision it is summed in float32
        wide = torch.promote_types(before.dtype, torch.float32)
        new = edit.at(columns, self.data.tokens.shape[1])
        change = (new.to(wide) if isinstance(new, Tensor) else new) - before.to(wide)
        write = einsum(change, attn.W_O[heads].to(wide), "b t h d, h d m -> b t m")
        if edit.columns is None:
            return write
        shape = (len(write), self.data.tokens.shape[1] - self.since, write.shape[-1])
        return write.new_zeros(shape).index_copy(1, columns - self.since, write)

    def _columns_of(self, edit: Edit) -> Tensor:
        n_pos = self.data.tokens.shape[1]
        return torch.tensor(edit.columns or range(self.since, n_pos), device=self.place)

    def _onward(self, resid: Tensor, runs: list[Edits], layer: int) -> Tensor:
        """The stream after the last block at the asked columns, from the stream before `layer`."""
        later = {edited for run in runs for edited in run if edited >= layer}
        masks, hooks = self._later_edits(runs, later)
        return self._go.from_pre(
            resid,
            layer,
            since=self.since,
            hooks=hooks,
            masks=masks,
            last=self.n_layer - 1 not in later,
        )

    def _later_edits(self, runs: list[Edits], layers: set[int]) -> tuple[Tensor | None, list[Any]]:
        """Head mask [row layer head] and hooks that make the edits of layers yet to come."""
        n, config = len(self.data), self.model.config
        if not layers:
            return self.head_mask, []
        dtype = self.model.dtype if self.head_mask is None else self.head_mask.dtype
        shape = (len(runs), config.n_layer, config.n_head)
        whole = torch.ones(shape, dtype=dtype, device=self.place)
        mask = whole if self.head_mask is None else whole * self.head_mask.to(self.place)
        hooks = []
        for layer in layers:
            adds = []
            for i, run in enumerate(runs):
                edit = run.get(layer)
                silent = edit is not None and edit.values is None and edit.columns is None
                if edit is not None and silent:
                    mask[i, layer, list(edit.heads)] = 0
                adds.append(None if silent else edit)
            if any(adds):
                hooks.append((f"blocks.{layer}.attn.hook_z", self._writer(adds)))
        return mask.repeat_interleave(n, 0), hooks

    def _writer(self, edits: list[Edit | None]) -> Callable[..., Tensor]:
        """A hook at z that puts each run's values in place."""

        def write(z: Tensor, hook: Any) -> Tensor:
            parts = rearrange(z, "(run b) t h d -> run b t h d", b=len(self.data))
            for i, edit in enumerate(edits):
                if edit is not None:
                    columns = self._columns_of(edit)
                    new = edit.at(columns, self.data.tokens.shape[1])
                    where = columns[:, None] - self.since, torch.tensor(edit.heads)
                    parts[(i, slice(None), *where)] = new.to(z) if isinstance(new, Tensor) else new
            return z

        return write


def require_bare(model: Any) -> None:
    """Raise unless the model computes what its weights say: no hooks, no dropout.

    Raises:
        InputError: which hooks are attached, or that the model is in training mode.
        UnsupportedError: heads were pruned.
    """
    points = [name for name, point in model.hook_dict.items() if is_hooked(point)]
    if points:
        raise InputError(
            f"hooks are attached at {', '.join(points[:3])}{' ...' if points[3:] else ''}: a sweep "
            "resumes from a run without. Leave the `with model.hooks(...)`, or model.reset_hooks()."
        )
    if model.config.kept_heads is not None:
        raise UnsupportedError(
            "heads of this model were pruned; a sweep needs all of them in every layer. Sweep "
            "bloomlab.model.inflate.whole(model), which computes the same: pruned heads are zeros."
        )
    if model.training and (model.config.hidden_dropout or model.config.attention_dropout):
        raise InputError(
            "the model is in training mode, where dropout changes every run: call model.eval()."
        )
