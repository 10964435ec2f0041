"""What fitted probes read from other texts, such as another language's (or another model's)."""

from typing import Any

import pandas as pd
import torch

from bloomlab.analysis.probes import resampled_interval
from bloomlab.errors import InputError
from bloomlab.experiments.activations import collect
from bloomlab.experiments.probe_labels import label_examples
from bloomlab.experiments.probes import Probes


def transfer_probes(
    probes: Probes,
    model: Any,
    texts: Any,
    labels: Any,
    *,
    spans: Any = None,
    attention_mask: Any = None,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
    rows: int | None = None,
) -> pd.DataFrame:
    """How well probes that were fitted on some texts know the labels of others.

    Args:
        probes: as `probe` gives them.
        model: the one they were fitted on, or another with the same hooks and widths.
        texts: as in `probe`; for parallel texts not those that are translations of the train texts,
            `probes.split` has their numbers.
        labels: as in `probe`; a label that the probes do not know counts as an error.
        spans: as in `probe`.
        attention_mask: as in `probe`.
        level: of the bootstrap intervals over texts.
        draws: of the bootstrap.
        seed: of the bootstrap.
        rows: texts in a forward; None: by free memory.

    Returns:
        One row a probe: site, layer, head, accuracy, low, high; majority, the share of these texts'
        commonest label; known, the share of labels that the probes know.

    Raises:
        InputError: labels that do not match the texts (names the text), or of another unit than the
            probes' (token, span or text); a head that the model lacks.
        ShapeError: a model of another width.
    """
    given = label_examples(
        model, texts, labels, spans=spans, attention_mask=attention_mask, fitting=False
    )
    if given.unit != probes.unit:
        raise InputError(
            f"these labels are one a {given.unit}, but the probes were fitted on one a "
            f"{probes.unit}."
        )
    numbers = {name: i for i, name in enumerate(probes.classes)}
    known = torch.tensor([numbers.get(name, -1) for name in given.classes])
    true, text = known[given.labels], torch.unique(given.spans.text, return_inverse=True)[1]
    names = [point.name for point in probes.points]
    seen = collect(model, given.data, names, spans=given.spans, pool=probes.pool, rows=rows)
    found: list[dict[str, Any]] = []
    common = float(torch.bincount(given.labels).max() / len(given.labels))
    for point in probes.points:
        values = seen[point.name]
        here = (point.site, point.layer)
        heads = [head for site, layer, head in probes.fitted if (site, layer) == here]
        for head in heads:
            if head is None or point.layer is None:
                features = values.flatten(1)
            else:  # heads of a pruned model keep their numbers
                features = values[:, model.blocks[point.layer].attn.index([head])[0]]
            logits = probes.read(features, point.layer, site=point.site, head=head)
            right = (logits.argmax(-1) == true).double()
            sums = torch.zeros(int(text.max()) + 1, 2, dtype=torch.float64)
            sums.index_add_(0, text, torch.stack([right, torch.ones_like(right)], 1))
            low, high = resampled_interval(
                sums, lambda some: some[:, 0] / some[:, 1], level, draws=draws, seed=seed
            )
            found.append(
                {
                    "site": point.site,
                    "layer": point.layer,
                    "head": head,
                    "accuracy": float(right.mean()),
                    "low": low,
                    "high": high,
                    "majority": common,
                    "known": float((true >= 0).double().mean()),
                }
            )
    return pd.DataFrame(found).astype({"layer": "Int64", "head": "Int64"})
