"""A model as a graph: what writes to the residual stream, and what reads from it.

The stream is the sum of what was written, so that each reader's input is a sum over edges, one from
every earlier writer (Elhage et al., 2021; Wang et al., 2022, arXiv:2211.00593).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.residual_stream import require_sum

EMBED, LOGITS = "embed", "logits"
READS = ("q", "k", "v")


class Edge(NamedTuple):
    """What a writer adds to a reader's input.

    Attributes:
        sender: "embed", a head such as "L0H1", or an MLP such as "MLP0".
        receiver: a head's "L1H7.q", ".k" or ".v", an MLP, or "logits".
    """

    sender: str
    receiver: str

    def __str__(self) -> str:
        """Such as L0H1 -> L1H7.k."""
        return f"{self.sender} -> {self.receiver}"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """The writers and readers of a model, in the order of computation.

    Attributes:
        senders: names of writers.
        receivers: names of readers: of each layer all heads' q, then k, then v, then the MLP.
        sender_layers: -1 of the embedding.
        receiver_layers: the number of layers of the logits.
        heads: numbers of each layer's heads.
        exists: which writers come before a reader.
    """

    senders: tuple[str, ...]
    receivers: tuple[str, ...]
    sender_layers: Int[Tensor, " sender"]
    receiver_layers: Int[Tensor, " receiver"]
    heads: tuple[tuple[int, ...], ...]
    exists: Bool[Tensor, "receiver sender"]

    @classmethod
    def of(cls, model: Any) -> "Graph":
        """The graph of a BLOOM, whole or pruned; heads keep their numbers.

        Raises:
            UnsupportedError: a stream that is no sum (apply_residual_connection_post_layernorm).
        """
        require_sum(model, "the graph of writers and readers")
        senders, receivers = [(EMBED, -1, -1.0)], list[tuple[str, int, float]]()
        heads = [tuple(block.attn.heads) for block in model.blocks]
        for layer, some in enumerate(heads):
            # halves of a layer: its heads read at .0 and write at .25, its MLP reads at .5
            receivers += [
                (f"L{layer}H{h}.{read}", layer, float(layer)) for read in READS for h in some
            ]
            receivers += [(f"MLP{layer}", layer, layer + 0.5)]
            senders += [(f"L{layer}H{h}", layer, layer + 0.25) for h in some]
            senders += [(f"MLP{layer}", layer, layer + 0.75)]
        receivers += [(LOGITS, len(heads), float(len(heads)))]
        written = torch.tensor([time for *_, time in senders])
        read = torch.tensor([time for *_, time in receivers])
        return cls(
            senders=tuple(name for name, *_ in senders),
            receivers=tuple(name for name, *_ in receivers),
            sender_layers=torch.tensor([layer for _, layer, _ in senders]),
            receiver_layers=torch.tensor([layer for _, layer, _ in receivers]),
            heads=tuple(heads),
            exists=written < read[:, None],
        )

    @property
    def edges(self) -> list[Edge]:
        """Every edge, reader after reader."""
        return self.named(self.exists)

    def named(self, mask: Bool[Tensor, "receiver sender"]) -> list[Edge]:
        """The edges of a mask."""
        pairs = mask.nonzero().tolist()
        return [Edge(self.senders[s], self.receivers[r]) for r, s in pairs]

    def select(self, senders: Any = None, receivers: Any = None) -> list[Edge]:
        """The edges between some writers and readers.

        Args:
            senders: a name or several; None: all.
            receivers: a name or several, "L1H7" for a head's three readers; None: all.

        Raises:
            UnknownNameError: a name that the graph lacks.
            InputError: no edge between any of them.
        """
        mask = self.exists.clone()
        if senders is not None:
            wanted = {self._sender(name) for name in _several(senders)}
            mask[:, [i for i in range(len(self.senders)) if i not in wanted]] = False
        if receivers is not None:
            wanted = {i for name in _several(receivers) for i in self._receivers(name)}
            mask[[i for i in range(len(self.receivers)) if i not in wanted]] = False
        if not bool(mask.any()):
            raise InputError(f"no edge goes from {senders!r} to {receivers!r}: is it earlier?")
        return self.named(mask)

    def mask(self, edges: Iterable[Any]) -> Bool[Tensor, "receiver sender"]:
        """Where some edges are, pairs (sender, receiver).

        Raises:
            UnknownNameError: a name that the graph lacks.
            InputError: something else than pairs, or a writer that does not come before a reader.
        """
        found = torch.zeros_like(self.exists)
        for edge in edges:
            if isinstance(edge, str) or not isinstance(edge, Sequence) or len(edge) != 2:
                raise InputError(f"an edge is {edge!r:.60}, expected (sender, receiver).")
            sender, receivers = self._sender(edge[0]), self._receivers(edge[1])
            if not bool(self.exists[receivers, sender].all()):
                raise InputError(f"{edge[0]} does not come before {edge[1]}: there is no edge.")
            found[receivers, sender] = True
        return found

    def place(self, sender: int) -> int:
        """Where in its layer's tensors a writer that is a head stands."""
        layer = int(self.sender_layers[sender])
        return self.heads[layer].index(int(self.senders[sender].split("H")[1]))

    def _sender(self, name: Any) -> int:
        if name not in self.senders:
            raise UnknownNameError("sender", name, self.senders)
        return self.senders.index(name)

    def _receivers(self, name: Any) -> list[int]:
        names = [f"{name}.{read}" for read in READS] if f"{name}.q" in self.receivers else [name]
        if names[0] not in self.receivers:
            raise UnknownNameError("receiver", name, self.receivers)
        return [self.receivers.index(one) for one in names]


def strongest(edges: Sequence[Edge], scores: Float[Tensor, " edge"], n_edge: int) -> list[Edge]:
    """The edges with the largest |score| that are `connected`, in their order.

    Raises:
        InputError: a number of edges that there is not.
    """
    if isinstance(n_edge, bool) or not 0 <= n_edge <= len(edges):
        raise InputError(f"n_edge is {n_edge!r}, expected 0 to {len(edges)}.")
    order = scores.abs().argsort(descending=True, stable=True)
    return connected([edges[i] for i in order[:n_edge].sort().values.tolist()])


def connected(edges: Sequence[Edge]) -> list[Edge]:
    """The edges that lie on some way from the embedding to the logits, in their order."""
    kept = list(edges)
    while True:
        fed = {EMBED, *(edge.receiver.partition(".")[0] for edge in kept)}
        heard = {LOGITS, *(edge.sender for edge in kept)}
        left = [e for e in kept if e.sender in fed and e.receiver.partition(".")[0] in heard]
        if len(left) == len(kept):
            return kept
        kept = left


def _several(names: Any) -> list[Any]:
    return [names] if isinstance(names, str) else list(names)
