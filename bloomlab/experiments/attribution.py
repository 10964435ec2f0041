"""Direct logit attribution of embedding, heads, biases and MLPs; see `analysis.attribution`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.analysis.attribution import head_contributions, norm_scale, through_norm
from bloomlab.errors import InputError, NumericalError, ShapeError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.residual_stream import (
    asked_tokens,
    require_sum,
    require_unembedding,
    token_ids,
)
from bloomlab.experiments.sweep import rows_that_fit

# of the largest logit or contribution: what rounding may make of the sum
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}
ROUNDED = 0.1
Part = tuple[str, int | None, int | None]  # kind, layer, head


@dataclass(frozen=True, kw_only=True, repr=False)
class Attribution(Framed):
    """What each component adds to logits, or to differences of two; made by `attribute_logits`.

    Attributes:
        parts: kind, layer and head of each component: "embed" (after its LayerNorm), "head",
            "attn_bias" (the output bias b_O), "mlp" and "final_bias" (of the last LayerNorm).
        text: number of each row's text.
        pos: attended tokens before the row's token.
        answers: the tokens whose logits these are: [row 1], or [row 2] of right and wrong.
        contributions: in logits.
        logits: of the model itself, of the answers, or right minus wrong.
        dtype: number format of the model.
    """

    parts: list[Part]
    text: Int[Tensor, " row"]
    pos: Int[Tensor, " row"]
    answers: Int[Tensor, "row some"]
    contributions: Float[Tensor, "row part"]
    logits: Float[Tensor, " row"]
    dtype: torch.dtype

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each answer and component.

        Columns: text, pos, answer (and `versus`, the wrong one), component, kind, layer, head,
        contribution (logits). The contributions of an answer sum to its logit.
        """
        n, n_part = self.contributions.shape
        kinds, layers, heads = zip(*self.parts, strict=True)
        index = {"text": self.text, "pos": self.pos, "answer": self.answers[:, 0]}
        if self.answers.shape[1] == 2:
            index["versus"] = self.answers[:, 1]
        columns = {name: v.repeat_interleave(n_part).numpy() for name, v in index.items()}
        columns |= {
            "component": [_name(*part) for part in self.parts] * n,
            "kind": kinds * n,
            "layer": layers * n,
            "head": heads * n,
            "contribution": self.contributions.flatten().numpy(),
        }
        return pd.DataFrame(columns).astype({"layer": "Int64", "head": "Int64"})

    @property
    def error(self) -> float:
        """Largest distance of a sum of contributions from the model's logit, in logits."""
        return float((self.contributions.sum(-1) - self.logits).abs().max())

    def check(self, tolerance: float | None = None) -> None:
        """Raise unless all contributions sum to the model's logits.

        Args:
            tolerance: in logits; None: what rounding explains, 1e-10 of the largest term in
                float64.

        Raises:
            NumericalError: they do not; hooks that edit what a component writes make that happen.
        """
        if tolerance is None:
            largest = max(1.0, float(self.contributions.abs().max()))
            tolerance = TOLERANCE.get(self.dtype, ROUNDED) * largest
        if not self.error <= tolerance:
            raise NumericalError(
                f"contributions sum to the logits with an error of {self.error:.2g}, expected at "
                f"most {tolerance:.2g}. Are hooks attached that edit what a component writes, or "
                "is the model in training mode with dropout?"
            )


@torch.no_grad()
def attribute_logits(
    model: Any,
    tokens: Any,
    attention_mask: Any = None,
    *,
    answers: Any = None,
    positions: Any = -1,
    progress: bool = True,
) -> Attribution:
    """What embedding, every head, every bias and every MLP add to logits of next tokens, exactly.

    The final LayerNorm's gain and bias count; its scale is the one of the run (Elhage et al.,
    2021). Numbers are computed in float32 at least.

    Args:
        model: a BLOOM with an unembedding, whole or pruned; heads keep their numbers.
        tokens: texts, ids [batch pos] or a dict with `attention_mask`.
        attention_mask: [batch pos], 0 for padding.
        answers: a token (id or text) for each text, [batch]; or [batch 2], right and wrong, whose
            difference is attributed. None: the token that the model finds likeliest.
        positions: tokens of each text that predict, padding not counted: -1 the last, None all, or
            several.
        progress: show a bar while it takes long.

    Raises:
        UnsupportedError: no unembedding, or a stream that is no sum
            (apply_residual_connection_post_layernorm).
        InputError: no data, no such position, or answers that are no tokens.
        ShapeError: answers that do not fit the texts.
    """
    require_unembedding(model)
    require_sum(model, "attribute_logits")
    data = dataset(model, tokens, attention_mask)
    asked = asked_tokens(data.attended, positions)
    given = None if answers is None else _answers(model, answers, len(data))
    found = [
        _attributed(model, some, asked[some_rows], None if given is None else given[some_rows])
        for first, some in data.chunks(rows_that_fit(model, data), progress=progress)
        for some_rows in [slice(first, first + len(some))]
    ]
    ids, contributions, logits = (torch.cat(one).cpu() for one in zip(*found, strict=True))
    return Attribution(
        parts=_parts(model),
        text=asked.nonzero()[:, 0].cpu(),
        pos=(data.attended.cumsum(-1) - 1)[asked].cpu(),
        answers=ids,
        contributions=contributions,
        logits=logits,
        dtype=model.dtype,
    )


