"""Automatic circuit discovery: edges are removed, from the logits back, unless the metric minds.

ACDC (Conmy et al., 2023, arXiv:2304.14997): an edge is removed by giving its reader what the writer
wrote in the corrupted text's run, and stays removed while later ones are tried.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.errors import InputError
from bloomlab.experiments.contrast import Contrast
from bloomlab.experiments.edge_runs import EdgeRuns, rows_of_edges
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.graph import Edge, Graph


@dataclass(frozen=True, kw_only=True, repr=False)
class FoundCircuit(Framed):
    """What is left of a model's edges.

    Attributes:
        edges: those that were kept, in the order of `Graph.edges`.
        tried: the edges whose removal was measured, in the order of trying.
        changes: of the metric's mean when each was removed, on top of those before it.
        value: the metric's mean with the circuit alone.
        clean: the metric's mean of the whole model.
        threshold: smallest change for which an edge is kept.
    """

    edges: list[Edge]
    tried: list[Edge]
    changes: list[float]
    value: float
    clean: float
    threshold: float

    @property
    def frame(self) -> pd.DataFrame:
        """One row an edge that was tried: sender, receiver, change, kept."""
        senders, receivers = zip(*self.tried, strict=True)
        kept = [abs(change) >= self.threshold for change in self.changes]
        columns = {"sender": senders, "receiver": receivers}
        return pd.DataFrame({**columns, "change": self.changes, "kept": kept})


@torch.no_grad()
def find_circuit(
    model: Any,
    clean: Any,
    corrupted: Any,
    threshold: int | float,
    metric: Any = "kl",
    *,
    answers: Any = None,
    positions: Any = -1,
    norms: str = "live",
    rows: int | None = None,
    progress: bool = True,
) -> FoundCircuit:
    """The circuit that remains when every edge that changes the metric by less is removed.

    Readers are visited from the logits back, their writers from the latest to the first. Edges into
    a component that nothing reads any more are removed untried: they change nothing.

    Args:
        model: a BLOOM with an unembedding; no hooks attached.
        clean: texts, ids [batch pos] or a dict with `attention_mask`.
        corrupted: as many texts, token by token as long.
        threshold: of the change of the metric's mean, up or down, in the metric's unit (Conmy et
            al. keep an edge only if "kl" rises).
        metric: as in `patch_activations`.
        answers: as in `patch_activations`.
        positions: columns whose logits the metric sees.
        norms: as in `patch_paths`.
        rows: examples in a forward; None: by free memory.
        progress: show a bar while it takes long.

    Raises:
        UnknownNameError: no such metric or norms.
        InputError: a threshold below 0, and as `patch_paths`.
        ShapeError: another number of texts, or answers that do not fit.
        UnsupportedError: heads were pruned, or a stream that is no sum
            (apply_residual_connection_post_layernorm).
    """
    if not threshold >= 0:
        raise InputError(f"threshold is {threshold!r}, expected 0 or more.")
    pair = Contrast.of(
        model,
        clean,
        corrupted,
        metric,
        answers=answers,
        positions=positions,
        direction="noise",
        rows=rows,
    )
    graph, columns = Graph.of(model), pair.metric.columns(pair.n_pos)
    parts = []
    for examples, base, source in pair.parts(rows_of_edges(pair, graph)):
        runs = EdgeRuns(
            model=model, base=base, source=source, graph=graph, columns=columns, norms=norms
        )
        parts.append((runs, pair.judge(examples, pair.ends(runs)[0])))

    def mean(patched: Bool[Tensor, "receiver sender"]) -> float:
        values = [judge(runs.run([patched]), 1)[0] for runs, judge in parts]
        return float(torch.cat(values).mean())

    removed = torch.zeros_like(graph.exists)
    tried, changes = list[Edge](), list[float]()
    whole = value = mean(removed)
    with tqdm(total=int(graph.exists.sum()), unit="edge", delay=2, disable=not progress) as bar:
        for reader in reversed(range(len(graph.receivers))):
            senders = graph.exists[reader].nonzero()[:, 0].tolist()
            bar.update(len(senders))
            if not _is_read(graph, reader, removed):
                removed[reader] = graph.exists[reader]
                continue
            for sender in reversed(senders):
                removed[reader, sender] = True
                new = mean(removed)
                tried.append(Edge(graph.senders[sender], graph.receivers[reader]))
                changes.append(new - value)
                removed[reader, sender] = abs(new - value) < threshold
                value = new if removed[reader, sender] else value
    return FoundCircuit(
        edges=graph.named(graph.exists & ~removed),
        tried=tried,
        changes=changes,
        value=value,
        clean=whole,
        threshold=float(threshold),
    )


def _is_read(graph: Graph, reader: int, removed: Bool[Tensor, "receiver sender"]) -> bool:
    """Whether anything still reads what a reader's component writes; the logits are the end."""
    component = graph.receivers[reader].partition(".")[0]
    if component not in graph.senders:
        return True
    sender = graph.senders.index(component)
    return bool((graph.exists & ~removed)[:, sender].any())
