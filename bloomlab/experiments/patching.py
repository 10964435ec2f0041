"""Activation patching: where does the difference between two texts live?

One place of a run is taken from a run of another text, and the metric says how much of the other
text's answer comes with it (Vig et al., 2020, arXiv:2004.12265; Meng et al., 2022; Zhang and Nanda,
2023, arXiv:2309.16042, on which metric and which direction). The result equals one full forward a
cell, as `transformer_lens.patching` does it; see `patch_starts` and `onward` for why it is faster.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.experiments.contrast import Contrast, Effects
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.patch_cells import Cell, axes_of, cells_of, groups
from bloomlab.experiments.patched_runs import PatchedRuns


@dataclass(frozen=True, kw_only=True, repr=False)
class Patching(Framed, Effects):
    """The metric of patched runs, for every cell and example.

    Attributes:
        cells: the places, one run each.
        axes: what tells them apart, in the order of `grid`.
        site: what was patched.
    """

    cells: list[Cell]
    axes: tuple[str, ...]
    site: str

    @property
    def frame(self) -> pd.DataFrame:
        """One row a cell: its axes, effect, stderr, share, share_stderr.

        Standard errors are over examples, that of the share by the delta method; NaN for one.
        """
        return self.framed({axis: [getattr(c, axis) for c in self.cells] for axis in self.axes})

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
        answers: tokens (ids or texts) [batch], or [batch 2] of right and wrong ones for
            "logit_difference".
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
    pair = Contrast.of(
        model,
        clean,
        corrupted,
        metric,
        answers=answers,
        positions=positions,
        direction=direction,
        rows=rows,
    )
    axes = axes_of(site, by)
    cells = cells_of(model, axes, layers=layers, heads=heads, columns=columns, n_pos=pair.n_pos)

    def runs(examples: slice, **fields: Any) -> PatchedRuns:
        return PatchedRuns(model=model, site=site, **fields)

    found = pair.measure(cells, runs, partial(groups, cells), progress=progress)
    return Patching(cells=cells, axes=axes, site=site, **found)
