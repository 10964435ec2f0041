"""Attention knockout: what is lost when some tokens cannot see others, layer window by window.

Geva et al. (2023, arXiv:2304.14767): edges are cut before the softmax, so that the other keys share
their weight; or their weight is set to 0 after it, and what a head reads shrinks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bloomlab.analysis.intervals import ratio_of_means, standard_error
from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments.contrast import Contrast
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.edits import Evaluations
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.onward import Onward
from bloomlab.experiments.patch_cells import Cell, cells_of, groups
from bloomlab.experiments.predicted import ANSWERED, likeliest
from bloomlab.experiments.recorded import recorded
from bloomlab.experiments.residual_stream import asked_tokens
from bloomlab.experiments.resume import require_bare
from bloomlab.experiments.sweep import rows_that_fit

AXES = {"layer": ("layer",), "head": ("layer", "head")}


@dataclass(frozen=True, kw_only=True, repr=False)
class Knockout(Framed):
    """The metric with edges of attention cut, for every window (and head) and example.

    Attributes:
        cells: layer (the window's middle), and head.
        axes: what tells cells apart.
        values: the metric without the edges.
        clean: the metric of the whole run.
        metric: its name.
        window: layers in which edges are cut.
        renormalise: whether the other keys share the weight.
        evaluations: how much was computed.
    """

    cells: list[Cell]
    axes: tuple[str, ...]
    values: Float[Tensor, "cell example"]
    clean: Float[Tensor, " example"]
    metric: str
    window: int
    renormalise: bool
    evaluations: Evaluations

    @property
    def effects(self) -> Float[Tensor, "cell example"]:
        """Without the edges - with them, in the metric's unit."""
        return self.values - self.clean

    @property
    def frame(self) -> pd.DataFrame:
        """One row a cell: layer (head), effect, stderr, change, change_stderr.

        `change` is the mean effect over the clean mean, -1 if nothing is left. Errors are over
        examples; NaN for one.
        """
        columns: dict[str, Any] = {a: [getattr(c, a) for c in self.cells] for a in self.axes}
        change, error = ratio_of_means(self.effects, self.clean)
        scores = {
            "effect": self.effects.mean(-1),
            "stderr": standard_error(self.effects),
            "change": change,
            "change_stderr": error,
        }
        return pd.DataFrame(columns | {name: value.tolist() for name, value in scores.items()})


@torch.no_grad()
def knock_out_attention(
    model: Any,
    texts: Any,
    metric: Any = "probability",
    *,
    keys: Any,
    queries: Any = -1,
    by: str = "layer",
    window: int = 1,
    renormalise: bool = True,
    layers: Any = None,
    heads: Any = None,
    answers: Any = None,
    positions: Any = -1,
    rows: int | None = None,
    progress: bool = True,
) -> Knockout:
    """The metric when queries cannot see keys, in a window of layers around each layer.

    Args:
        model: a BLOOM with an unembedding; no hooks attached.
        texts: texts, ids [batch pos] or a dict with `attention_mask`.
        metric: as in `patch_activations`.
        keys: tokens no longer seen: numbers in each text, padding not counted, -1 the last; or
            [batch pos], True for these.
        queries: tokens that no longer see them; as `keys`. A token keeps seeing itself unless it
            is among both.
        by: "layer", all heads at once, or "head", each alone.
        window: layers in which the edges are cut: ceil(window / 2) from the layer on and the others
            before it (Geva et al. take 9).
        renormalise: cut before the softmax; False: weights are set to 0 after it, and rows of the
            pattern sum to less than 1.
        layers: middles of the windows; None: all.
        heads: for by="head"; None: all.
        answers: tokens (ids or texts) [batch], or [batch 2] of right and wrong ones for
            "logit_difference"; None: what the whole run finds likeliest.
        positions: columns whose logits the metric sees.
        rows: rows in a forward; None: by free memory.
        progress: show a bar while it takes long.

    Raises:
        UnknownNameError: no such metric or `by`.
        InputError: tokens that a text lacks, queries that would see nothing, a window below 1,
            hooks attached.
        ShapeError: masks or answers that do not fit the texts.
        UnsupportedError: heads of the model were pruned.
    """
    if by not in AXES:
        raise UnknownNameError("by", by, AXES)
    if window < 1:
        raise InputError(f"window is {window}, expected 1 or more layers.")
    data = dataset(model, texts)
    cut = _edges(data, keys, queries, renormalise=renormalise)
    if answers is None and metric in ANSWERED:
        answers = likeliest(model, data, positions, rows or rows_that_fit(model, data))
    pair = Contrast.of(
        model,
        data,
        data,
        metric,
        answers=answers,
        positions=positions,
        direction="noise",
        rows=rows,
    )
    cells = cells_of(model, AXES[by], layers=layers, heads=heads, columns=None, n_pos=pair.n_pos)

    def runs(examples: slice, *, base: Dataset, source: Dataset, **fields: Any) -> _Runs:
        return _Runs(model, base, cut[examples], window=window, renormalise=renormalise, **fields)

    def together(most: int) -> Iterable[list[int]]:
        return groups(cells, most)

    found = pair.measure(cells, runs, together, progress=progress)
    return Knockout(
        cells=cells,
        axes=AXES[by],
        window=window,
        renormalise=renormalise,
        **{name: found[name] for name in ("values", "clean", "metric", "evaluations")},
    )


class _Runs:
    """Runs of some examples with edges cut, each from the first layer of its window on."""

    def __init__(
        self,
        model: Any,
        base: Dataset,
        cut: Bool[Tensor, "example query key"],
        *,
        window: int,
        renormalise: bool,
        columns: Tensor,
        evaluations: Evaluations,
    ) -> None:
        require_bare(model)
        self.model, self.cut, self.window, self.renormalise = model, cut, window, renormalise
        columns = columns.to(base.tokens.device)
        [self._pre], last = recorded(model, base, ["hook_resid_pre"])
        self.stream = self.theirs = last[:, columns]
        self._go = Onward(model=model, data=base, columns=columns, evaluations=evaluations)

    def run(self, cells: Sequence[Cell], /) -> Float[Tensor, "row pos d_model"]:
        n_layer, middle = self.model.config.n_layer, cells[0].layer
        first = max(0, middle - self.window // 2)
        inside = range(first, min(n_layer, middle - (-self.window // 2)))
        point = "attn_scores" if self.renormalise else "pattern"
        hooks = [(f"blocks.{layer}.attn.hook_{point}", self._cutting(cells)) for layer in inside]
        resid = self._pre[first].repeat(len(cells), 1, 1)
        resid = self._go.from_pre(resid, first, hooks=hooks, last=n_layer - 1 not in inside)
        return self.model.ln_final(resid)

    def _cutting(self, cells: Sequence[Cell]) -> Any:
        def put(value: Tensor, hook: Any) -> Tensor:
            gone = torch.finfo(value.dtype).min if self.renormalise else 0.0
            runs = value.unflatten(0, (len(cells), -1)).clone()  # run example head query key
            for i, cell in enumerate(cells):
                some = slice(None) if cell.head is None else [cell.head]
                runs[i, :, some] = runs[i, :, some].masked_fill(self.cut[:, None], gone)
            return runs.flatten(0, 1)

        return put


def _edges(
    data: Dataset, keys: Any, queries: Any, *, renormalise: bool
) -> Bool[Tensor, "example query key"]:
    """Which edges are cut; none that padding or the future cuts anyway."""
    seen, n = data.attended, data.tokens.shape[1]
    looking, looked_at = (_tokens(data, some, name) for some, name in
                          ((queries, "queries"), (keys, "keys")))  # fmt: skip
    causal = torch.ones(n, n, dtype=torch.bool, device=seen.device).tril()
    possible = seen[:, None] & causal
    cut = looking[:, :, None] & looked_at[:, None] & possible
    if lacking := (~cut.flatten(1).any(1)).nonzero()[:, 0].tolist():
        raise InputError(
            f"in text {lacking[0]} the queries {queries!r:.60} see none of the keys {keys!r:.60}."
        )
    blind = (cut.sum(-1) == possible.sum(-1)) & cut.any(-1)
    if renormalise and bool(blind.any()):
        text, column = blind.nonzero()[0].tolist()
        raise InputError(
            f"the query at column {column} of text {text} would see nothing. Leave it a key, or "
            "take renormalise=False."
        )
    return cut


def _tokens(data: Dataset, given: Any, name: str) -> Bool[Tensor, "example pos"]:
    if isinstance(given, Tensor) and given.dtype == torch.bool:
        if given.shape != data.tokens.shape:
            expected = f"{list(data.tokens.shape)}, as the tokens"
            raise ShapeError(name, got=given.shape, expected=expected)
        return given.to(data.tokens.device) & data.attended
    return asked_tokens(data.attended, given, name)
