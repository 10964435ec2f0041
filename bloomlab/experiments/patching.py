"""Activation patching: where does the difference between two texts live?

One place of a run is taken from a run of another text, and the metric says how much of the other
text's answer comes with it (Vig et al., 2020, arXiv:2004.12265; Meng et al., 2022; Zhang and Nanda,
2023, arXiv:2309.16042, on which metric and which direction). The result equals one full forward a
cell, as `transformer_lens.patching` does it; see `patch_starts` and `onward` for why it is faster.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.analysis.intervals import standard_error
from bloomlab.errors import UnknownNameError
from bloomlab.experiments.edits import Evaluations
from bloomlab.experiments.judge import Judge
from bloomlab.experiments.metrics import Metric
from bloomlab.experiments.patch_cells import Cell, axes_of, cells_of, groups
from bloomlab.experiments.patched_runs import PatchedRuns
from bloomlab.experiments.sweep import rows_that_fit
from bloomlab.experiments.text_pairs import aligned

DIRECTIONS = ("denoise", "noise")


@dataclass(frozen=True, kw_only=True)
class Patching:
    """The metric of patched runs, for every cell and example.

    Attributes:
        cells: the places, one run each.
        axes: what tells them apart, in the order of `grid`.
        values: the metric of each run.
        clean: the metric of the clean texts.
        corrupted: the metric of the corrupted texts.
        site: what was patched.
        direction: "denoise": clean values in corrupted runs; "noise": the reverse.
        metric: its name.
        evaluations: how much was computed.
    """

    cells: list[Cell]
    axes: tuple[str, ...]
    values: Float[Tensor, "cell example"]
    clean: Float[Tensor, " example"]
    corrupted: Float[Tensor, " example"]
    site: str
    direction: str
    metric: str
    evaluations: Evaluations

    @property
    def effects(self) -> Float[Tensor, "cell example"]:
        """Patched - unpatched, in the metric's unit."""
        return self.values - (self.corrupted if self.direction == "denoise" else self.clean)

    @property
    def total(self) -> Float[Tensor, " example"]:
        """What patching everything would do: clean - corrupted, or the reverse for "noise"."""
        whole = self.clean - self.corrupted
        return whole if self.direction == "denoise" else -whole

    @property
    def share(self) -> Float[Tensor, " cell"]:
        """Mean effect over mean total: 0 nothing, 1 as much as patching everything.

        NaN where clean and corrupted texts do not differ in the metric.
        """
        total = self.total.mean()
        return self.effects.mean(-1) / torch.where(total == 0, torch.nan, total)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a cell: its axes, effect, stderr, share, share_stderr.

        Standard errors are over examples, that of the share by the delta method; NaN for one.
        """
        off = self.effects - self.share[:, None] * self.total
        columns: dict[str, Any] = {
            axis: [getattr(cell, axis) for cell in self.cells] for axis in self.axes
        }
        columns["effect"] = self.effects.mean(-1).tolist()
        columns["stderr"] = standard_error(self.effects).tolist()
        columns["share"] = self.share.tolist()
        columns["share_stderr"] = (standard_error(off) / self.total.mean().abs()).tolist()
        return pd.DataFrame(columns)

    @property
    def grid(self) -> Float[Tensor, "*cells"]:
        """`share` with one axis for each of `axes`; NaN where it was not asked for.

        Axes are as long as the model, or the text, needs up to the last cell.
        """
        where = [torch.tensor([getattr(cell, axis) for cell in self.cells]) for axis in self.axes]
        found = torch.full([int(w.max()) + 1 for w in where], torch.nan, dtype=self.values.dtype)
        found[tuple(where)] = self.share
        return found


@torch.no_grad()
def patch_activations(
    model: Any,
    clean: Any,
    corrupted: Any,
    site: str = "resid_pre",
    metric: Any = "logit_difference",
    *,
    answers: Any = None,
    positions: Any = -1,
    by: str | None = None,
    direction: str = "denoise",
    layers: Any = None,
    heads: Any = None,
    columns: Any = None,
    rows: int | None = None,
    progress: bool = True,
) -> Patching:
    """The metric with each place of a site taken from the other text's run.

    | site | cells (`by`; the first is usual) |
    |---|---|
    | "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out" | "position", "layer" |
    | "kv": what the cache holds of a token, all heads | "position", "layer" |
    | "q", "k", "v", "z" of a head | "position", "head" |
    | "pattern", "attn_scores" of a head | "head", "position" (a query's row), "edge" |

    Args:
        model: a BLOOM with an unembedding; no hooks attached.
        clean: texts, ids [batch pos] or a dict with `attention_mask`.
        corrupted: as many texts, token by token as long.
        site: what is patched.
        metric: "logit_difference", "probability", "cross_entropy", "kl" (from the clean run),
            "accuracy" or a function (logits [batch pos vocab], tokens [batch pos]) -> [batch].
        answers: token ids [batch], or [batch 2] of right and wrong ones for "logit_difference".
        positions: columns whose logits the metric sees: None all, -1 the last, or several. Next
            tokens, where the metric asks for them, are the clean text's.
        by: how finely the site is cut.
        direction: "denoise" puts clean values into runs of the corrupted text, "noise" corrupted
            ones into runs of the clean text.
        layers: which; None: all.
        heads: which; None: all.
        columns: which tokens (of a pattern: queries); None: all.
        rows: rows in a forward; None: by free memory.
        progress: show a bar while it takes long.

    Returns:
        A `Patching`; its `frame` has a row a cell, its `grid` the shares.

    Raises:
        UnknownNameError: no such site, direction, metric or way to cut.
        InputError: texts that are not as long as each other (names the example), cells that are
            not there, hooks attached.
        ShapeError: another number of texts, or answers that do not fit.
    """
    if direction not in DIRECTIONS:
        raise UnknownNameError("direction", direction, DIRECTIONS)
    pair = aligned(model, clean, corrupted)
    measured = Metric(metric, positions=positions, answers=answers)
    axes, n_pos = axes_of(site, by), pair[0].tokens.shape[1]
    cells = cells_of(model, axes, layers=layers, heads=heads, columns=columns, n_pos=n_pos)
    base, source = reversed(pair) if direction == "denoise" else pair
    targets = measured.targets(pair[0])
    at_once, evaluations = rows or rows_that_fit(model, base), Evaluations()
    wide = torch.promote_types(model.dtype, torch.float32)
    values = torch.empty(len(cells), len(base), dtype=wide)
    ends = torch.empty(2, len(base), dtype=wide)
    bar = tqdm(total=len(cells) * len(base), unit="run", delay=2, disable=not progress)
    with bar:
        for start, part in base.chunks(min(len(base), at_once)):
            examples = slice(start, start + len(part))
            runs = PatchedRuns(
                model=model,
                base=part,
                source=source.rows(examples.start, examples.stop),
                site=site,
                columns=measured.columns(n_pos),
                evaluations=evaluations,
            )
            ours, theirs = (runs.stream, runs.theirs)[:: -1 if direction == "denoise" else 1]
            judge = Judge(
                measured,
                model.unembed,
                pair[0].rows(examples.start, examples.stop),
                clean=ours,
                targets=targets,
                examples=examples,
            )
            ends[:, examples] = judge(torch.cat([ours, theirs]), 2)
            for group in groups(cells, max(1, at_once // len(part))):
                stream = runs.run([cells[i] for i in group])
                values[group, examples] = judge(stream, len(group))
                bar.update(len(group) * len(part))
    return Patching(
        cells=cells,
        axes=axes,
        values=values,
        clean=ends[0],
        corrupted=ends[1],
        site=site,
        direction=direction,
        metric=measured.name,
        evaluations=evaluations,
    )
