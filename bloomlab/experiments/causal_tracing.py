"""Causal tracing: which hidden states bring back an answer that noise on the subject took away.

Meng et al. (2022, arXiv:2202.05262). In a run whose subject's embeddings are noisy one state is set
to what it is in the clean run. BLOOM normalises its embeddings, so that noise before that LayerNorm
and after it are different experiments: `where` says which.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments.contrast import Contrast
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.patch_cells import STREAM, cells_of
from bloomlab.experiments.patch_cells import groups as cell_groups
from bloomlab.experiments.patched_runs import PatchedRuns
from bloomlab.experiments.patching import Patching
from bloomlab.experiments.predicted import ANSWERED, likeliest
from bloomlab.experiments.probe_labels import spans_of
from bloomlab.experiments.sweep import rows_that_fit

WHERE = ("before", "after")
WINDOWED = ("attn_out", "mlp_out")
FAR = 1_000_003  # between the noise of two seeds
WORDS_AT_ONCE = 2**14  # of the vocabulary


@dataclass(frozen=True, kw_only=True, repr=False)
class CausalTrace(Patching):
    """The metric with each state restored; means over samples of the noise.

    `effects` are indirect effects (restored - noisy), `total` the total effect (clean - noisy).

    Attributes:
        subject: the tokens that got noise.
        where: "before" or "after" the embedding LayerNorm.
        scale: standard deviation of the noise.
        window: layers restored together.
    """

    subject: Bool[Tensor, "example pos"]
    where: str
    scale: float
    window: int


@torch.no_grad()
def trace_causes(
    model: Any,
    texts: Any,
    subjects: Any,
    site: str = "resid_post",
    metric: Any = "probability",
    *,
    where: str,
    answers: Any = None,
    positions: Any = -1,
    noise: int | float = 3.0,
    samples: int = 10,
    window: int = 1,
    layers: Any = None,
    columns: Any = None,
    seed: int = 0,
    rows: int | None = None,
    progress: bool = True,
) -> CausalTrace:
    """The metric of noisy runs with each state of each token as it is in the clean run.

    Args:
        model: a BLOOM with an unembedding; no hooks attached.
        texts: texts, ids [batch pos] or a dict with `attention_mask`.
        subjects: of each text its subject's words as they first stand in it, for texts; or
            [batch pos], True for the subject's tokens.
        site: "resid_pre", "resid_mid", "resid_post", "attn_out" or "mlp_out".
        metric: as in `patch_activations`.
        where: noise is added "before" the embedding LayerNorm, which rescales it, or "after" it,
            to what layer 0 reads.
        answers: tokens (ids or texts) [batch], or [batch 2] for "logit_difference"; None: what the
            clean run finds likeliest.
        positions: columns whose logits the metric sees.
        noise: its standard deviation, in standard deviations of all tokens' embeddings there.
        samples: draws of the noise, which all texts and states share.
        window: layers restored together, around each; above 1 for "attn_out" and "mlp_out" alone
            (Meng et al. take 10 of 48).
        layers: which; None: all.
        columns: which tokens; None: all.
        seed: of the noise.
        rows: rows in a forward; None: by free memory.
        progress: show a bar while it takes long.

    Raises:
        UnknownNameError: no such site, metric or `where`.
        InputError: a text without a subject (names it), noise or numbers below their least,
            windows of the stream, cells that are not there, hooks attached.
        ShapeError: subjects that do not fit the texts, or answers that do not.
        UnsupportedError: heads of the model were pruned.
    """
    if where not in WHERE:
        raise UnknownNameError("where", where, WHERE)
    if site not in STREAM:
        raise UnknownNameError("site", site, STREAM)
    if samples < 1 or window < 1 or not noise > 0:
        raise InputError(f"samples is {samples}, window {window}, noise {noise}: expected above 0.")
    if window > 1 and site not in WINDOWED:
        raise InputError(f"window is {window}: states of the stream ({site}) are restored alone.")
    data = dataset(model, texts)
    subject = _subjects(model, data, texts, subjects)
    again = Dataset(
        tokens=data.tokens.repeat_interleave(samples, 0),
        mask=None if data.mask is None else data.mask.repeat_interleave(samples, 0),
    )
    if answers is None and metric in ANSWERED:
        answers = likeliest(model, data, positions, rows or rows_that_fit(model, data))
    if answers is not None:
        answers = torch.as_tensor(answers).repeat_interleave(samples, 0)
    pair = Contrast.of(
        model,
        again,
        again,
        metric,
        answers=answers,
        positions=positions,
        direction="denoise",
        rows=rows,
    )
    scale = float(noise) * _spread(model, where)
    axes = ("layer", "position")
    cells = cells_of(model, axes, layers=layers, heads=None, columns=columns, n_pos=pair.n_pos)

    def runs(examples: slice, *, base: Dataset, **fields: Any) -> PatchedRuns:
        added = _noise(subject, range(examples.start, examples.stop), samples, seed, model)
        embedded = model.embed(base.tokens)
        added = scale * added.to(embedded)
        noisy = model.embed_ln(embedded + added) if where == "before" else model.embed_ln(embedded)
        noisy = noisy if where == "before" else noisy + added
        return PatchedRuns(
            model=model, base=base, site=site, window=window, embedded=noisy, **fields
        )

    def together(most: int) -> Any:
        return cell_groups(cells, most)

    found = pair.measure(cells, runs, together, progress=progress)
    for name in ("values", "clean", "corrupted"):
        found[name] = found[name].unflatten(-1, (len(data), samples)).mean(-1)
    return CausalTrace(
        cells=cells,
        axes=axes,
        site=site,
        subject=subject.cpu(),
        where=where,
        scale=scale,
        window=window,
        **found,
    )


def _subjects(model: Any, data: Dataset, texts: Any, subjects: Any) -> Bool[Tensor, "example pos"]:
    """Which tokens are the subject's."""
    if isinstance(subjects, Tensor):
        found = subjects.to(data.tokens.device)
        if found.shape != data.tokens.shape or found.dtype != torch.bool:
            expected = f"{list(data.tokens.shape)} of True and False, as the tokens"
            raise ShapeError("subjects", got=found.shape, expected=expected)
        found = found & data.attended
    else:
        words = [subjects] if isinstance(subjects, str) else list(subjects)
        labels = [["subject"] for _ in words]
        spans, *_ = spans_of(model, data, texts, labels, [[word] for word in words])
        column = torch.arange(data.tokens.shape[1])
        here = (column >= spans.first[:, None]) & (column <= spans.last[:, None])
        found = here.to(data.tokens.device) & data.attended
    if lacking := (~found.any(1)).nonzero()[:, 0].tolist():
        raise InputError(f"text {lacking[0]} has no subject: nothing to put noise on.")
    return found


def _noise(
    subject: Bool[Tensor, "example pos"], rows: range, samples: int, seed: int, model: Any
) -> Float[Tensor, "row pos d_model"]:
    """Noise of unit size on subjects: row i is sample i % samples of text i // samples."""
    width = model.config.hidden_size
    found = torch.zeros(len(rows), subject.shape[1], width)
    for i, row in enumerate(rows):
        at = subject[row // samples].cpu()
        # a text's noise is the same alone and in any batch
        source = torch.Generator().manual_seed(seed * FAR + row % samples)
        found[i, at] = torch.randn(int(at.sum()), width, generator=source)
    return found


def _spread(model: Any, where: str) -> float:
    """Standard deviation of all tokens' embeddings, before or after their LayerNorm."""
    n, total, squares = 0, 0.0, 0.0
    for some in model.embed.weight.split(WORDS_AT_ONCE):
        value = some if where == "before" else model.embed_ln.plain(some)
        value = value.double()
        n, total = n + value.numel(), total + float(value.sum())
        squares += float(value.square().sum())
    return (squares / n - (total / n) ** 2) ** 0.5
