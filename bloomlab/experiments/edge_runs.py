"""Runs in which some readers take what some writers wrote from another run.

A reader's input is the stream plus, for each of its patched edges, what the writer wrote in the
other run less what it writes in this one. A run starts at the layer of its first patched reader;
all before it is as in the unpatched run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bloomlab.analysis.attribution import norm_scale
from bloomlab.errors import UnknownNameError
from bloomlab.experiments.contrast import Contrast
from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.edits import Evaluations
from bloomlab.experiments.graph import EMBED, READS, Graph
from bloomlab.experiments.onward import Onward
from bloomlab.experiments.recorded import recorded
from bloomlab.experiments.resume import require_bare

NORMS = ("live", "frozen")
POINTS: tuple[str, ...] = ("hook_resid_pre", "hook_resid_post", "attn.hook_z", "hook_mlp_out")
AT_ONCE = 2**26  # numbers of what writers changed
SCALES = ("ln1.hook_scale", "ln2.hook_scale")


@dataclass(kw_only=True)
class EdgeRuns:
    """Runs of some examples with edges patched from a run of others.

    Args:
        model: a BLOOM with an unembedding, no hooks attached.
        base: what is run.
        source: what patches come from, [batch pos] like `base`.
        graph: of the model.
        columns: whose streams are asked for.
        norms: "live": LayerNorms normalise the patched input; "frozen": they divide by what they
            divide by in the unpatched run, so that a reader's input changes linearly.
        evaluations: counts.

    Attributes:
        stream: of the base at the asked columns, after the final norm.
        theirs: of the source.
        ours_seen: what the base's run left at `POINTS`, by point and layer.
        theirs_seen: what the source's run left.

    Raises:
        UnknownNameError: norms that are neither.
    """

    model: Any
    base: Dataset
    source: Dataset
    graph: Graph
    columns: Int[Tensor, " pos"]
    norms: str = "live"
    evaluations: Evaluations = field(default_factory=Evaluations)

    def __post_init__(self) -> None:
        if self.norms not in NORMS:
            raise UnknownNameError("norms", self.norms, NORMS)
        require_bare(self.model)
        self.columns = self.columns.to(self.base.tokens.device)
        points = [*POINTS, *(SCALES if self.norms == "frozen" else ())]
        base, last = recorded(self.model, self.base, points)
        source, other = recorded(self.model, self.source, POINTS)
        self.ours_seen = dict(zip(points, base, strict=True))
        self.theirs_seen = dict(zip(POINTS, source, strict=True))
        self.stream, self.theirs = last[:, self.columns], other[:, self.columns]
        self.evaluations.layers += 2 * len(self.base) * self.model.config.n_layer
        self._go = Onward(
            model=self.model, data=self.base, columns=self.columns, evaluations=self.evaluations
        )

    @torch.no_grad()
    def run(
        self, cells: Sequence[Bool[Tensor, "receiver sender"]]
    ) -> Float[Tensor, "row pos d_model"]:
        """Output of the final norm at the asked columns: all examples of each set of edges."""
        patched = torch.stack(list(cells))
        read = patched.any(0).any(1)
        if not bool(read.any()):
            return self.stream.repeat(len(patched), 1, 1)
        n_layer, start = self.model.config.n_layer, int(self.graph.receiver_layers[read].min())
        one = _Patched(self, patched, start)
        if start == n_layer:
            resid = self.ours_seen["hook_resid_post"][n_layer - 1].repeat(len(patched), 1, 1)
        else:
            resid = self.ours_seen["hook_resid_pre"][start].repeat(len(patched), 1, 1)
        resid = self._go.from_pre(resid, start, hooks=one.hooks, last=not one.in_last_layer)
        change = one.change([len(self.graph.receivers) - 1])
        if change is not None:
            resid = resid + change[:, self.columns, 0]
        return self._normed(resid, len(patched))

    @torch.no_grad()
    def written(self, run: Mapping[str, dict[int, Tensor]], sender: int) -> Tensor:
        """What a writer wrote in a run, [batch pos d_model]."""
        name, layer = self.graph.senders[sender], int(self.graph.sender_layers[sender])
        if name == EMBED:
            return run["hook_resid_pre"][0]
        if name.startswith("MLP"):
            return run["hook_mlp_out"][layer]
        at = self.graph.place(sender)
        return run["attn.hook_z"][layer][:, :, at] @ self.model.blocks[layer].attn.W_O[at]

    def difference(self, sender: int) -> Float[Tensor, "batch pos d_model"]:
        """What a writer wrote in the source's run less what it wrote in the base's."""
        return self.written(self.theirs_seen, sender) - self.written(self.ours_seen, sender)

    def _normed(self, resid: Tensor, n_run: int) -> Tensor:
        norm = self.model.ln_final
        if self.norms == "live":
            return norm(resid)
        final = self.ours_seen["hook_resid_post"][self.model.config.n_layer - 1][:, self.columns]
        scale = norm_scale(final, norm.eps)[..., None].repeat(n_run, 1, 1)
        with self.model.hooks(fwd_hooks=[("ln_final.hook_scale", _put(scale))]):
            return norm(resid)


def rows_of_edges(pair: Contrast, graph: Graph) -> int:
    """Rows in a forward when all writers' changes are kept, at most `pair.at_once`."""
    row = pair.n_pos * len(graph.senders) * pair.model.config.hidden_size
    return max(1, min(pair.at_once, AT_ONCE // row))


class _Patched:
    """The hooks of one forward, and what its writers have changed so far."""

    def __init__(
        self, runs: EdgeRuns, patched: Bool[Tensor, "run receiver sender"], start: int
    ) -> None:
        self.runs, self.patched, graph = runs, patched, runs.graph
        self.read = patched.any(0).any(1)
        self.used = patched.any(0).any(0).nonzero()[:, 0].tolist()
        self.changes: dict[int, Tensor] = {}  # by writer: theirs less ours, [row pos d_model]
        for sender in self.used:
            if int(graph.sender_layers[sender]) < start:
                self.changes[sender] = runs.difference(sender).repeat(len(patched), 1, 1)
        n_layer = runs.model.config.n_layer
        self.hooks = [pair for layer in range(start, n_layer) for pair in self._of_layer(layer)]
        last = f"blocks.{n_layer - 1}."
        self.in_last_layer = any(name.startswith(last) for name, _ in self.hooks)

    def change(self, receivers: list[int]) -> Float[Tensor, "row pos receiver d_model"] | None:
        """What is added to some readers' inputs; None: nothing to any."""
        if not bool(self.read[receivers].any()):
            return None
        senders = [s for s in self.used if bool(self.patched[:, receivers, s].any())]
        place = self.changes[senders[0]].device
        which = self.patched[:, receivers][:, :, senders].to(place, self.changes[senders[0]].dtype)
        found = torch.stack([self.changes[s] for s in senders], 2)  # row pos sender d_model
        found = rearrange(found, "(run x) pos s d -> run (x pos) s d", run=len(which))
        found = torch.einsum("nrs,nxsd->nxrd", which, found)
        return rearrange(found, "run (x pos) r d -> (run x) pos r d", x=len(self.runs.base))

    def _of_layer(self, layer: int) -> list[tuple[str, Any]]:
        runs, graph = self.runs, self.runs.graph
        name, found = f"blocks.{layer}", list[tuple[str, Any]]()
        here = (graph.receiver_layers == layer).nonzero()[:, 0].tolist()
        *heads, mlp = here
        n_head = len(graph.heads[layer])
        for part, read in enumerate(READS):
            some = heads[part * n_head : (part + 1) * n_head]
            if bool(self.read[some].any()):
                found.append((f"{name}.attn.hook_{read}_input", self._adding(some)))
        if bool(self.read[mlp]):
            found.append((f"{name}.hook_mlp_in", self._adding([mlp])))
        written = [s for s in self.used if int(graph.sender_layers[s]) == layer]
        if some := [s for s in written if graph.senders[s].startswith("L")]:
            found.append((f"{name}.attn.hook_z", self._noting_heads(layer, some)))
        if some := [s for s in written if graph.senders[s].startswith("MLP")]:
            found.append((f"{name}.hook_mlp_out", self._noting(some[0])))
        if runs.norms == "frozen":
            for point in SCALES:
                scale = runs.ours_seen[point][layer].repeat(len(self.patched), 1, 1)
                found.append((f"{name}.{point}", _put(scale)))
        return found

    def _adding(self, receivers: list[int]) -> Callable[..., Tensor]:
        def add(value: Tensor, hook: Any) -> Tensor:
            change = self.change(receivers)
            assert change is not None
            return value + (change if value.ndim == 4 else change[:, :, 0])

        return add

    def _noting_heads(self, layer: int, senders: list[int]) -> Callable[..., None]:
        attn = self.runs.model.blocks[layer].attn

        def note(value: Tensor, hook: Any) -> None:
            for sender in senders:
                at = self.runs.graph.place(sender)
                self._note(sender, value[:, :, at] @ attn.W_O[at])

        return _reading(note)

    def _noting(self, sender: int) -> Callable[..., None]:
        def note(value: Tensor, hook: Any) -> None:
            self._note(sender, value)

        return _reading(note)

    def _note(self, sender: int, ours: Tensor) -> None:
        theirs = self.runs.written(self.runs.theirs_seen, sender)
        self.changes[sender] = theirs.repeat(len(self.patched), 1, 1) - ours


def _put(value: Tensor) -> Callable[..., Tensor]:
    def put(old: Tensor, hook: Any) -> Tensor:
        return value

    return put


def _reading(hook: Callable[..., None]) -> Callable[..., None]:
    hook.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
    return hook
