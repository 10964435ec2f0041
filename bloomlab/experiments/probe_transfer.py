"""What fitted probes read from other texts, such as another language's (or another model's)."""

from collections.abc import Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from bloomlab.analysis.probes import resampled_interval
from bloomlab.errors import InputError
from bloomlab.experiments.activations import Activations, collect
from bloomlab.experiments.probe_labels import label_examples
from bloomlab.experiments.probes import Key, Probes


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
    progress: bool = True,
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
        progress: show a bar while it takes long.

    Returns:
        One row a probe: site, layer, head, accuracy, low, high; majority, the share of these texts'
        commonest label; known, the share of labels that the probes know.

    Raises:
        InputError: labels that do not match the texts (names the text), or of another unit than the
            probes' (token, span or text); a head that the model lacks.
        ShapeError: a model of another width.
    """
    found = transfer_each(
        {"": probes},
        model,
        texts,
        labels,
        spans=spans,
        attention_mask=attention_mask,
        level=level,
        draws=draws,
        seed=seed,
        rows=rows,
        progress=progress,
    )
    return found.drop(columns="fitted")


def transfer_each(
    probes: Mapping[str, Probes],
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
    progress: bool = True,
) -> pd.DataFrame:
    """`transfer_probes` of several probes, such as one a language; the texts are run once.

    Args:
        probes: by name of what they were fitted on; of one unit and pooling.
        model: as in `transfer_probes`, and so are all others.
        texts: read by all.
        labels: of these texts.
        spans: of these texts.
        attention_mask: of these texts.
        level: of the intervals.
        draws: of the bootstrap.
        seed: of the bootstrap.
        rows: texts in a forward.
        progress: show a bar while it takes long.

    Returns:
        The rows of `transfer_probes` for each, with its name in the first column, `fitted`.

    Raises:
        InputError: as `transfer_probes`; no probes, or probes that pool in several ways.
        ShapeError: a model of another width.
    """
    if not probes or len({one.pool for one in probes.values()}) > 1:
        pools = sorted({one.pool for one in probes.values()})
        raise InputError(f"the probes pool by {pools}, expected some, all in the same way.")
    given = label_examples(
        model, texts, labels, spans=spans, attention_mask=attention_mask, fitting=False
    )
    for one in probes.values():
        if given.unit != one.unit:
            raise InputError(
                f"these labels are one a {given.unit}, but the probes were fitted on one a "
                f"{one.unit}."
            )
    names = dict.fromkeys(point.name for one in probes.values() for point in one.points)
    pool = next(iter(probes.values())).pool
    seen = collect(
        model,
        given.data,
        list(names),
        spans=given.spans,
        pool=pool,
        rows=rows,
        progress=progress,
    )
    text = torch.unique(given.spans.text, return_inverse=True)[1]
    common = float(torch.bincount(given.labels).max() / len(given.labels))
    found: list[dict[str, Any]] = []
    for name, one in probes.items():
        numbers = {label: i for i, label in enumerate(one.classes)}
        true = torch.tensor([numbers.get(label, -1) for label in given.classes])[given.labels]
        for place, features in _features(one, model, seen):
            site, layer, head = place
            said = one.read(features, layer, site=site, head=head).argmax(-1)
            right = (said == true).double()
            sums = torch.zeros(int(text.max()) + 1, 2, dtype=torch.float64)
            sums.index_add_(0, text, torch.stack([right, torch.ones_like(right)], 1))
            low, high = resampled_interval(
                sums, lambda some: some[:, 0] / some[:, 1], level, draws=draws, seed=seed
            )
            found.append(
                {
                    "fitted": name,
                    "site": site,
                    "layer": layer,
                    "head": head,
                    "accuracy": float(right.mean()),
                    "low": low,
                    "high": high,
                    "majority": common,
                    "known": float((true >= 0).double().mean()),
                }
            )
    return pd.DataFrame(found).astype({"layer": "Int64", "head": "Int64"})


def _features(probes: Probes, model: Any, seen: Activations) -> Iterator[tuple[Key, Tensor]]:
    """Site, layer and head of each probe, and the vectors that it reads."""
    for point in probes.points:
        values = seen[point.name]
        for site, layer, head in probes.fitted:
            if (site, layer) != (point.site, point.layer):
                continue
            if head is None or layer is None:
                yield (site, layer, head), values.flatten(1)
            else:  # heads of a pruned model keep their numbers
                yield (site, layer, head), values[:, model.blocks[layer].attn.index([head])[0]]
