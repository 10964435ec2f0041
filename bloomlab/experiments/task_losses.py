"""The loss of a task model for every example, as a metric of a sweep over heads."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bloomlab.errors import InputError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.judge import Judge
from bloomlab.experiments.metrics import Metric, Target
from bloomlab.experiments.probe_labels import NO_LABEL
from bloomlab.experiments.resume import CleanRun
from bloomlab.experiments.sweep import Sweep

HEADS = ("unembed", "score", "classifier", "qa_outputs")
ENDS = ("start_positions", "end_positions")


class TaskLoss(Metric):
    """Cross-entropy in nats, a mean over the labels of each example.

    As the model's own loss of that example alone: an answer is not sought in padding either.

    Args:
        model: a BLOOM with a head of classes, of spans, or a language model.
        batch: all examples, as a data collator pads them.

    Raises:
        InputError: labels that are no numbers of classes, or an example without; answers outside
            their tokens, or padding on the left of them; a model without a head.
    """

    def __init__(self, model: Any, batch: Mapping[str, Tensor]) -> None:
        super().__init__("cross_entropy")
        self.name = "loss"
        self.data = dataset(model, batch["input_ids"], batch.get("attention_mask"))
        self.head = head_of(model)
        self.spans = ENDS[0] in batch
        self.target = (
            _ends(self.data, batch)
            if self.spans
            else _classes(self.data, batch["labels"], self.head)
        )

    def targets(self, data: Dataset) -> Target:
        """The labels."""
        return self.target

    def values(
        self,
        stream: Float[Tensor, "row pos d_model"],
        unembed: Any,
        *,
        target: Target | None,
        **others: Any,
    ) -> Float[Tensor, " row"]:
        """The loss of every row, of the stream at all columns."""
        assert target is not None
        if self.spans:
            logits = _wide(unembed(stream)).masked_fill(~target.counts[..., None], -torch.inf)
            each = torch.where(target.ids > 0, logits.log_softmax(1), 0.0)
            return -each.sum((1, 2)) / len(ENDS)
        counts = target.counts
        each = F.cross_entropy(_wide(unembed(stream[counts])), target.ids[counts], reduction="none")
        sums = torch.zeros(counts.shape, dtype=each.dtype, device=each.device)
        sums[counts] = each
        return sums.sum(-1) / counts.sum(-1)


class TaskSweep(Sweep):
    """A sweep whose metric reads the task head in the place of an unembedding."""

    def judge(self, clean: CleanRun, targets: Any, examples: slice) -> Judge:
        """What measures runs that resume from a clean one."""
        head = head_of(self.model)
        return Judge(
            self.metric, head, clean.data, clean=clean.stream, targets=targets, examples=examples
        )


def head_of(model: Any) -> Any:
    """What turns the final stream into a task model's logits.

    Raises:
        InputError: the model has none.
    """
    for name in HEADS:
        if hasattr(model, name):
            return getattr(model, name)
    raise InputError(
        f"a {type(model).__name__} has no task head, so no loss. Give `with_task_head(model, "
        "bloomlab.BloomForTokenClassification, ...)`, trained, or a language model."
    )


def _classes(data: Dataset, labels: Tensor, head: Any) -> Target:
    """Labels of texts, at their last tokens; of tokens; or next tokens."""
    labels = labels.to(data.tokens.device)
    if labels.is_floating_point() or labels.shape not in (data.tokens.shape, (len(data),)):
        raise InputError(
            f"labels are {labels.dtype} {tuple(labels.shape)}, expected numbers of classes, one "
            f"for each of {len(data)} texts or of their tokens."
        )
    n = head.out_features if isinstance(head, nn.Linear) else None
    if n is not None and int(labels.max()) >= n:
        raise InputError(f"labels run to {int(labels.max())}, expected 0 to {n - 1}.")
    if labels.ndim == 1:
        columns = torch.arange(data.tokens.shape[1], device=labels.device)
        last = (columns * data.attended).argmax(-1)
        labels = torch.full_like(data.tokens, NO_LABEL).scatter(1, last[:, None], labels[:, None])
    elif n is None:  # of the next token
        labels = F.pad(labels, (0, 1), value=NO_LABEL)[:, 1:]
    counts = (labels != NO_LABEL) & data.attended  # padding on the left has a next token
    if lacking := (~counts.any(-1)).nonzero()[:, 0].tolist():
        raise InputError(f"example {lacking[0]} has no label: every one is {NO_LABEL}. Drop it.")
    return Target(ids=labels, counts=counts)


def _ends(data: Dataset, batch: Mapping[str, Tensor]) -> Target:
    """1 at the first token of the answer, and at the last one."""
    ids = torch.zeros(*data.tokens.shape, len(ENDS), dtype=torch.long, device=data.tokens.device)
    if not bool(data.attended[:, 0].all()):
        raise InputError(
            "questions are padded on the left, which moves the columns of their answers. Collate "
            "with a tokenizer whose padding_side is 'right'."
        )
    lengths = data.attended.sum(-1)
    for i, name in enumerate(ENDS):
        columns = batch[name].to(ids.device)
        if wrong := ((columns < 0) | (columns >= lengths)).nonzero()[:, 0].tolist():
            raise InputError(
                f"example {wrong[0]} has {name} {int(columns[wrong[0]])}, which is outside its "
                "tokens. Drop it."
            )
        ids[torch.arange(len(ids)), columns, i] = 1
    return Target(ids=ids, counts=data.attended)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
