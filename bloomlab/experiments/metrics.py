"""What a run is judged by: one number an example, from logits at chosen positions."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments.dataset import Dataset

NAMES = ("accuracy", "cross_entropy", "kl", "logit_difference", "probability")
LOGITS_AT_ONCE = 2**21  # numbers, so that they stay in the processor's cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What a metric compares with, for every example and position it looks at.

    Attributes:
        ids: the right token; [.. 2] of right and wrong for "logit_difference".
        counts: where there is one.
    """

    ids: Int[Tensor, "batch pos *two"]
    counts: Bool[Tensor, "batch pos"]

    def rows(self, examples: slice, n_run: int) -> "Target":
        """Of some examples, once for every run."""
        ids, counts = self.ids[examples], self.counts[examples]
        return Target(ids=ids.repeat(n_run, *(1,) * (ids.ndim - 1)), counts=counts.repeat(n_run, 1))


class Metric:
    """A number for each example of a run, in the direction of its name.

    | name | unit | answers |
    |---|---|---|
    | "cross_entropy" | nats per token, of the next tokens or the answers | optional |
    | "kl" | nats per token, of the clean run's prediction from this one's | none |
    | "accuracy" | share of tokens that are the likeliest | optional |
    | "probability" | of the next token or the answer, mean over positions | optional |
    | "logit_difference" | logits, right minus wrong answer | [batch 2] |

    or a function (logits [batch pos vocab], tokens [batch pos]) -> [batch].

    Args:
        metric: a name or a function.
        positions: columns whose logits count: None all, -1 the last, or several.
        answers: token ids [batch], or [batch 2] of right and wrong ones; then there is one
            position.

    Raises:
        UnknownNameError: no such metric.
        InputError: answers missing, or given where none are used.
    """

    def __init__(self, metric: Any, *, positions: Any = None, answers: Any = None) -> None:
        if not callable(metric) and metric not in NAMES:
            raise UnknownNameError("metric", metric, [*NAMES, "or a function"])
        self.name = getattr(metric, "__name__", repr(metric)) if callable(metric) else metric
        self.function = metric if callable(metric) else None
        self.positions, self.answers = positions, answers
        if answers is not None and (self.function or metric == "kl"):
            raise InputError(
                f"metric {self.name!r} takes no answers. Leave them out, or take another metric, "
                "such as 'logit_difference'."
            )
        if answers is None and metric == "logit_difference":
            raise InputError(
                "logit_difference needs answers=[batch 2]: the right and the wrong token of each "
                "example."
            )

    @property
    def needs_clean(self) -> bool:
        """Whether values compare with the clean run's logits."""
        return self.name == "kl" and self.function is None

    def columns(self, n_pos: int) -> Int[Tensor, " pos"]:
        """The columns that count, sorted as given, from 0.

        Raises:
            InputError: a column that is not there.
        """
        if self.positions is None:
            return torch.arange(n_pos)
        columns = torch.as_tensor(self.positions).reshape(-1)
        wrong = (columns < -n_pos) | (columns >= n_pos)
        if columns.is_floating_point() or columns.dtype == torch.bool or bool(wrong.any()):
            raise InputError(
                f"positions is {self.positions!r}, expected columns from {-n_pos} to {n_pos - 1}."
            )
        return columns % n_pos

    def targets(self, data: Dataset) -> Target | None:
        """What the logits of each example are compared with; None for a function.

        Raises:
            InputError: a position has no next token and there are no answers.
            ShapeError: answers that do not fit the examples.
        """
        if self.function is not None:
            return None
        columns = self.columns(data.tokens.shape[1]).to(data.tokens.device)
        shape = (len(data), len(columns))
        if self.answers is not None:
            return self._answers(data, columns)
        if self.name == "kl":
            counts = data.attended[:, columns]
            if lacking := (~counts.any(-1)).nonzero()[:, 0].tolist():
                raise InputError(_padding(self.positions, lacking[0]))
            return Target(ids=data.tokens[:, columns], counts=counts)
        after = F.pad(data.tokens, (0, 1))[:, 1:][:, columns]
        attended = data.attended
        counts = attended[:, columns] & F.pad(attended, (0, 1))[:, 1:][:, columns]
        if lacking := (~counts.any(-1)).nonzero()[:, 0].tolist():
            raise InputError(
                f"metric {self.name!r} at positions {self.positions!r}: example {lacking[0]} has "
                "no next token there. Give answers=[batch], or an earlier position."
            )
        return Target(ids=after.expand(shape), counts=counts)

    def _answers(self, data: Dataset, columns: Tensor) -> Target:
        try:
            ids = torch.as_tensor(self.answers, device=data.tokens.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(
                f"answers are {self.answers!r}, expected token ids. model.to_single_token(' red') "
                "gives that of a word that is one token."
            ) from error
        expected = [len(data), 2] if self.name == "logit_difference" else [len(data)]
        if list(ids.shape) != expected or ids.is_floating_point():
            raise ShapeError("answers", got=ids.shape, expected=f"{expected} token ids")
        if len(columns) != 1:
            raise InputError(
                f"answers stand at one position, but positions={self.positions!r} names "
                f"{len(columns)}. Give positions=-1, or another."
            )
        if lacking := (~data.attended[:, columns[0]]).nonzero()[:, 0].tolist():
            raise InputError(_padding(self.positions, lacking[0]))
        return Target(
            ids=ids[:, None], counts=torch.ones_like(data.tokens[:, :1], dtype=torch.bool)
        )

    def values(
        self,
        stream: Float[Tensor, "row pos d_model"],
        unembed: Any,
        *,
        target: Target | None,
        tokens: Int[Tensor, "row pos_all"],
        clean: Float[Tensor, "row pos vocab"] | None = None,
    ) -> Float[Tensor, " row"]:
        """The metric of every row.

        Args:
            stream: output of the final norm at the positions that count.
            unembed: the model's unembedding, which makes logits of it.
            target: of these rows.
            tokens: all ids of these rows.
            clean: log-probabilities of the clean run, for "kl".

        Raises:
            InputError: a function that returns something else than a finite number a row.
        """
        if self.function is not None:
            return self._checked(self.function(unembed(stream), tokens), len(stream))
        assert target is not None
        if self.name == "logit_difference":
            return _difference(stream, unembed, target)
        each = _EACH[self.name]
        return _mean_over_positions(stream, unembed, target=target, each=each, clean=clean)

    def _checked(self, got: Any, n_row: int) -> Tensor:
        if not isinstance(got, Tensor) or got.shape != (n_row,):
            shape = tuple(got.shape) if isinstance(got, Tensor) else type(got).__name__
            raise InputError(
                f"metric {self.name!r} returned {shape}, expected a tensor [{n_row}]: one number "
                "for each example."
            )
        return got.to(torch.promote_types(got.dtype, torch.float32))


def _padding(positions: Any, example: int) -> str:
    return (
        f"positions is {positions!r}, which is padding in example {example}. Pad texts on the left "
        "(`model.to_tokens` does), so that their last tokens stand in one column."
    )


def _mean_over_positions(
    stream: Tensor, unembed: Any, *, target: Target, each: Any, clean: Tensor | None
) -> Tensor:
    """Mean over the positions that count; logits are made for a few at a time."""
    size = max(1, LOGITS_AT_ONCE // unembed.W_U.shape[-1])
    flat = [t.flatten(0, 1) for t in (stream, target.ids, *([] if clean is None else [clean]))]
    parts = []
    for some, ids, *before in zip(*(t.split(size) for t in flat), strict=True):
        logits = unembed(some)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        parts.append(each(logits, ids, *before))
    got = torch.cat(parts).view(target.counts.shape)
    counts = target.counts.to(got.dtype)
    return (got * counts).sum(-1) / counts.sum(-1)


def _difference(stream: Tensor, unembed: Any, target: Target) -> Tensor:
    """Right minus wrong logit; two rows of the unembedding instead of all."""
    directions = unembed.W_U.T[target.ids[:, 0]].to(stream.dtype)  # row 2 d_model
    logits = (stream[:, :1] * directions).sum(-1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits[:, 0] - logits[:, 1]


# The logits are these functions' own: they may write to them.


def _cross_entropy(logits: Tensor, ids: Tensor) -> Tensor:
    right = logits.gather(-1, ids[..., None])[..., 0]
    if logits.requires_grad:
        return logits.logsumexp(-1) - right
    top = logits.amax(-1, keepdim=True)  # in place: a third of the time
    return logits.sub_(top).exp_().sum(-1).log_() + top[..., 0] - right


def _accuracy(logits: Tensor, ids: Tensor) -> Tensor:
    return (logits.argmax(-1) == ids).to(logits.dtype)


def _probability(logits: Tensor, ids: Tensor) -> Tensor:
    return (-_cross_entropy(logits, ids)).exp()


def _kl(logits: Tensor, ids: Tensor, clean: Tensor) -> Tensor:
    clean = clean.to(logits.dtype)
    return (clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)


_EACH = {
    "accuracy": _accuracy,
    "cross_entropy": _cross_entropy,
    "kl": _kl,
    "probability": _probability,
}
