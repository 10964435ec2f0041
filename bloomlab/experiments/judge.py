"""The metric of many runs over some examples."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import NumericalError
from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.metrics import Metric, Target


class Judge:
    """Turns the final stream of runs into the metric of each.

    Args:
        metric: what is measured.
        unembed: the model's unembedding.
        data: the examples, as the metric sees them.
        clean: output of the final norm of their clean run at the columns that count.
        targets: what the metric compares with, for all examples.
        examples: which of them these are.
    """

    def __init__(
        self,
        metric: Metric,
        unembed: Any,
        data: Dataset,
        *,
        clean: Float[Tensor, "batch pos d_model"],
        targets: Target | None,
        examples: slice,
    ) -> None:
        self.metric, self.unembed, self.tokens = metric, unembed, data.tokens
        self.targets, self.examples = targets, examples
        self.log_clean: Tensor | None = None
        if metric.needs_clean:
            logits = unembed(clean)
            wide = torch.promote_types(logits.dtype, torch.float32)
            self.log_clean = logits.to(wide).log_softmax(-1)

    def __call__(
        self, stream: Float[Tensor, "row pos d_model"], n_run: int
    ) -> Float[Tensor, "run example"]:
        """The metric of every run and example.

        Raises:
            NumericalError: NaN or infinity; names the example.
        """
        values = self.metric.values(
            stream,
            self.unembed,
            target=None if self.targets is None else self.targets.rows(self.examples, n_run),
            tokens=self.tokens.repeat(n_run, 1),
            clean=None if self.log_clean is None else self.log_clean.repeat(n_run, 1, 1),
        ).view(n_run, len(self.tokens))
        check_finite(self.metric, values, first=self.examples.start)
        return values.cpu()


def check_finite(metric: Metric, values: Float[Tensor, "run example"], *, first: int) -> None:
    """Raise unless a metric is a number everywhere; `first` is the number of the first example.

    Raises:
        NumericalError: NaN or infinite; names the example.
    """
    if not bool(values.isfinite().all()):
        bad = int((~values.isfinite()).any(0).nonzero()[0].item())
        raise NumericalError(
            f"metric {metric.name!r} is {values[:, bad].tolist()} for example {first + bad}. Drop "
            "the example, or check the metric."
        )
