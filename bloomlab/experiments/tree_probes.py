"""Structural probes of every layer: are parse trees distances in the stream?

Hewitt and Manning (2019, N19-1419); see `analysis.structural`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.analysis.probes import resampled_interval
from bloomlab.analysis.structural import (
    StructuralProbe,
    dspr,
    fit_structural_probe,
    structural_scores,
    tree_distances,
)
from bloomlab.errors import InputError
from bloomlab.experiments.activations import Activations, collect
from bloomlab.experiments.dataset import dataset
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.probe_labels import spans_of
from bloomlab.experiments.probing import EMBEDDING, random_twin, split_texts
from bloomlab.experiments.sites import find_points
from bloomlab.experiments.treebanks import Words

LEFT_OUT = ("punct", "PUNCT")
LEAST = 3  # words of a sentence
RANK = 64

Sentences = list[Float[Tensor, "_ d"]]


@dataclass(frozen=True, kw_only=True, repr=False)
class TreeProbes(Framed):
    """Structural probes at a site of each layer; made by `probe_trees`.

    Attributes:
        probes: by name of the hook.
        scores: one row a test sentence for each place: the hooks, and the baselines "embedding",
            "chain" (each word's head is the one before it) and "random <hook>".
        layers: of each hook.
        split: numbers of the texts of "train", "dev" and "test".
    """

    probes: dict[str, StructuralProbe]
    scores: dict[str, pd.DataFrame]
    layers: dict[str, int | None]
    split: dict[str, Int[Tensor, " _"]]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a layer.

        Columns: hook, layer; uuas (share of the tree's edges found), low, high (95%, bootstrap over
        test sentences); dspr; the uuas of baselines: random (the same probe on a model with random
        weights), embedding (on token embeddings), chain (words in a row).
        """
        rows = []
        for hook, layer in self.layers.items():
            scores = self.scores[hook]
            sums = torch.tensor(scores[["edges", "total"]].to_numpy(), dtype=torch.float64)
            low, high = resampled_interval(sums, lambda some: some[:, 0] / some[:, 1])
            rows.append(
                {
                    "hook": hook,
                    "layer": layer,
                    "uuas": _uuas(scores),
                    "low": low,
                    "high": high,
                    "dspr": dspr(scores),
                    "random": _uuas(self.scores[f"random {hook}"]),
                    "embedding": _uuas(self.scores["embedding"]),
                    "chain": _uuas(self.scores["chain"]),
                }
            )
        return pd.DataFrame(rows).astype({"layer": "Int64"})


def probe_trees(
    model: Any,
    words: Words,
    *,
    sites: Any = "resid_post",
    rank: int = RANK,
    epochs: int = 40,
    pool: str = "last",
    split: Sequence[int | float] = (0.7, 0.1, 0.2),
    seed: int = 0,
    rows: int | None = None,
    progress: bool = True,
) -> TreeProbes:
    """Structural probes fitted on a treebank's train sentences, scored on its test sentences.

    Punctuation, fused words and sentences of fewer than 3 other words are left out. Embeddings and
    a model with random weights (same configuration, drawn by `seed`) are probed alike.

    Args:
        model: a BLOOM of any class.
        words: as `tasks.dependency_relations` gives them.
        sites: sites with one vector a token, such as "resid_post".
        rank: of the probes.
        epochs: passes over the train sentences.
        pool: the vector of a word of several tokens: "last", "first" or "mean".
        split: shares of the sentences for train, dev and test.
        seed: of split, random weights and probes.
        rows: texts in a forward; None: by free memory.
        progress: show a bar while it takes long.

    Raises:
        InputError: a site of heads, too few sentences, heads that form no tree.
        UnknownNameError: no such site or pooling.
    """
    points = find_points(model, sites)
    if heads := [point.site for point in points if point.by_head]:
        raise InputError(f"the site {heads[0]!r} is one of heads: take one with a vector a token.")
    kept = [
        [i for i, label in enumerate(one) if label is not None and label not in LEFT_OUT]
        for one in words.labels
    ]
    chosen = [text for text, some in enumerate(kept) if len(some) >= LEAST]
    if len(chosen) < LEAST:
        raise InputError(f"{len(chosen)} sentences have {LEAST} words or more: too few to probe.")
    trees = [tree_distances(words.heads[text])[kept[text]][:, kept[text]] for text in chosen]
    texts = [words.texts[text] for text in chosen]
    places = [[words.spans[text][i] for i in kept[text]] for text in chosen]
    data = dataset(model, texts)
    spans = spans_of(model, data, texts, [["word"] * len(some) for some in places], places)[0]
    parts = split_texts(torch.arange(len(chosen)), split, seed=seed)
    names = list(dict.fromkeys([EMBEDDING, *(point.name for point in points)]))

    def seen(one: Any) -> Activations:
        return collect(one, data, names, spans=spans, pool=pool, rows=rows, progress=progress)

    def fitted(values: Float[Tensor, "word d"]) -> tuple[StructuralProbe, pd.DataFrame]:
        cut = values.split([len(tree) for tree in trees])
        train, test = (parts[name].tolist() for name in ("train", "test"))
        one = fit_structural_probe(
            [cut[i] for i in train],
            [trees[i] for i in train],
            rank=rank,
            epochs=epochs,
            seed=seed,
        )
        guesses = [one.distances(cut[i]) for i in test]
        return one, structural_scores(guesses, [trees[i] for i in test])

    there, blank = seen(model), seen(random_twin(model, seed=seed))
    probes, scores = dict[str, StructuralProbe](), dict[str, pd.DataFrame]()
    scores["embedding"] = fitted(there[EMBEDDING])[1]
    tested = [trees[i] for i in parts["test"].tolist()]
    chains = [torch.arange(len(tree)).double() for tree in tested]
    scores["chain"] = structural_scores([(c - c[:, None]).abs() for c in chains], tested)
    for point in tqdm(points, desc="probes", unit="site", delay=2, disable=not progress):
        probes[point.name], scores[point.name] = fitted(there[point.name])
        scores[f"random {point.name}"] = fitted(blank[point.name])[1]
    return TreeProbes(
        probes=probes,
        scores=scores,
        layers={point.name: point.layer for point in points},
        split={name: torch.tensor(chosen)[some] for name, some in parts.items()},
    )


def _uuas(scores: pd.DataFrame) -> float:
    right, total = scores[["edges", "total"]].to_numpy().sum(0)
    return float(right / total)
