"""Attention of a run, rebuilt from its residual stream: any head, any rows, four quantities.

Only the stream is kept (layers x tokens x d_model): the queries and keys of one head are two small
products away, which costs less memory than keeping them and is as exact.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bloomlab.analysis.roles import (
    attention_distance,
    attention_entropy,
    duplicate_targets,
    first_targets,
    induction_targets,
    previous_targets,
    role_score,
)
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.model.alibi import AttentionBias
from bloomlab.model.scores import attention_pattern, biased_scores, masked_scores
from bloomlab.session.edits import Edits

QUANTITIES = ("pattern", "value", "content", "alibi")
STATS = ("entropy", "distance", "first", "previous", "duplicate", "induction")
CELLS = 2**22  # of patterns held at a time


def columns_of(places: Any, n_pos: int) -> list[int]:
    """Columns of a text, counted from 0; -1 is the last.

    Raises:
        InputError: no columns, or one that the text does not have.
    """
    try:
        columns = [operator.index(place) for place in places]
    except TypeError:
        columns = []
    if not columns or not all(-n_pos <= column < n_pos for column in columns):
        raise InputError(f"columns {places!r:.80}, expected some of 0 to {n_pos - 1}.")
    return [column % n_pos for column in columns]


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Rebuilds attention; heads are numbered as in the whole model.

    Args:
        model: what ran.
        ids: what it read, one row.
        resid: the stream before each layer.
        edits: in force; those of slopes act here, those of heads are in the stream.
    """

    model: Any
    ids: Int[Tensor, "1 pos"]
    resid: Sequence[Float[Tensor, "1 pos d_model"]]
    edits: Edits
    _targets: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def heads(
        self, quantity: str, layer: int, heads: Sequence[int], queries: Any = None
    ) -> Float[Tensor, "head query key"]:
        """A quantity of some heads.

        "pattern": attention probabilities, before the head mask. "value": those times the norm of
        what the head would write for the key, |v W_O| (Kobayashi et al., 2020, arXiv:2004.10102).
        "content": the pattern if there were no ALiBi; "alibi": if all tokens were alike.

        Raises:
            UnknownNameError: no such quantity.
            InputError: queries that are no columns of the text.
        """
        if quantity not in QUANTITIES:
            raise UnknownNameError("quantity of attention", quantity, QUANTITIES)
        q, k, bias, slopes = self._parts(layer, heads, queries)
        if quantity == "alibi":
            alike = bias.alibi(slopes).expand(-1, len(heads), q.shape[2], -1).clone()
            return attention_pattern(masked_scores(alike, bias), torch.float32)[0]
        alibi = bias.alibi(torch.zeros_like(slopes) if quantity == "content" else slopes)
        scores = masked_scores(biased_scores(q, k, bias=bias, alibi=alibi), bias)
        pattern = attention_pattern(scores, q.dtype)[0].float()
        return pattern if quantity != "value" else pattern * self.written(layer, heads)[:, None]

    @torch.no_grad()
    def scores(
        self, layer: int, head: int, query: int
    ) -> tuple[Float[Tensor, " key"], Float[Tensor, " key"]]:
        """The two parts of a query's scores: content q.k/sqrt(d_head), and bias, in logits.

        The bias is relative, -slope x distance: 0 at the query itself.
        """
        q, k, bias, slopes = self._parts(layer, [head], [query])
        scale = q.shape[-1] ** -0.5
        content = (q[0, 0].float() @ k[0, 0].float().mT)[0, : query + 1] * scale
        distance = query - torch.arange(query + 1, device=content.device)
        return content, -slopes[0].float() * distance

    @torch.no_grad()
    def written(self, layer: int, heads: Sequence[int]) -> Float[Tensor, "head key"]:
        """Norm of what each head writes for a key that has all its attention, |v W_O|."""
        attn = self.model.blocks[layer].attn
        places = attn.index(heads)
        x = self.model.blocks[layer].ln1(self.resid[layer])[0]
        v = torch.einsum("pm,hmd->hpd", x, attn.W_V[places]) + attn.b_V[places][:, None]
        return (v @ attn.W_O[places]).float().norm(dim=-1)

    @torch.no_grad()
    def tiles(
        self, quantity: str, layer: int, size: int
    ) -> tuple[
        Float[Tensor, "head row column"], Float[Tensor, "head row"], Float[Tensor, "head stat"]
    ]:
        """Every head of a layer, max-pooled to `size` x `size`; its first column without key 0.

        Also what heads look at, of the plain pattern (NaN else): entropy in bits, distance in
        tokens, attention to the first, the previous, an equal token and what followed one. Heads
        that were pruned are 0 and NaN.
        """
        n_pos, kept = self.ids.shape[1], list(self.model.blocks[layer].attn.heads)
        n_head, size = self.model.config.n_head, min(size, n_pos)
        first_bin = -(-n_pos // size)
        tiles, sinkless = torch.zeros(n_head, size, size), torch.zeros(n_head, size)
        stats = torch.full((n_head, len(STATS)), torch.nan)
        at_once = max(1, CELLS // n_pos**2)
        for some in (kept[i : i + at_once] for i in range(0, len(kept), at_once)):
            values = self.heads(quantity, layer, some)
            tiles[some] = F.adaptive_max_pool2d(values[None], size)[0].cpu()
            if first_bin > 1:
                column = values[:, :, 1:first_bin].amax(-1)
                sinkless[some] = F.adaptive_max_pool1d(column, size).cpu()
            if quantity == "pattern":
                stats[some] = self._stats(values[None]).cpu()
        return tiles, sinkless, stats

    @torch.no_grad()
    def mean(self, layer: int, quantity: str = "pattern") -> Float[Tensor, "query key"]:
        """Mean over a layer's heads."""
        kept = list(self.model.blocks[layer].attn.heads)
        n_pos = self.ids.shape[1]
        total = torch.zeros(n_pos, n_pos, device=self.ids.device)
        at_once = max(1, CELLS // n_pos**2)
        for some in (kept[i : i + at_once] for i in range(0, len(kept), at_once)):
            total += self.heads(quantity, layer, some).sum(0)
        return total / max(1, len(kept))

    @torch.no_grad()
    def rollout(self, layer: int) -> Float[Tensor, "query key"]:
        """Attention rollout up to a layer: half of each step is the residual stream.

        Abnar and Zuidema (2020, arXiv:2005.00928), mean over heads. A layer whose heads were all
        pruned moves nothing.
        """
        n_pos = self.ids.shape[1]
        eye = torch.eye(n_pos, device=self.ids.device)
        flow = eye
        for below in range(layer + 1):
            if self.model.blocks[below].attn.heads:
                flow = (self.mean(below) + eye) / 2 @ flow
        return flow

    def _parts(
        self, layer: int, heads: Sequence[int], queries: Any
    ) -> tuple[Tensor, Tensor, AttentionBias, Tensor]:
        """Queries, keys [1 head pos d_head], the bias and the edited slopes of some heads."""
        block, n_pos = self.model.blocks[layer], self.ids.shape[1]
        attn, x = block.attn, block.ln1(self.resid[layer])[0]
        places = attn.index(heads)
        columns = torch.arange(n_pos, device=x.device)
        if queries is not None:
            columns = columns[columns_of(queries, n_pos)]
        if torch.finfo(x.dtype).bits < 32:  # rounded as the whole projection of a forward rounds
            parts = attn.qkv(x).view(n_pos, attn.n_head, 3, attn.d_head)[:, places].transpose(0, 1)
            q, k = parts[:, columns, 0], parts[:, :, 1]
        else:
            q = torch.einsum("pm,hmd->hpd", x[columns], attn.W_Q[places])
            q = q + attn.b_Q[places][:, None]
            k = torch.einsum("pm,hmd->hpd", x, attn.W_K[places]) + attn.b_K[places][:, None]
        positions = torch.arange(n_pos, device=x.device)[None]
        bias = AttentionBias(
            query_positions=positions[:, columns],
            key_positions=positions,
            keys_seen=None,
            mode=self.model.config.alibi,
            dtype=x.dtype,
            first=int(columns.min()),
            columns=columns,
        )
        slopes = self.edits.slopes_of(layer, attn.slopes[places], heads)
        return q[None], k[None], bias, slopes

    def _stats(self, pattern: Float[Tensor, "1 head query key"]) -> Float[Tensor, "head stat"]:
        attended = torch.ones_like(self.ids, dtype=torch.bool)
        if not self._targets:
            self._targets.update(
                first=first_targets(attended),
                previous=previous_targets(attended),
                duplicate=duplicate_targets(self.ids, attended),
                induction=induction_targets(self.ids, attended),
            )
        means = [attention_entropy(pattern), attention_distance(pattern, attended)]
        scores = [role_score(pattern, targets) for targets in self._targets.values()]
        return torch.stack([*(one.mean(-1)[0] for one in means), *scores], -1)
