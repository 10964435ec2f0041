"""Which tokens make an example: one of them, those of a word, or all of a text."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments.dataset import Dataset

POOLS = ("last", "first", "mean")


@dataclass(frozen=True, kw_only=True, slots=True)
class Spans:
    """Runs of tokens, in the order of their texts.

    Attributes:
        text: number of each example's text.
        first: column of its first token.
        last: column of its last token.
    """

    text: Int[Tensor, " example"]
    first: Int[Tensor, " example"]
    last: Int[Tensor, " example"]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.text)

    @classmethod
    def of_tokens(cls, attended: Bool[Tensor, "batch pos"]) -> "Spans":
        """Every attended token."""
        text, column = attended.cpu().nonzero().unbind(1)
        return cls(text=text, first=column, last=column)

    @classmethod
    def of_texts(cls, attended: Bool[Tensor, "batch pos"]) -> "Spans":
        """Every text, from its first attended token to its last."""
        column = torch.arange(attended.shape[1]).expand(attended.shape)
        attended = attended.cpu()
        first = torch.where(attended, column, attended.shape[1]).amin(1)
        last = torch.where(attended, column, -1).amax(1)
        return cls(text=torch.arange(len(attended)), first=first, last=last)

    def check(self, data: Dataset) -> None:
        """Raise unless these are spans of these texts.

        Raises:
            InputError: no spans, not in order, outside the texts, or ends that are padding.
            ShapeError: columns of unequal number.
        """
        if len(self.first) != len(self) or len(self.last) != len(self):
            got = (len(self.first), len(self.last))
            raise ShapeError("spans", got=got, expected=f"{len(self)} first and last columns")
        if not len(self):
            raise InputError("there are no spans. Give at least one example.")
        if bool((self.text.diff() < 0).any()):
            raise InputError("spans are not in the order of their texts. Sort them by `text`.")
        rows, columns = data.tokens.shape
        if int(self.text[0]) < 0 or int(self.text[-1]) >= rows:
            raise InputError(f"spans name texts up to {int(self.text[-1])}, there are {rows}.")
        within = (self.first >= 0) & (self.first <= self.last) & (self.last < columns)
        if bool(within.all()):
            attended = data.attended.cpu()
            within = attended[self.text, self.first] & attended[self.text, self.last]
        if not bool(within.all()):
            i = int((~within).nonzero()[0, 0])
            raise InputError(
                f"span {i} of text {int(self.text[i])} runs from column {int(self.first[i])} to "
                f"{int(self.last[i])}, expected attended columns of 0 ... {columns - 1}, in order."
            )

    def of_rows(self, rows: Int[Tensor, " row"]) -> tuple[Int[Tensor, " some"], "Spans"]:
        """Numbers of the examples of some texts, and these, with texts numbered as in `rows`."""
        start = torch.searchsorted(self.text, rows)
        stop = torch.searchsorted(self.text, rows, right=True)
        pairs = list(zip(start.tolist(), stop.tolist(), strict=True))
        chosen = torch.cat([torch.arange(a, b) for a, b in pairs])
        text = torch.arange(len(rows)).repeat_interleave(stop - start)
        return chosen, Spans(text=text, first=self.first[chosen], last=self.last[chosen])


@dataclass(frozen=True, kw_only=True, slots=True)
class Pooling:
    """How a span's vectors become one: weights are summed over members.

    Attributes:
        example: number of the example of each member.
        text: its text.
        column: its column.
        size: number of members of each example.
    """

    example: Int[Tensor, " member"]
    text: Int[Tensor, " member"]
    column: Int[Tensor, " member"]
    size: Int[Tensor, " example"]

    @classmethod
    def of(cls, spans: Spans, attended: Bool[Tensor, "batch pos"], pool: str) -> "Pooling":
        """Of the last, the first or all attended tokens of each span.

        Raises:
            UnknownNameError: no such pooling.
        """
        if pool not in POOLS:
            raise UnknownNameError("pooling", pool, POOLS)
        first = spans.last if pool == "last" else spans.first
        last = spans.first if pool == "first" else spans.last
        long = last - first + 1
        example = torch.arange(len(spans)).repeat_interleave(long)
        within = torch.arange(len(example)) - (long.cumsum(0) - long)[example]
        column, text = first[example] + within, spans.text[example]
        seen = attended.cpu()[text, column]
        example, text, column = example[seen], text[seen], column[seen]
        size = torch.bincount(example, minlength=len(spans))
        return cls(example=example, text=text, column=column, size=size)

    def __call__(self, value: Tensor) -> Tensor:
        """The examples' vectors [example ...] of a value [batch pos ...], in float32 at least."""
        members = value[self.text.to(value.device), self.column.to(value.device)]
        members = members.to(torch.promote_types(value.dtype, torch.float32))
        if len(members) == len(self.size):
            return members.cpu()
        pooled = members.new_zeros(len(self.size), *members.shape[1:])
        pooled.index_add_(0, self.example.to(value.device), members)
        size = self.size.to(pooled).view(-1, *[1] * (members.ndim - 1))
        return (pooled / size).cpu()
