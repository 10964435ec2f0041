"""Neurons that are active in one language, and what a model loses without them.

Tang et al. (2024, arXiv:2402.16438): LAPE; see `analysis.language_neurons`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bloomlab.analysis.language_neurons import activation_entropy, select_language_neurons
from bloomlab.errors import InputError, UnknownNameError, UnsupportedError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.framed import Framed
from bloomlab.interventions import Intervention, Spot

ROWS = 16  # texts in a forward

Neuron = tuple[int, int]  # layer, number


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LanguageNeurons(Framed):
    """Which neurons are which language's; made by `language_neurons`.

    Attributes:
        languages: in the order of the first axis below.
        probability: share of a language's attended tokens at which a neuron is above 0.
        entropy: of a neuron over languages, in nats; NaN if it is never active.
        selected: which neurons are a language's.
        n_token: attended tokens of each language.
    """

    languages: tuple[str, ...]
    probability: Float[Tensor, "language layer neuron"]
    entropy: Float[Tensor, "layer neuron"]
    selected: Bool[Tensor, "language layer neuron"]
    n_token: Int[Tensor, " language"]

    def of(self, language: str) -> list[Neuron]:
        """The (layer, neuron) pairs of a language, sorted.

        Raises:
            UnknownNameError: no such language.
        """
        if language not in self.languages:
            raise UnknownNameError("language", language, self.languages)
        pairs = self.selected[self.languages.index(language)].nonzero().tolist()
        return [(layer, neuron) for layer, neuron in pairs]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a language and neuron of it: language, layer, neuron, entropy, probability."""
        found = self.selected.nonzero()
        language, layer, neuron = found.unbind(-1)
        return pd.DataFrame(
            {
                "language": [self.languages[i] for i in language.tolist()],
                "layer": layer.tolist(),
                "neuron": neuron.tolist(),
                "entropy": self.entropy[layer, neuron].tolist(),
                "probability": self.probability[language, layer, neuron].tolist(),
            }
        )

    @property
    def counts(self) -> pd.DataFrame:
        """How many neurons of each layer (rows) are each language's (columns)."""
        table = self.selected.sum(-1).mT.tolist()
        return pd.DataFrame(table, columns=list(self.languages)).rename_axis("layer")


@torch.no_grad()
def language_neurons(
    model: Any,
    texts: Mapping[str, Any],
    *,
    top: float = 0.01,
    bar: float = 0.95,
    rows: int = ROWS,
    progress: bool = True,
) -> LanguageNeurons:
    """The neurons of each language, by the entropy of their activation probabilities.

    A neuron is active where its value after the GELU (`mlp.hook_post`) is above 0.

    Args:
        model: a BLOOM of any class, with MLPs of one width.
        texts: of each language: texts, ids [batch pos] or a dict with `attention_mask`. As many
            tokens of each make the probabilities equally sure.
        top: share of all neurons to choose, of lowest entropy.
        bar: quantile of all probabilities above which one counts; see `select_language_neurons`.
        rows: texts in a forward.
        progress: show a bar while it takes long.

    Raises:
        InputError: fewer than two languages, no texts, shares outside 0 ... 1.
        UnsupportedError: a model whose layers differ in width.
    """
    if not isinstance(texts, Mapping) or len(texts) < 2:
        raise InputError(
            "language neurons need the texts of two languages or more: {name: texts, ...}."
        )
    widths = {block.mlp.W_in.shape[1] for block in model.blocks}
    if len(widths) > 1:
        raise UnsupportedError(
            "layers of this pruned model differ in neurons: find them in the whole model."
        )
    counted = [
        _active(model, dataset(model, some), rows, progress=progress) for some in texts.values()
    ]
    probability = torch.stack([active.double() / n for active, n in counted]).cpu()
    return LanguageNeurons(
        languages=tuple(texts),
        probability=probability,
        entropy=activation_entropy(probability),
        selected=select_language_neurons(probability, top=top, bar=bar),
        n_token=torch.tensor([n for _, n in counted]),
    )


def deactivate(neurons: Any) -> list[Intervention]:
    """Neurons held at 0 after the GELU (`mlp.hook_post`), an intervention for each layer.

    Args:
        neurons: (layer, neuron) pairs, such as `LanguageNeurons.of` gives; none: no interventions.

    Raises:
        InputError: something else than pairs of whole numbers from 0.
        UnknownNameError: when it acts: a neuron that the layer lacks.
    """
    found: dict[int, list[int]] = {}
    for pair in neurons:
        whole = isinstance(pair, tuple | list) and len(pair) == 2
        if not whole or not all(type(one) is int and one >= 0 for one in pair):
            raise InputError(f"a neuron is {pair!r:.60}, expected (layer, number), from 0.")
        found.setdefault(pair[0], []).append(pair[1])
    return [
        Intervention(
            name=f"blocks.{layer}.mlp.hook_post",
            edit=partial(_silenced, neurons=tuple(sorted(set(some)))),
        )
        for layer, some in sorted(found.items())
    ]


def _silenced(old: Tensor, spot: Spot, *, neurons: tuple[int, ...]) -> Tensor:
    if neurons[-1] >= old.shape[-1]:
        where = f"{spot.name} has {old.shape[-1]}, from 0."
        raise UnknownNameError("neuron", neurons[-1], (), where=where)
    return old.index_fill(-1, torch.tensor(neurons, device=old.device), 0)


def _active(
    model: Any, data: Dataset, rows: int, *, progress: bool
) -> tuple[Int[Tensor, "layer neuron"], int]:
    """At how many attended tokens each neuron is above 0, and how many there are."""
    n_layer, width = len(model.blocks), model.blocks[0].mlp.W_in.shape[1]
    total = torch.zeros(n_layer, width, dtype=torch.long, device=data.tokens.device)
    for _, part in data.chunks(rows, progress=progress):

        def count(
            value: Tensor, hook: Any, attended: Bool[Tensor, "batch pos"] = part.attended
        ) -> None:
            total[int(hook.name.split(".")[1])] += (value[attended] > 0).sum(0)

        count.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
        hooks = [(f"blocks.{layer}.mlp.hook_post", count) for layer in range(n_layer)]
        mask = None if part.mask is None else part.mask.long()
        with model.hooks(fwd_hooks=hooks):
            model.backbone(part.tokens, attention_mask=mask, use_cache=False, stop_at_layer=n_layer)
    return total, int(data.attended.sum())
