"""The structural probe: tree distance as squared distance (Hewitt and Manning, 2019, N19-1419)."""

# pyright: standard
# pandas and scipy come without types

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path
from torch import Tensor

from bloomlab.errors import InputError, ShapeError

LENGTHS = range(5, 51)  # of sentences whose Spearman correlations are averaged


@dataclass(frozen=True, kw_only=True, slots=True)
class StructuralProbe:
    """d(i, j) = |B (h_i - h_j)|^2 stands for the number of edges between words i and j.

    Attributes:
        projection: B.
        losses: mean loss of each epoch.
    """

    projection: Float[Tensor, "rank d"]
    losses: tuple[float, ...]

    def distances(self, vectors: Float[Tensor, "*lead word d"]) -> Float[Tensor, "*lead word word"]:
        """The squared distance of each two words."""
        return _squared_distances(vectors, self.projection)


def tree_distances(parents: Sequence[int]) -> Float[Tensor, "word word"]:
    """Number of edges between words of a dependency tree.

    Args:
        parents: number of each word's head among the words, -1 for the root.

    Raises:
        InputError: no single tree.
    """
    n = len(parents)
    links = np.zeros((n, n))
    for word, parent in enumerate(parents):
        if not -1 <= parent < n or parent == word:
            raise InputError(f"word {word} has the head {parent}, expected -1 ... {n - 1}.")
        if parent >= 0:
            links[word, parent] = 1
    found = torch.tensor(shortest_path(links, directed=False, unweighted=True))
    if sum(parent == -1 for parent in parents) != 1 or bool(found.isinf().any()):
        raise InputError(f"the heads {list(parents)} form no tree: expected one root, -1.")
    return found


def fit_structural_probe(
    vectors: Sequence[Float[Tensor, "_ d"]],
    distances: Sequence[Float[Tensor, "_ _"]],
    *,
    rank: int | None = None,
    epochs: int = 40,
    batch_size: int = 20,
    learning_rate: float = 3e-2,
    seed: int = 0,
) -> StructuralProbe:
    """B that minimises the mean over sentences of sum |d_tree - d_B| / words^2.

    Adam; the rate falls to zero along a half cosine.

    Args:
        vectors: of each sentence's words.
        distances: of each sentence's tree; see `tree_distances`.
        rank: rows of B; None: as many as the vectors are wide.
        epochs: passes over all sentences.
        batch_size: sentences a step.
        learning_rate: of the first step.
        seed: of the first B and of the order.

    Raises:
        InputError: no sentence.
        ShapeError: distances that do not fit the words.
    """
    if not vectors:
        raise InputError("there is no sentence to fit a structural probe on.")
    if len(vectors) != len(distances):
        raise ShapeError("distances", got=[len(distances)], expected=f"{len(vectors)} sentences")
    for number, (words, tree) in enumerate(zip(vectors, distances, strict=True)):
        if tree.shape != (len(words), len(words)):
            expected = f"{[len(words)] * 2}, as its words"
            raise ShapeError(f"distances of sentence {number}", got=tree.shape, expected=expected)
    source = torch.Generator().manual_seed(seed)
    d = vectors[0].shape[-1]
    wide = torch.cat(list(vectors)).to(torch.promote_types(vectors[0].dtype, torch.float32))
    size = float((wide - wide.mean(0)).square().sum(-1).mean()) or 1.0
    start = torch.rand(rank or d, d, generator=source).to(wide) * 2 - 1
    unit = (size * (rank or d) / 3) ** -0.5  # then distances are about 1 at first
    matrix = start.requires_grad_()
    steps = epochs * -(-len(vectors) // batch_size)
    with torch.enable_grad():
        optimizer = torch.optim.Adam([matrix], lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses: list[float] = []
        for _ in range(epochs):
            order = torch.randperm(len(vectors), generator=source).tolist()
            total = 0.0
            for first in range(0, len(order), batch_size):
                some = order[first : first + batch_size]
                loss = _loss([vectors[i] for i in some], [distances[i] for i in some], matrix, unit)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(some)
            losses.append(total / len(order))
    return StructuralProbe(projection=(matrix * unit).detach(), losses=tuple(losses))


def structural_scores(
    predicted: Sequence[Float[Tensor, "_ _"]], distances: Sequence[Float[Tensor, "_ _"]]
) -> pd.DataFrame:
    """One row a sentence: `words`, `edges` right and `total`, `uuas`, `spearman`.

    `uuas`: share of the tree's edges in the minimum spanning tree of the predicted distances.
    `spearman`: mean over words of the rank correlation of a word's distances to all others.
    Leave out punctuation beforehand, as Hewitt and Manning do.
    """
    rows: list[dict[str, float]] = []
    for guess, tree in zip(predicted, distances, strict=True):
        n = len(tree)
        edges = _edges(guess)
        right = int(sum(tree[i, j] == 1 for i, j in edges))
        total = int((tree == 1).sum()) // 2
        rows.append(
            {
                "words": n,
                "edges": right,
                "total": total,
                "uuas": right / total if total else float("nan"),
                "spearman": _spearman(guess, tree),
            }
        )
    return pd.DataFrame(rows, columns=["words", "edges", "total", "uuas", "spearman"])


def dspr(scores: pd.DataFrame) -> float:
    """Hewitt and Manning's DSpr: `spearman` averaged by length, then over lengths 5 to 50."""
    lengths = scores["words"].to_numpy()
    spearman = scores["spearman"].to_numpy()
    means = [spearman[lengths == n].mean() for n in LENGTHS if n in lengths]
    return float(np.mean(means)) if means else float("nan")


def _squared_distances(vectors: Tensor, projection: Tensor) -> Tensor:
    mapped = vectors.to(projection) @ projection.T
    return (mapped[..., :, None, :] - mapped[..., None, :, :]).square().sum(-1)


def _loss(vectors: list[Tensor], distances: list[Tensor], matrix: Tensor, unit: float) -> Tensor:
    losses = [
        (_squared_distances(words, matrix * unit) - tree.to(matrix)).abs().sum() / len(words) ** 2
        for words, tree in zip(vectors, distances, strict=True)
    ]
    return torch.stack(losses).mean()


def _spearman(guess: Tensor, tree: Tensor) -> float:
    """Mean over rows of the rank correlation; NaN if a row's distances are all alike."""
    pair = [
        pd.DataFrame(one.double().cpu().numpy()).rank(axis=1).to_numpy() for one in (guess, tree)
    ]
    ours, theirs = (ranks - ranks.mean(1, keepdims=True) for ranks in pair)
    size = np.sqrt((ours**2).sum(1) * (theirs**2).sum(1))
    return float(np.mean((ours * theirs).sum(1) / np.where(size > 0, size, np.nan)))


def _edges(distances: Tensor) -> list[tuple[int, int]]:
    # a distance of 0 would be no edge to scipy
    lengths = distances.double().cpu().numpy() + 1.0
    rows, columns = minimum_spanning_tree(np.triu(lengths, 1)).nonzero()
    return list(zip(rows.tolist(), columns.tolist(), strict=True))
