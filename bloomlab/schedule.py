"""An edit at a hook point, and when, where and in which rows it acts."""

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bloomlab.errors import InputError, UnknownNameError

GRIDS = ("hook_attn_scores", "hook_pattern", "hook_alibi")  # batch head query key; others batch pos
PERIODS: dict[str, Callable[[int], bool]] = {"prompt": operator.not_, "generation": bool}

Pick = slice | list[int]


class Spot(NamedTuple):
    """The part of a hook's value that an edit gets; the value's axes are batch pos (head) last."""

    name: str
    rows: Pick
    columns: list[int]
    heads: Pick
    n_row: int
    n_head: int
    end: int  # columns so far: the keys of a grid


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class Intervention:
    """An edit at one hook point with a schedule; made by `bloomlab.interventions`' factories.

    Goes into `generate` and `stream` (`interventions=[...]`), and stands wherever a pair of hook
    name and function does: `model.run_with_hooks(tokens, fwd_hooks=[...])`, `model.hooks(...)`.
    Those two take the text for one prompt that starts at column 0 (start 0, step 0), so that
    `during("generation")` and `at_steps` find nothing to act on; a forward that goes on from a
    cache refuses them. There say it: `fwd_hooks=edit.hooks(start, step)`.

    Attributes:
        name: the hook point; checked when it is attached.
        edit: maps the scheduled part of the value, `[row column ...]` or `[row column head ...]`,
            and its place to new values; the value itself stays as it is.
        heads: the heads it acts on; None: all, or a hook point without heads.
        columns: the columns it may act on; None: all.
        rows: the rows it may act on; None: all.
        enters_cache: whether the edited step's keys and values are what later steps see.
        steps: every one must hold for a step.
        predicates: every one must hold for a step and a column.
        by_column: whether the edit itself asks for columns.
    """

    name: str
    edit: Callable[[Tensor, Spot], Tensor]
    heads: tuple[int, ...] | None = None
    columns: frozenset[int] | None = None
    rows: frozenset[int] | None = None
    enters_cache: bool = True
    steps: tuple[Callable[[int], bool], ...] = ()
    predicates: tuple[Callable[[int, int], Any], ...] = ()
    by_column: bool = False

    @property
    def counts(self) -> bool:
        """Whether it matters at which column and step a forward starts."""
        return bool(self.columns is not None or self.steps or self.predicates or self.by_column)

    def __repr__(self) -> str:
        made = getattr(self.edit, "func", self.edit).__name__.strip("_")
        parts = {"heads": self.heads, "columns": self.columns, "rows": self.rows}
        said = [f"{name}={sorted(of)}" for name, of in parts.items() if of is not None]
        limits = len(self.steps) + len(self.predicates)
        said += [f"{limits} limits on steps"] if limits else []
        said += [] if self.enters_cache else ["outside the cache"]
        return f"Intervention({', '.join([self.name, made, *said])})"

    def during(self, period: Any) -> "Intervention":
        """Acts only while the "prompt" runs (step 0) or only in the "generation" after it."""
        if period not in PERIODS:
            raise InputError(f"a period is {period!r}, expected one of {list(PERIODS)}.")
        return replace(self, steps=(*self.steps, PERIODS[period]))

    def at_steps(self, steps: Any) -> "Intervention":
        """Acts only at a step of the generation, or several; 0 is the prompt's forward."""
        wanted = frozenset(numbers("steps", steps))
        return replace(self, steps=(*self.steps, wanted.__contains__))

    def at_columns(self, columns: Any) -> "Intervention":
        """Acts only on a column, or several: of queries, where the hook has queries and keys."""
        wanted = frozenset(numbers("columns", columns))
        wanted = wanted if self.columns is None else wanted & self.columns
        return replace(self, columns=wanted)

    def when(self, predicate: Any) -> "Intervention":
        """Acts only where `predicate(step, column)` is true; asked for every new column."""
        if not callable(predicate):
            raise InputError(f"a predicate is {predicate!r}, expected a function of step, column.")
        return replace(self, predicates=(*self.predicates, predicate))

    def on_rows(self, rows: Any) -> "Intervention":
        """Acts only on a row of the batch, or several."""
        wanted = frozenset(numbers("rows", rows))
        return replace(self, rows=wanted if self.rows is None else wanted & self.rows)

    def outside_cache(self) -> "Intervention":
        """Changes a step's logits only: later steps see keys and values of a clean forward.

        `model.stream` sees to that; in a forward by hand it means nothing.
        """
        return replace(self, enters_cache=False)

    def hooks(self, start: int = 0, step: int = 0) -> list[tuple[str, Any]]:
        """The pairs to attach for one forward; none where the schedule rules all of it out.

        Args:
            start: first column the forward sees: the length of its cache.
            step: step of the generation. With `start` 0 a later step is the text so far run again:
                its last `step` columns were generated, and each gets the edits of its own step
                (outside the cache: only the last one gets any).
        """
        belongs = [step] if start or not self.enters_cache else range(step + 1)
        timely = any(all(test(t) for test in self.steps) for t in belongs)
        if not timely or (self.columns is not None and not any(c >= start for c in self.columns)):
            return []
        return [(self.name, partial(self._act, start=start, step=step))]

    def __iter__(self) -> Iterator[Any]:
        """Name and function of a forward from column 0 at step 0."""
        return iter((self.name, partial(self._act, start=0, step=0)))

    def _act(self, value: Tensor, hook: Any, *, start: int, step: int) -> None:
        """Edit a hook's value, which is its own copy, in place."""
        name = str(hook.name)
        part = value.movedim(2, 1) if name.endswith(GRIDS) else value
        has_heads = part.ndim == 4
        n_row, n_new, n_head = (*part.shape[:2], part.shape[2] if has_heads else 0)
        positions = self._scheduled(start, step, n_new)
        rows = range(n_row) if self.rows is None else sorted(self.rows)
        heads = range(n_head) if self.heads is None else self._heads_at(hook)
        if rows and rows[-1] >= n_row:
            raise InputError(f"no row {rows[-1]}: the batch at {name} has {n_row}, from 0.")
        if heads and heads[-1] >= n_head:
            where = f"{name} has {n_head}, from 0." if n_head else f"{name} has no heads."
            raise UnknownNameError("head", heads[-1], (), where=where)
        if not positions or not rows or (has_heads and not heads):
            return
        picks = [span(rows), span(positions), span(heads)][: 3 if has_heads else 2]
        index = index_of(picks, part)
        columns = [start + position for position in positions]
        spot = Spot(name, picks[0], columns, span(heads), n_row, n_head, start + n_new)
        # autograd may need the old values, which a view would lose
        part[index] = self.edit(part[index].clone(), spot)

    def _heads_at(self, hook: Any) -> Sequence[int]:
        """Where the heads stand at a hook point, whose layer may be pruned."""
        assert self.heads is not None
        numbered = getattr(hook, "heads", None)
        if numbered is None or (numbered and numbered == tuple(range(len(numbered)))):
            return self.heads
        places = {head: place for place, head in enumerate(numbered)}
        for head in self.heads:
            if head not in places:
                left = ", ".join(map(str, numbered)) or "none"
                where = f"{hook.name} has heads {left}; others were pruned, or there never were."
                raise UnknownNameError("head", head, (), where=where)
        return [places[head] for head in self.heads]

    def _scheduled(self, start: int, step: int, n_new: int) -> list[int]:
        """The new columns, counted from `start`, that the schedule lets through."""
        # the whole text once more: its last column belongs to this step, the ones before to earlier
        again = step > 0 and start == 0
        first = n_new - 1 if again and not self.enters_cache else 0
        chosen = []
        for i in range(first, n_new):
            at = max(0, step - (n_new - 1 - i)) if again else step
            if (
                (self.columns is None or start + i in self.columns)
                and all(test(at) for test in self.steps)
                and all(test(at, start + i) for test in self.predicates)
            ):
                chosen.append(i)
        return chosen


