"""What each language loses without the neurons of another, beside as many random ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.analysis.intervals import standard_error
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.language_neurons import ROWS, LanguageNeurons, Neuron, deactivate
from bloomlab.experiments.metrics import Metric


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LanguageEffects(Framed):
    """Changes of the loss on each language's texts; made by `language_effects`.

    Attributes:
        neurons: the languages whose neurons were deactivated.
        effects: loss without them - loss with them, nats per token, of each text, by language of
            the neurons and of the texts.
        random: the same for random neurons, [draw example].
        clean: loss of each text, by its language.
    """

    neurons: tuple[str, ...]
    effects: dict[tuple[str, str], Float[Tensor, " example"]]
    random: dict[tuple[str, str], Float[Tensor, "draw example"]]
    clean: dict[str, Float[Tensor, " example"]]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a pair of languages.

        Columns: neurons, texts (languages), clean (loss), effect, stderr (over texts), random
        (mean effect of random neurons), random_std (over draws), excess (effect - random),
        excess_stderr (over texts, paired).
        """
        rows = []
        for (neurons, texts), effect in self.effects.items():
            control = self.random[neurons, texts]
            excess = effect - control.mean(0)
            row = {"neurons": neurons, "texts": texts, "clean": self.clean[texts].mean().item()}
            row |= {"effect": effect.mean().item(), "stderr": standard_error(effect).item()}
            spread = control.mean(-1)
            row |= {
                "random": spread.mean().item(),
                "random_std": spread.std().item() if len(spread) > 1 else math.nan,
            }
            rows.append(
                row
                | {"excess": excess.mean().item(), "excess_stderr": standard_error(excess).item()}
            )
        return pd.DataFrame(rows)


@torch.no_grad()
def language_effects(
    model: Any,
    found: LanguageNeurons,
    texts: Mapping[str, Any],
    *,
    n_random: int = 5,
    seed: int = 0,
    rows: int = ROWS,
    progress: bool = True,
) -> LanguageEffects:
    """Loss on each language's texts without the neurons of each language.

    Use other texts than those the neurons were found on. Random neurons are as many in each layer,
    of those that are not the language's.

    Args:
        model: a BLOOM with an unembedding.
        found: the neurons.
        texts: of each language: texts, ids [batch pos] or a dict with `attention_mask`.
        n_random: draws of random neurons.
        seed: of these.
        rows: texts in a forward.
        progress: show a bar while it takes long.

    Raises:
        InputError: no texts, a text of one token, no draws, languages without neurons only.
        UnknownNameError: neurons that the model lacks.
    """
    if isinstance(n_random, bool) or n_random < 1:
        raise InputError(f"n_random is {n_random!r}, expected 1 or more draws.")
    chosen = {name: some for name in found.languages if (some := found.of(name))}
    if not chosen:
        raise InputError("no language has neurons: raise `top` or lower `bar`.")
    if not isinstance(texts, Mapping) or not texts:
        raise InputError("no texts: expected those of each language, {name: texts, ...}.")
    _, n_layer, width = found.selected.shape
    if n_layer != len(model.blocks):
        raise UnknownNameError("layer", n_layer - 1, (), where=f"It has {len(model.blocks)}.")
    source = torch.Generator().manual_seed(seed)
    drawn = {
        name: [_random(some, width, source) for _ in range(n_random)]
        for name, some in chosen.items()
    }
    effects, random, clean = {}, {}, {}
    n_run = len(texts) * (1 + len(chosen) * (1 + n_random))
    with tqdm(total=n_run, unit="run", delay=2, disable=not progress) as bar:

        def losses(data: Dataset, neurons: list[Neuron]) -> Float[Tensor, " example"]:
            found = _losses(model, data, neurons, rows)
            bar.update()
            return found

        for language, some in texts.items():
            data = dataset(model, some)
            clean[language] = losses(data, [])
            for name, neurons in chosen.items():
                effects[name, language] = losses(data, neurons) - clean[language]
                others = [losses(data, one) for one in drawn[name]]
                random[name, language] = torch.stack(others) - clean[language]
    return LanguageEffects(neurons=tuple(chosen), effects=effects, random=random, clean=clean)


def _random(neurons: list[Neuron], width: int, source: torch.Generator) -> list[Neuron]:
    """As many other neurons of each layer; of all, where too few are left."""
    drawn: list[Neuron] = []
    for layer in sorted({layer for layer, _ in neurons}):
        taken = {neuron for at, neuron in neurons if at == layer}
        free = [neuron for neuron in range(width) if neuron not in taken]
        free = free if len(free) >= len(taken) else list(range(width))
        order = torch.randperm(len(free), generator=source)[: len(taken)]
        drawn += [(layer, free[i]) for i in sorted(order.tolist())]
    return drawn


def _losses(
    model: Any, data: Dataset, neurons: list[Neuron], rows: int
) -> Float[Tensor, " example"]:
    """Mean cross-entropy of the next tokens of each text, in nats."""
    metric, found = Metric("cross_entropy"), []
    targets = metric.targets(data)
    assert targets is not None
    for start, part in data.chunks(rows):
        mask = None if part.mask is None else part.mask.long()
        with model.hooks(fwd_hooks=deactivate(neurons)):
            stream = model.backbone(part.tokens, attention_mask=mask, use_cache=False).last
        target = targets.rows(slice(start, start + len(part)), 1)
        found.append(metric.values(stream, model.unembed, target=target, tokens=part.tokens))
    return torch.cat(found).cpu()
