"""Path patching: how much of an effect goes from one component straight to another.

Of a run only one edge is changed: a reader's input has what a writer wrote in the other text's run
in the place of what it wrote in this one; whatever follows from it is computed (Wang et al., 2022,
arXiv:2211.00593; Goldowsky-Dill et al., 2023, arXiv:2304.05969). A head reads thrice: for its
queries, its keys and its values.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd
import torch

from bloomlab.experiments.contrast import Contrast, Effects
from bloomlab.experiments.edge_runs import EdgeRuns
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.graph import Edge, Graph, strongest


@dataclass(frozen=True, kw_only=True, repr=False)
class PathPatching(Framed, Effects):
    """The metric with each edge patched alone, for every example.

    Attributes:
        edges: one run each.
        norms: whether LayerNorms were "live" or "frozen".
    """

    edges: list[Edge]
    norms: str

    @property
    def frame(self) -> pd.DataFrame:
        """One row an edge: sender, receiver, effect, stderr, share, share_stderr.

        Standard errors are over examples, that of the share by the delta method; NaN for one.
        """
        senders, receivers = zip(*self.edges, strict=True)
        return self.framed({"sender": senders, "receiver": receivers})

    @property
    def table(self) -> pd.DataFrame:
        """`share` with a row a sender and a column a receiver; NaN where there is no edge."""
        frame = self.frame
        order = {name: list(dict.fromkeys(frame[name])) for name in ("sender", "receiver")}
        wide = frame.pivot_table("share", "sender", "receiver", dropna=False)
        return wide.reindex(index=order["sender"], columns=order["receiver"])

    def circuit(self, n_edge: int) -> list[Edge]:
        """The edges with the largest |effect|, without those that lead from or to nowhere.

        Raises:
            InputError: a number of edges that there is not.
        """
        return strongest(self.edges, self.effects.mean(-1), n_edge)


@torch.no_grad()
def patch_paths(
    model: Any,
    clean: Any,
    corrupted: Any,
    metric: Any = "logit_difference",
    *,
    senders: Any = None,
    receivers: Any = None,
    answers: Any = None,
    positions: Any = -1,
    direction: str = "noise",
    norms: str = "live",
    rows: int | None = None,
    progress: bool = True,
) -> PathPatching:
    """The metric with each edge between some writers and readers taken from the other text's run.

    Everything else is kept as it is, but what the reader writes from then on is computed, and all
    that follows. Patching all edges of a writer at once (`evaluate_circuits`) is patching what it
    writes.

    Args:
        model: a BLOOM with an unembedding; no hooks attached.
        clean: texts, ids [batch pos] or a dict with `attention_mask`.
        corrupted: as many texts, token by token as long.
        metric: as in `patch_activations`.
        senders: writers: "embed", heads ("L0H1"), MLPs ("MLP0"), or one of these; None: all.
        receivers: readers: "L1H7.q", "L1H7.k", "L1H7.v" or all three as "L1H7", "MLP1", "logits";
            None: all.
        answers: token ids [batch], or [batch 2] of right and wrong ones for "logit_difference".
        positions: columns whose logits the metric sees: None all, -1 the last, or several.
        direction: "noise" puts what was written in the corrupted text's run into runs of the clean
            text, "denoise" the reverse.
        norms: "live": the reader's LayerNorm normalises its new input; "frozen": all LayerNorms
            divide by what they divide by in the unpatched run.
        rows: rows in a forward; None: by free memory.
        progress: show a bar while it takes long.

    Returns:
        A `PathPatching`; its `frame` has a row an edge, its `table` the shares.

    Raises:
        UnknownNameError: no such writer, reader, direction, metric or norms.
        InputError: texts that are not as long as each other (names the example), no edge between
            the chosen, hooks attached.
        ShapeError: another number of texts, or answers that do not fit.
        UnsupportedError: heads were pruned, or a stream that is no sum
            (apply_residual_connection_post_layernorm).
    """
    pair = Contrast.of(
        model,
        clean,
        corrupted,
        metric,
        answers=answers,
        positions=positions,
        direction=direction,
        rows=rows,
    )
    graph = Graph.of(model)
    edges = graph.select(senders, receivers)

    def runs(examples: slice, **fields: Any) -> EdgeRuns:
        return EdgeRuns(model=model, graph=graph, norms=norms, **fields)

    def together(most: int) -> Iterable[list[int]]:
        """Edges from one writer to readers of one kind in one layer."""
        layer = dict(zip(graph.receivers, graph.receiver_layers.tolist(), strict=True))

        def kind(i: int) -> tuple[int, str, str]:
            sender, receiver = edges[i]
            return layer[receiver], sender, receiver.partition(".")[2]

        for _, some in groupby(sorted(range(len(edges)), key=kind), kind):
            alike = list(some)
            yield from (alike[i : i + most] for i in range(0, len(alike), most))

    masks = [graph.mask([edge]) for edge in edges]
    found = pair.measure(masks, runs, together, progress=progress)
    return PathPatching(edges=edges, norms=norms, **found)