def _attributed(
    model: Any, data: Dataset, asked: Tensor, answers: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Answers, contributions and logits of the asked tokens of some texts."""
    wide = torch.promote_types(model.dtype, torch.float32)
    seen: dict[str, Tensor] = {}
    stream_name = f"blocks.{len(model.blocks) - 1}.hook_resid_post"
    written = [
        name
        for layer in range(len(model.blocks))
        for name in (f"blocks.{layer}.attn.hook_z", f"blocks.{layer}.hook_mlp_out")
    ]
    hooks = [(name, kept_rows(seen, asked, wide)) for name in ("hook_embed", *written, stream_name)]
    mask = None if data.mask is None else data.mask.long()
    with model.hooks(fwd_hooks=hooks):
        last = model.backbone(data.tokens, attention_mask=mask, use_cache=False).last[asked]
    if answers is None:
        ids = torch.cat([model.unembed(one).argmax(-1, keepdim=True) for one in last.split(64)])
    else:
        ids = answers[asked.nonzero()[:, 0]]
    signs = torch.tensor([1.0, -1.0][: ids.shape[1]], dtype=wide, device=ids.device)
    columns = torch.einsum("rsm,s->rm", model.W_U.T[ids].to(wide), signs)
    norm = model.ln_final
    scale = norm_scale(seen[stream_name], norm.eps)
    directions = through_norm(columns, norm.w.to(wide)) / scale[:, None]
    parts = [(seen["hook_embed"] * directions).sum(-1, keepdim=True)]
    for layer, block in enumerate(model.blocks):
        z, mlp = seen[f"blocks.{layer}.attn.hook_z"], seen[f"blocks.{layer}.hook_mlp_out"]
        parts.append(head_contributions(z, block.attn.W_O.to(wide), directions))
        parts.append((directions @ block.attn.b_O.to(wide))[:, None])
        parts.append((mlp * directions).sum(-1, keepdim=True))
    parts.append((columns @ norm.b.to(wide))[:, None])
    logits = torch.einsum("rm,rm->r", last.to(wide), columns)
    return ids, torch.cat(parts, 1), logits


def kept_rows(seen: dict[str, Tensor], asked: Tensor, wide: torch.dtype) -> Callable[..., None]:
    """A hook that keeps its value at the asked tokens, under its name."""

    def keep(value: Tensor, hook: Any) -> None:
        seen[hook.name] = value[asked].to(wide)

    keep.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
    return keep


def _parts(model: Any) -> list[Part]:
    found: list[Part] = [("embed", None, None)]
    for layer, block in enumerate(model.blocks):
        found += [("head", layer, head) for head in block.attn.heads]
        found += [("attn_bias", layer, None), ("mlp", layer, None)]
    return [*found, ("final_bias", None, None)]


def _name(kind: str, layer: int | None, head: int | None) -> str:
    if kind == "head":
        return f"L{layer}H{head}"
    return kind if layer is None else f"L{layer} {kind}"


def _answers(model: Any, answers: Any, n_text: int) -> Int[Tensor, "batch some"]:
    """Answers as ids [batch 1] or [batch 2]."""
    if not isinstance(answers, Tensor):
        listed = [answers] if isinstance(answers, str | int) else list(answers)
        rows = [one if isinstance(one, list | tuple) else [one] for one in listed]
        if len({len(row) for row in rows}) > 1:
            raise InputError(f"answers is {answers!r:.80}: not as many for every text.")
        answers = torch.stack([token_ids(model, row) for row in rows])
    if answers.ndim not in (1, 2) or len(answers) != n_text or answers[0].numel() not in (1, 2):
        raise ShapeError("answers", got=answers.shape, expected=f"[{n_text}] or [{n_text} 2]")
    return token_ids(model, answers).reshape(n_text, -1)
