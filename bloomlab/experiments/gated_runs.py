"""Runs of a batch under gates on its heads, measured so that gates have gradients."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.judge import check_finite
from bloomlab.experiments.metrics import Metric, Target


@dataclass(frozen=True, kw_only=True)
class GatedRuns:
    """A batch that is run again and again, a few examples at a time.

    A gate multiplies a head's output on top of `mask`, so that 1 is the clean run, and nothing
    changes with the gate of a masked head.

    Args:
        model: a BLOOM with an unembedding, no hooks attached.
        data: the batch.
        metric: what is measured.
        mask: scales heads in every run.
        first: number of the batch's first example, for messages.
        rows: examples in a forward.
        progress: show a bar where going through the batch takes long.
    """

    model: Any
    data: Dataset
    metric: Metric
    mask: Float[Tensor, "layer head"]
    first: int = 0
    rows: int = 16
    progress: bool = False
    target: Target | None = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "target", self.metric.targets(self.data))

    def chunks(self) -> Iterator[slice]:
        """The examples, a forward's worth at a time."""
        for start, part in self.data.chunks(self.rows, progress=self.progress):
            yield slice(start, start + len(part))

    def gates(self, examples: slice) -> Float[Tensor, "batch layer head"]:
        """Open gates of some examples, each its own, that ask for a gradient."""
        wide = torch.promote_types(self.model.dtype, torch.float32)
        shape = (examples.stop - examples.start, *self.mask.shape)
        return torch.ones(shape, dtype=wide, device=self.model.device, requires_grad=True)

    def values(
        self,
        examples: slice,
        gates: Float[Tensor, "batch layer head"] | None = None,
        *,
        hooks: Sequence[Any] = (),
        since: int | None = None,
        stream: Float[Tensor, "batch pos d_model"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """The metric of some examples.

        Args:
            examples: which.
            gates: of their heads; None: open.
            hooks: (name, function) pairs, attached meanwhile.
            since: first layer that is run, on `stream`; None: all are.
            stream: what that layer reads.

        Raises:
            InputError: the metric has no gradient, though one is asked for.
            NumericalError: it is NaN or infinite; names the example.
        """
        part = self.data.rows(examples.start, examples.stop)
        mask = self.mask if gates is None else self.mask.to(gates) * gates
        with self.model.hooks(fwd_hooks=list(hooks)):
            last = self.model.backbone(
                part.tokens if since is None else stream,
                start_at_layer=since,
                attention_mask=None if part.mask is None else part.mask.long(),
                head_mask=mask,
                use_cache=False,
            ).last
        values = self.metric.values(
            last[:, self.metric.columns(part.tokens.shape[1]).to(last.device)],
            self.model.unembed,
            target=None if self.target is None else self.target.rows(examples, 1),
            tokens=part.tokens,
        )
        check_finite(self.metric, values.detach()[None], first=self.first + examples.start)
        wanted = torch.is_grad_enabled() and gates is not None and gates.requires_grad
        if wanted and not values.requires_grad:
            raise InputError(
                f"metric {self.metric.name!r} has no gradient. Take cross_entropy or another, or "
                "kind='exact'."
            )
        return values

    def clean_values(self, gate: float = 1.0) -> Float[Tensor, " example"]:
        """The metric of every example, all gates at one value."""
        with torch.no_grad():
            return torch.cat(
                [self.values(some, self.gates(some) * gate) for some in self.chunks()]
            ).cpu()
