"""What heads look at, beside what their ALiBi slope alone would look at; see `analysis.roles`."""

import math
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bloomlab.analysis.roles import (
    at_distance,
    attention_distance,
    attention_entropy,
    attention_to,
    content_free_pattern,
    duplicate_targets,
    first_targets,
    induction_targets,
    listed_targets,
    looks_at_distance,
    previous_targets,
    visible_keys,
)
from bloomlab.errors import InputError
from bloomlab.experiments.dataset import Dataset, dataset

ROLES = ("induction", "previous", "duplicate", "first", "delimiter")
REACH = 8  # tokens back: where a positional head may look
N_SPECIAL = 4  # ids that random tokens leave out: <unk>, <s>, </s>, <pad>
AT_ONCE = 2**24  # numbers of a layer's patterns

Measure = tuple[Tensor, Tensor]  # values [batch head pos], and the queries that count [batch pos]


@torch.no_grad()
def head_roles(
    model: Any,
    tokens: Any = None,
    attention_mask: Any = None,
    *,
    delimiters: Any = None,
    progress: bool = True,
) -> pd.DataFrame:
    """One row a head: layer, head, and two columns for each measure.

    `induction`, `previous`, `duplicate`, `first` (the sink), `delimiter`: mean attention of the
    queries that have such a token before them, 0 ... 1. `positional`: share of queries that look
    most at one distance, the best of 0 to 8, which is `positional_distance`. `entropy` in bits and
    `distance` in tokens: means over the queries that see two keys or more. `<measure>_excess` is
    the same less what a head of this slope scores if all tokens are alike to it. NaN where no
    query counts.

    Layers are measured while the model runs, a few examples at a time: no layer's patterns are
    kept. Heads of a pruned model keep their numbers. Patterns are taken before the head mask.

    Args:
        model: a BLOOM of any class, whole or pruned.
        tokens: texts, ids [batch pos] or a dict with `attention_mask`; None: `repeated_tokens`.
        attention_mask: [batch pos], 0 for padding.
        delimiters: token ids; None: tokens of punctuation and line ends alone, if the model has
            its tokenizer.
        progress: show a bar while it takes long.

    Raises:
        InputError: no data, or delimiters that are no ids.
        ShapeError: a mask that does not fit.
    """
    data = dataset(model, repeated_tokens(model) if tokens is None else tokens, attention_mask)
    marks = _delimiters(model, data, delimiters)
    tallies = [_Tally(len(block.attn.heads)) for block in model.blocks]
    row = max(1, model.config.n_head) * data.tokens.shape[1] ** 2
    for _, part in data.chunks(max(1, AT_ONCE // row), progress=progress):
        measured = _Measuring(part, marks)
        hooks = [
            (f"blocks.{layer}.attn.hook_pattern", measured.hook(block.attn.slopes, tally))
            for layer, (block, tally) in enumerate(zip(model.blocks, tallies, strict=True))
        ]
        mask = None if part.mask is None else part.mask.long()
        with model.hooks(fwd_hooks=hooks):
            model.backbone(part.tokens, attention_mask=mask, use_cache=False)
    rows = [
        {"layer": layer, "head": head, **measures}
        for layer, (block, tally) in enumerate(zip(model.blocks, tallies, strict=True))
        for head, measures in zip(block.attn.heads, tally.rows(), strict=True)
    ]
    return pd.DataFrame(rows, columns=["layer", "head", *COLUMNS])


def repeated_tokens(
    model: Any, *, period: int = 32, rows: int = 16, seed: int = 7
) -> Int[Tensor, "batch pos"]:
    """<s>, `period` evenly drawn tokens, and the same again."""
    source = torch.Generator().manual_seed(seed)
    tokens = torch.randint(N_SPECIAL, model.config.vocab_size, (rows, period), generator=source)
    first = torch.full((rows, 1), model.config.bos_token_id)
    return torch.cat([first, tokens, tokens], 1).to(model.device)


def _columns() -> Iterator[str]:
    for name in (*ROLES, "positional"):
        yield from (name, f"{name}_excess")
    yield "positional_distance"
    for name in ("entropy", "distance"):
        yield from (name, f"{name}_excess")


COLUMNS = tuple(_columns())


class _Measuring:
    """Measures patterns of some examples, and those of heads to which all tokens are alike."""

    def __init__(self, data: Dataset, delimiters: Int[Tensor, " some"]) -> None:
        tokens, self.attended = data.tokens, data.attended
        self.same_rows = data.mask is None
        self.targets = {
            "induction": induction_targets(tokens, self.attended),
            "previous": previous_targets(self.attended),
            "duplicate": duplicate_targets(tokens, self.attended),
            "first": first_targets(self.attended),
            "delimiter": listed_targets(tokens, self.attended, delimiters),
        }
        self.several = visible_keys(self.attended).sum(-1) > 1
        self.at = [at_distance(self.attended, d).any(-1) for d in range(REACH + 1)]

    def hook(self, slopes: Float[Tensor, " head"], tally: "_Tally") -> Callable[..., None]:
        """A hook at a layer's pattern that adds to its tally."""

        def look(pattern: Tensor, hook: Any) -> None:
            wide = pattern.to(torch.promote_types(pattern.dtype, torch.float32))
            attended = self.attended[:1] if self.same_rows else self.attended
            alike = content_free_pattern(slopes.detach().to(wide), attended)
            for kind, one in (("", wide), ("_alike", alike)):
                for name, (values, counting) in self._measures(one):
                    tally.add(name + kind, values, counting)

        look.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
        return look

    def _measures(
        self, pattern: Float[Tensor, "#batch head pos pos"]
    ) -> Iterator[tuple[str, Measure]]:
        for name, targets in self.targets.items():
            yield name, (attention_to(pattern, targets), targets.any(-1))
        yield "entropy", (attention_entropy(pattern), self.several)
        yield "distance", (attention_distance(pattern, self.attended), self.several)
        for d, counting in enumerate(self.at):
            yield f"at {d}", (looks_at_distance(pattern, self.attended, d), counting)


class _Tally:
    """Sums of one layer, over the examples seen so far."""

    def __init__(self, n_head: int) -> None:
        self.n_head = n_head
        self.sums: dict[str, Any] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)

    def add(
        self,
        name: str,
        values: Float[Tensor, "#batch head pos"] | Bool[Tensor, "#batch head pos"],
        counting: Bool[Tensor, "batch pos"],
    ) -> None:
        """Add the values of the queries that count."""
        kept = torch.where(counting[:, None], values, 0)
        self.sums[name] = self.sums[name] + kept.sum((0, 2), dtype=torch.float64).cpu()
        self.counts[name] += int(counting.sum())

    def rows(self) -> Iterable[dict[str, float]]:
        """The columns of each head."""
        return [self._row(head) for head in range(self.n_head)]

    def _row(self, head: int) -> dict[str, float]:
        def mean(name: str) -> float:
            n = self.counts[name]
            return float(self.sums[name][head]) / n if n else math.nan

        def both(name: str, column: str = "") -> dict[str, float]:
            found, column = mean(name), column or name
            return {column: found, f"{column}_excess": found - mean(f"{name}_alike")}

        seen = [d for d in range(REACH + 1) if self.counts[f"at {d}"]]
        best = max(seen, key=lambda d: mean(f"at {d}"))
        row = {key: value for name in ROLES for key, value in both(name).items()}
        row |= {**both(f"at {best}", "positional"), "positional_distance": best}
        return row | both("entropy") | both("distance")


def _delimiters(model: Any, data: Dataset, given: Any) -> Int[Tensor, " some"]:
    """Ids of the delimiters among the data's tokens, or the given ones."""
    if given is not None:
        ids = torch.as_tensor(given, device=data.tokens.device).reshape(-1)
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise InputError(f"delimiters is {given!r:.60}, expected token ids.")
        return ids
    tokenizer, chosen = model.tokenizer, []
    if tokenizer is not None:
        chosen = [i for i in data.tokens.unique().tolist() if _is_delimiter(tokenizer.decode([i]))]
    return torch.tensor(chosen, dtype=torch.long, device=data.tokens.device)


def _is_delimiter(text: str) -> bool:
    ink = text.strip(" ")
    return bool(ink) and all(c == "\n" or unicodedata.category(c).startswith("P") for c in ink)
