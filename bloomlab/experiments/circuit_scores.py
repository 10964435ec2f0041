"""How much of a model's behaviour a circuit explains: faithfulness and completeness.

All edges outside a circuit are patched from the corrupted texts' run (resample ablation; Wang et
al., 2022, arXiv:2211.00593; Marks et al., 2024, arXiv:2403.19647; Mueller et al., 2025,
arXiv:2504.13151, for the area over sizes).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from bloomlab.errors import InputError
from bloomlab.experiments.contrast import Contrast, Effects
from bloomlab.experiments.edge_runs import EdgeRuns, rows_of_edges
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.graph import Graph


@dataclass(frozen=True, kw_only=True, repr=False)
class CircuitScores(Framed):
    """What is left of the metric with a circuit alone, and without it.

    Attributes:
        names: of the circuits.
        sizes: their numbers of edges.
        n_edge: edges of the whole model.
        inside: runs in which all edges but the circuit's are patched.
        outside: runs in which the circuit's edges are patched.
    """

    names: list[Any]
    sizes: list[int]
    n_edge: int
    inside: Effects
    outside: Effects

    @property
    def frame(self) -> pd.DataFrame:
        """One row a circuit.

        Columns: circuit, edges; value (the metric with the circuit alone); faithfulness,
        (M(C) - M(none)) / (M(all) - M(none)), 1 for the whole model, and faithfulness_stderr;
        completeness, the same of all edges but the circuit's, 0 if it holds everything that
        matters, and completeness_stderr. Errors are over examples; NaN for one.
        """
        inside, outside = (one.framed({}) for one in (self.inside, self.outside))
        return pd.DataFrame(
            {
                "circuit": self.names,
                "edges": self.sizes,
                "value": self.inside.values.mean(-1).tolist(),
                "faithfulness": inside["share"],
                "faithfulness_stderr": inside["share_stderr"],
                "completeness": outside["share"],
                "completeness_stderr": outside["share_stderr"],
            }
        )

    @property
    def area(self) -> float:
        """Area under faithfulness over the share of edges, by trapezoids; 1 is the best.

        Of circuits of growing size; that of no edges (0) and that of all (1) are added.
        """
        order = np.argsort(self.sizes, kind="stable")
        sizes = np.array([0, *np.array(self.sizes)[order], self.n_edge]) / self.n_edge
        faithful = np.array([0.0, *self.frame["faithfulness"].to_numpy()[order], 1.0])
        return float(np.trapezoid(faithful, sizes))


@torch.no_grad()
def evaluate_circuits(
    model: Any,
    clean: Any,
    corrupted: Any,
    circuits: Any,
    metric: Any = "logit_difference",
    *,
    answers: Any = None,
    positions: Any = -1,
    norms: str = "live",
    rows: int | None = None,
    progress: bool = True,
) -> CircuitScores:
    """Faithfulness (1 is best) and completeness (0 is best) of circuits: sets of edges.

    Args:
        model: a BLOOM with an unembedding; no hooks attached.
        clean: texts, ids [batch pos] or a dict with `attention_mask`.
        corrupted: as many texts, token by token as long; what is outside a circuit sees them.
        circuits: by name the edges, pairs such as ("L0H1", "L1H7.k"); or the edges of one.
        metric: as in `patch_activations`.
        answers: as in `patch_activations`.
        positions: columns whose logits the metric sees.
        norms: as in `patch_paths`.
        rows: rows in a forward; None: by free memory.
        progress: show a bar while it takes long.

    Raises:
        UnknownNameError: no such writer, reader, metric or norms.
        InputError: no circuits, an edge that there is not, and as `patch_paths`.
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
        direction="noise",
        rows=rows,
    )
    graph = Graph.of(model)
    named = circuits if isinstance(circuits, Mapping) else {"circuit": circuits}
    if not named:
        raise InputError("there are no circuits. Give edges, or {name: edges, ...}.")
    masks = [graph.mask(edges) for edges in named.values()]
    masks = [*(graph.exists & ~mask for mask in masks), *masks, graph.exists]
    pair = replace(pair, at_once=rows_of_edges(pair, graph))

    def runs(examples: slice, **fields: Any) -> EdgeRuns:
        return EdgeRuns(model=model, graph=graph, norms=norms, **fields)

    def together(most: int) -> Iterable[list[int]]:
        every = list(range(len(masks)))
        yield from (every[i : i + most] for i in range(0, len(every), most))

    found = pair.measure(masks, runs, together, progress=progress)
    values = found.pop("values")
    # measured from where all edges are patched, what is kept or left is a share of the whole
    fields: dict[str, Any] = found | {"direction": "denoise", "corrupted": values[-1]}
    return CircuitScores(
        names=list(named),
        sizes=[int(mask.sum()) for mask in masks[len(named) : -1]],
        n_edge=int(graph.exists.sum()),
        inside=Effects(values=values[: len(named)], **fields),
        outside=Effects(values=values[len(named) : -1], **fields),
    )
