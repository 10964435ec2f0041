"""The metric along the gate of a head: what first-order scores see of it, and what they do not.

A gradient at gate 1 (Michel et al., 2019, arXiv:1905.10650) tells how the metric begins to change
when a head is turned down. Where the rest of the network saturates, that says little about gate 0.
"""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from bloomlab.errors import InputError
from bloomlab.experiments.dataset import dataset
from bloomlab.experiments.head_importance import head_importance
from bloomlab.experiments.heads import head_sets
from bloomlab.experiments.metrics import Metric
from bloomlab.experiments.replacements import Zero
from bloomlab.experiments.sweep import Sweep

GATES = tuple(i / 10 for i in range(11))


def gate_curve(
    model: Any,
    tokens: Any,
    heads: Any,
    *,
    gates: Sequence[float | int] = GATES,
    metric: Any = "cross_entropy",
    positions: Any = None,
    answers: Any = None,
    progress: bool = True,
) -> pd.DataFrame:
    """The metric with one head's output scaled by a gate; 1 is the intact model, 0 ablation.

    One row for each head and gate: layer, head, gate, value (of the metric, mean over examples),
    tangent (where the straight line through gate 1 with the metric's derivative there would be).
    The tangent at 0 is what first-order scores predict.

    Args:
        model: a BLOOM with an unembedding; no hooks attached.
        tokens: texts, ids [batch pos] or a dict with `attention_mask`.
        heads: (layer, head) pairs, each scaled alone.
        gates: factors of the head's output.
        metric: a differentiable one, see `head_importance`.
        positions: columns whose logits the metric sees.
        answers: token ids, for metrics that use them.
        progress: show a bar while it takes long.

    Raises:
        InputError: heads that are not there, several in a set; no gates.
        NumericalError: a metric that is NaN or infinite; names the example.
    """
    data, sets = dataset(model, tokens), head_sets(model, heads)
    if any(len(one) > 1 for one in sets):
        raise InputError("gates are of single heads: give (layer, head) pairs, not sets of them.")
    if not len(gates):
        raise InputError("gates is empty: no factor to scale by.")
    options = {"positions": positions, "answers": answers}
    first_order = head_importance(
        model, data, "signed", metric=metric, progress=progress, **options
    )
    measured = Metric(metric, **options)

    def value(head: tuple[int, int], gate: float) -> float:
        mask = torch.ones(model.config.n_layer, model.config.n_head)
        mask[head] = gate
        sweep = Sweep(model, measured, head_mask=mask.to(model.device, model.dtype))
        return sweep.run(data, [], Zero(), progress=False)[1].mean().item()

    shares, rows = [float(gate) for gate in gates], []
    intact = value(sets[0][0], 1.0)
    runs = [(head, gate) for (head,) in sets for gate in shares]
    for head, gate in tqdm(runs, unit="run", delay=2, disable=not progress):
        fall = first_order.sign * first_order.matrix[head].item()
        rows.append(
            {
                "layer": head[0],
                "head": head[1],
                "gate": gate,
                "value": intact if gate == 1 else value(head, gate),
                "tangent": intact + (1 - gate) * fall,
            }
        )
    return pd.DataFrame(rows)
