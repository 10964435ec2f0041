"""How much worse a model with fewer heads is: the metric, its direction, KL from the parent."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.metrics import Metric, Target

LARGER_IS_BETTER = ("accuracy", "logit_difference", "probability")


class ParentKL(Metric):
    """KL of the intact model's prediction from a run's, in nats per token.

    The metric "kl" of a sweep under a head mask compares with the masked run; this one with the
    model that everything is cut from.

    Args:
        model: the intact model.
        data: the examples; no others can be measured.
        positions: columns that count.
    """

    @torch.no_grad()
    def __init__(self, model: Any, data: Dataset, positions: Any) -> None:
        super().__init__("kl", positions=positions)
        columns = self.columns(data.tokens.shape[1])
        parts = [
            model.backbone(
                part.tokens,
                attention_mask=None if part.mask is None else part.mask.long(),
                use_cache=False,
            ).last[:, columns]
            for _, part in data.chunks(16)
        ]
        self._parent: Float[Tensor, "example pos d_model"] = torch.cat(parts)

    @property
    def needs_clean(self) -> bool:
        """It knows what to compare with."""
        return False

    def targets(self, data: Dataset) -> Target:
        """The number of each example, at every column that counts."""
        counts = data.attended[:, self.columns(data.tokens.shape[1])]
        number = torch.arange(len(data), device=data.tokens.device)
        return Target(ids=number[:, None].expand(counts.shape), counts=counts)

    def values(
        self,
        stream: Float[Tensor, "row pos d_model"],
        unembed: Any,
        *,
        target: Target | None,
        tokens: Int[Tensor, "row pos_all"],
        clean: Tensor | None = None,
    ) -> Float[Tensor, " row"]:
        """The divergence of every row."""
        assert target is not None
        with torch.no_grad():
            logits = unembed(self._parent[target.ids[:, 0]])
            wide = torch.promote_types(logits.dtype, torch.float32)
            before = logits.to(wide).log_softmax(-1)
        return super().values(stream, unembed, target=target, tokens=tokens, clean=before)


def harm_metric(model: Any, data: Dataset, metric: Any, *, positions: Any, answers: Any) -> Metric:
    """The metric by which a model is cut down.

    Raises:
        UnknownNameError: no such metric.
        InputError: answers missing, or given where none are used.
    """
    measured = Metric(metric, positions=positions, answers=answers)
    return ParentKL(model, data, positions) if measured.needs_clean else measured


def direction(metric: Metric) -> int:
    """1 where larger is worse (losses, and every function); -1 where larger is better."""
    return -1 if metric.function is None and metric.name in LARGER_IS_BETTER else 1
