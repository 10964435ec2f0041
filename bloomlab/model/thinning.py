"""Dropping columns of a cache, row by row, and really freeing their memory."""

from itertools import pairwise
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Bool, Int
from torch import Tensor

from bloomlab.model.pieces import Piece, Pieces, joined, whole


class Kept(NamedTuple):
    """What each row keeps: columns in ascending order, moved together at the right."""

    columns: Int[Tensor, "#batch kept"]  # where they stood before
    present: Bool[Tensor, "#batch kept"]  # False where a row keeps fewer than another

    def of(self, marks: Tensor) -> Tensor:
        """The kept columns of something said about each token [batch key]; 0 where not present."""
        rows = max(len(marks), len(self.columns))
        index = self.columns.expand(rows, -1)
        return marks.expand(rows, -1).gather(1, index) * self.present


def thinned(layers: list[Pieces], keep: Bool[Tensor, "batch key"]) -> tuple[list[Pieces], Kept]:
    """The kept columns of every layer; a piece that keeps all of its columns is shared.

    Rows that share a piece go on sharing it if they keep the same columns of it. A row that keeps
    fewer columns of a piece than another is filled up with columns that are not `present`.
    """
    n_row = len(keep)
    if bool((keep == keep[:1]).all()):
        keep = keep[:1]
    if len({tuple((one.rows, one.length) for one in pieces) for pieces in layers}) > 1:
        layers = [(whole(*joined(pieces, n_row)),) for pieces in layers]
    plans, columns, present, start = [], [], [], 0
    for one in layers[0]:
        plan = _plan(keep[:, start : start + one.length], one.rows)
        plans.append(plan)
        share = 1 if len(plan.columns) == 1 else n_row // len(plan.columns)
        columns.append((plan.columns + start).repeat_interleave(share, 0))
        present.append(plan.present.repeat_interleave(share, 0))
        start += one.length
    rows = max(map(len, columns))
    kept = Kept(*(torch.cat([t.expand(rows, -1) for t in ts], 1) for ts in (columns, present)))
    return [_taken(pieces, plans, n_row) for pieces in layers], kept


def _plan(keep: Bool[Tensor, "#batch column"], stored: int) -> Kept:
    """Columns to keep of one piece: for all rows alike, for each stored row, or for each row."""
    if len(keep) > stored:
        groups = rearrange(keep, "(s r) c -> s r c", s=stored)
        if bool((groups == groups[:, :1]).all()):
            keep = groups[:, 0]
    n = int(keep.sum(-1).max())
    columns = keep.int().argsort(dim=-1, stable=True)[:, keep.shape[1] - n :]
    return Kept(columns, keep.gather(1, columns))


def _taken(pieces: Pieces, plans: list[Kept], n_row: int) -> Pieces:
    taken, copied = [], []
    for one, plan in zip(pieces, plans, strict=True):
        complete = plan.columns.shape[1] == one.length  # in order then, as the sort is stable
        if complete and bool(plan.present.all()):
            taken.append(one)
            copied.append(False)
        elif plan.columns.shape[1]:
            taken.append(whole(*(_columns(t, plan, n_row) for t in (one.k, one.v))))
            copied.append(True)
    for i, (one, other) in reversed(list(enumerate(pairwise(taken)))):
        if one.rows == other.rows and copied[i] and copied[i + 1]:
            taken[i : i + 2] = [Piece(*_merged(one, taken[i + 1]))]
            del copied[i + 1]
    return tuple(taken)


def _columns(old: Tensor, plan: Kept, n_row: int) -> Tensor:
    if len(plan.columns) == 1:
        return old[:, :, plan.columns[0]]
    if len(plan.columns) > len(old):
        old = old.repeat_interleave(n_row // len(old), 0)
    return torch.take_along_dim(old, plan.columns[:, None, :, None], 2)


def _merged(one: Piece, other: Piece) -> Piece:
    return whole(torch.cat([one.k, other.k], 2), torch.cat([one.v, other.v], 2))