def numbers(what: str, values: Any) -> tuple[int, ...]:
    """Whole numbers from 0, sorted, each once; of one number or several.

    Raises:
        InputError: anything else, or none at all.
    """
    given = values.tolist() if hasattr(values, "tolist") else values
    try:
        found = list(given) if isinstance(given, Iterable) else [given]
        if any(isinstance(one, bool) for one in found):
            raise TypeError
        found = sorted({operator.index(one) for one in found})
    except TypeError:
        found = []
    if not found or found[0] < 0:
        raise InputError(f"{what}: got {values!r}, expected a whole number from 0, or several.")
    return tuple(found)


def span(wanted: Sequence[int]) -> Pick:
    """A slice where the numbers follow each other: reading it copies nothing."""
    if wanted and wanted[-1] - wanted[0] + 1 == len(wanted):
        return slice(wanted[0], wanted[-1] + 1)
    return list(wanted)


def index_of(picks: Sequence[Pick], value: Tensor) -> tuple[Any, ...]:
    """An index of the first axes of `value` that keeps every axis where it is."""
    if sum(isinstance(pick, list) for pick in picks) < 2:
        return tuple(picks)
    axes = [torch.arange(n, device=value.device) for n in value.shape[: len(picks)]]
    return torch.meshgrid(*(a[p] for a, p in zip(axes, picks, strict=True)), indexing="ij")
