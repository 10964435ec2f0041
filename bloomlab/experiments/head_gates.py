"""Masks of heads learned by gradient descent on gates, the model's weights frozen."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.errors import InputError, NumericalError, UnknownNameError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.hard_concrete import HardConcreteGates
from bloomlab.experiments.harm import direction, harm_metric
from bloomlab.experiments.head_order import HeadOrder, check_at_least, one_shot_order
from bloomlab.experiments.head_subsets import SubsetGates
from bloomlab.experiments.metrics import Metric, Target
from bloomlab.experiments.resume import require_bare

METHODS = ("hard_concrete", "subset")
PENALTY = 0.01  # of "hard_concrete", unless asked otherwise

Gates = HardConcreteGates | SubsetGates


@dataclass(frozen=True, kw_only=True)
class LearnedGates:
    """What gates of heads became.

    Attributes:
        method: how they were learned.
        scores: what was trained, the log-odds or log-weight of a head.
        probabilities: that a head is on (a gate other than 0, or in a random subset).
        gates: expected value of each gate.
        mask: the heads that stay.
        history: one row a step: step, metric, open (expected number of heads that are on),
            temperature (of the relaxation).
        order: heads by rising score, see `HeadOrder`; `order.keep(k)` for another k.
    """

    method: str
    scores: Float[Tensor, "layer head"]
    probabilities: Float[Tensor, "layer head"]
    gates: Float[Tensor, "layer head"]
    mask: Bool[Tensor, "layer head"]
    history: pd.DataFrame
    order: HeadOrder

    @property
    def frame(self) -> pd.DataFrame:
        """One row a head: layer, head, score, probability, gate, kept."""
        n_layer, n_head = self.scores.shape
        return pd.DataFrame(
            {
                "layer": [layer for layer in range(n_layer) for _ in range(n_head)],
                "head": list(range(n_head)) * n_layer,
                "score": self.scores.flatten().tolist(),
                "probability": self.probabilities.flatten().tolist(),
                "gate": self.gates.flatten().tolist(),
                "kept": self.mask.flatten().tolist(),
            }
        )


def learn_gates(
    model: Any,
    tokens: Any,
    method: str = "hard_concrete",
    *,
    k: Any = None,
    penalty: Any = None,
    at_least_k_per_layer: Any = 0,
    steps: Any = 300,
    lr: Any = 0.1,
    rows: Any = 16,
    temperatures: Any = (1.0, 0.1),
    metric: Any = "cross_entropy",
    positions: Any = None,
    answers: Any = None,
    seed: int = 0,
    progress: bool = True,
) -> LearnedGates:
    """Gates [layer head] on the output of every head, trained to harm a metric little.

    Every example of a step draws its own gates. "hard_concrete" (Voita et al., 2019) minimises the
    metric plus `penalty` times the expected number of open heads, from nearly open gates on, so
    that the penalty decides how many stay. "subset" (Li et al., 2021) minimises the metric over
    subsets of exactly k heads.

    Args:
        model: a BLOOM with an unembedding; no hooks attached. It is left as it was.
        tokens: texts, ids [batch pos] or a dict with `attention_mask`; a row is an example.
        method: "hard_concrete" or "subset".
        k: heads in the mask. Of "hard_concrete" the k likeliest; None: all that are open more
            often than not.
        penalty: of "hard_concrete", in the metric's unit for a head; None: 0.01.
        at_least_k_per_layer: heads that every layer keeps; of "hard_concrete" in the final mask.
        steps: of Adam.
        lr: its learning rate, in log-odds.
        rows: examples in a step, drawn without replacement and repeated where there are fewer.
        temperatures: of "subset" at the first and the last step, falling geometrically.
        metric: what is harmed, a name or a differentiable function read as a loss; see
            `ablate_heads`. "kl" is from the intact model's prediction.
        positions: columns whose logits the metric sees.
        answers: token ids, for metrics that use them.
        seed: of gates and examples.
        progress: show a bar while it takes long.

    Raises:
        UnknownNameError: no such method or metric.
        InputError: options that do not go together or are out of range; a metric without
            gradient; hooks attached.
        UnsupportedError: heads were pruned before; give `inflate.whole(model)`.
        NumericalError: a metric that is NaN or infinite; names the example and the step.
    """
    data, config = dataset(model, tokens), model.config
    shape = (config.n_layer, config.n_head)
    check_at_least(at_least_k_per_layer, config.n_head)
    if k is not None:
        _check_whole("k", k, at_least_k_per_layer * config.n_layer, math.prod(shape))
    _check_whole("steps", steps, 1)
    _check_whole("rows", rows, 1)
    _check_positive("lr", lr)
    gates = _gates(method, k, penalty, at_least=at_least_k_per_layer, temperatures=temperatures)
    require_bare(model)
    measured = harm_metric(model, data, metric, positions=positions, answers=answers)
    if measured.name == "accuracy" and measured.function is None:
        raise InputError("metric 'accuracy' has no gradient: learn by cross_entropy or kl.")
    dtype = torch.promote_types(model.dtype, torch.float32)
    scores = torch.full(shape, gates.start, dtype=dtype, device=model.device)
    training = _Training(model, data, measured, gates, torch.Generator().manual_seed(seed), rows)
    with _frozen(model), torch.enable_grad():
        history = training.run(
            scores.requires_grad_(), steps=steps, lr=float(lr), progress=progress
        )
    found = scores.detach().cpu()
    return LearnedGates(
        method=method,
        scores=found,
        probabilities=gates.probabilities(found),
        gates=gates.means(found),
        mask=gates.mask(found),
        history=history,
        order=one_shot_order(found, at_least_k_per_layer=at_least_k_per_layer),
    )


@dataclass(frozen=True)
class _Training:
    model: Any
    data: Dataset
    metric: Metric
    gates: Gates
    source: torch.Generator
    rows: int

    def run(
        self, scores: Float[Tensor, "layer head"], *, steps: int, lr: float, progress: bool
    ) -> pd.DataFrame:
        """Move the scores, in place; one row a step."""
        optimizer, history = torch.optim.Adam([scores], lr=lr), []
        target = self.metric.targets(self.data)
        for step in tqdm(range(steps), unit="step", delay=2, disable=not progress):
            temperature = self.gates.temperature(step / max(1, steps - 1))
            chosen = self._examples()
            drawn = self.gates.draw(scores, self._uniform(scores), temperature=temperature)
            values = self._values(chosen, drawn, target)
            if not values.requires_grad:
                raise InputError(f"metric {self.metric.name!r} has no gradient.")
            if not bool(values.isfinite().all()):
                bad = int((~values.isfinite()).nonzero()[0])
                raise NumericalError(
                    f"metric {self.metric.name!r} is {values[bad].item()} for example "
                    f"{chosen[bad].item()} in step {step}. Drop the example, or lower lr."
                )
            value, n_open = values.mean(), self.gates.n_open(scores)
            loss = direction(self.metric) * value + self.gates.penalty * n_open
            (scores.grad,) = torch.autograd.grad(loss, [scores])
            optimizer.step()
            history.append((step, value.item(), n_open.item(), temperature))
        return pd.DataFrame(history, columns=["step", "metric", "open", "temperature"])

    def _examples(self) -> Int[Tensor, " batch"]:
        """Which examples a step sees: drawn without replacement, repeated if there are few."""
        n = len(self.data)
        drawn = torch.randperm(n, generator=self.source)[torch.arange(self.rows) % n]
        return drawn.to(self.data.tokens.device)

    def _uniform(self, scores: Float[Tensor, "layer head"]) -> Float[Tensor, "batch layer head"]:
        """Draws from (0, 1), the same on every device."""
        shape, eps = (self.rows, *scores.shape), torch.finfo(scores.dtype).eps
        drawn = torch.rand(shape, generator=self.source, dtype=scores.dtype)
        return drawn.clamp(eps, 1 - eps).to(scores.device)

    def _values(
        self,
        chosen: Int[Tensor, " batch"],
        gates: Float[Tensor, "batch layer head"],
        target: Target | None,
    ) -> Float[Tensor, " batch"]:
        ids, mask = self.data.tokens[chosen], self.data.mask
        stream = self.model.backbone(
            ids,
            attention_mask=None if mask is None else mask[chosen].long(),
            head_mask=gates,
            use_cache=False,
        ).last
        if target is not None:
            target = Target(ids=target.ids[chosen], counts=target.counts[chosen])
        stream = stream[:, self.metric.columns(ids.shape[1])]
        return self.metric.values(stream, self.model.unembed, target=target, tokens=ids)


@contextlib.contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Within, no weight asks for a gradient; afterwards those do that did before."""
    asking = [p for p in model.parameters() if p.requires_grad]
    for p in asking:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in asking:
            p.requires_grad_()


def _gates(method: str, k: Any, penalty: Any, *, at_least: int, temperatures: Any) -> Gates:
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    if method == "hard_concrete":
        penalty = PENALTY if penalty is None else penalty
        _check_positive("penalty", penalty)
        return HardConcreteGates(penalty=penalty, k=k, at_least_k_per_layer=at_least)
    if k is None:
        raise InputError("method 'subset' needs k: how many heads stay.")
    if penalty is not None:
        raise InputError("penalty belongs to method 'hard_concrete'; of 'subset' k decides.")
    first, last = temperatures
    _check_positive("a temperature", first)
    _check_positive("a temperature", last)
    return SubsetGates(k=k, at_least_k_per_layer=at_least, temperatures=(first, last))


def _check_whole(name: str, value: Any, low: int, high: int | None = None) -> None:
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not (whole and low <= value and (high is None or value <= high)):
        limits = f"{low} or more" if high is None else f"{low} to {high}"
        raise InputError(f"{name} is {value!r}, expected a whole number, {limits}.")


def _check_positive(name: str, value: Any) -> None:
    if not (isinstance(value, int | float) and 0 < value < float("inf")):
        raise InputError(f"{name} is {value!r}, expected a number above 0.")
