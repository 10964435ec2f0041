"""Runs that go on from a layer of another run, to the columns that are asked for.

What lies before the first differing layer is not computed again; nor are columns before the first
differing one, whose keys and values are read from a cache; and the last layer answers at the asked
columns only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.experiments.dataset import Dataset
from bloomlab.experiments.edits import Evaluations
from bloomlab.experiments.last_layer import keys_and_values, read_from_stream
from bloomlab.experiments.recorded import given
from bloomlab.model.alibi import AttentionBias, rounds, token_positions
from bloomlab.model.cache import KVCache
from bloomlab.model.fused import ROUNDED_BLOCK, fused_attention, rounded_attention
from bloomlab.model.pieces import joined


@dataclass(frozen=True, kw_only=True)
class Onward:
    """Goes on from some layer. Rows are all examples of a first run, then of a second, and so on.

    Args:
        model: a BLOOM with an unembedding.
        data: the examples.
        columns: whose streams are asked for.
        head_mask: [layer head]; heads scaled in all runs.
        past: keys and values of the whole run that others differ from; None: runs differ from
            column 0 on.
        evaluations: counts.
    """

    model: Any
    data: Dataset
    columns: Int[Tensor, " pos"]
    head_mask: Float[Tensor, "layer head"] | None = None
    past: KVCache | None = None
    evaluations: Evaluations = field(default_factory=Evaluations)

    @property
    def rounded(self) -> bool:
        """Whether the model rounds after every operation, as transformers does."""
        return rounds(self.model.config.alibi, self.model.dtype, self.data.tokens.device)

    def from_pre(
        self,
        resid: Float[Tensor, "row query d_model"],
        layer: int,
        *,
        since: int = 0,
        hooks: Sequence[Any] = (),
        masks: Float[Tensor, "*row layer head"] | None = None,
        last: bool = True,
    ) -> Float[Tensor, "row pos d_model"]:
        """The stream after the last block at the asked columns from `since` on.

        Args:
            resid: the stream before `layer`, from column `since` on.
            layer: at most the number of layers.
            since: earlier columns are those of the run in `past`.
            hooks: attached meanwhile.
            masks: in the place of `head_mask`.
            last: whether the last layer may be cut short: nothing is hooked or masked there.
        """
        asked, n_layer = self.columns[self.columns >= since] - since, self.model.config.n_layer
        if layer == n_layer:
            return resid[:, asked]
        few = len(asked) <= ROUNDED_BLOCK and len(asked) < resid.shape[1]
        stop = n_layer - 1 if few and last else n_layer
        past = self._past(since, len(resid))
        if stop > layer:
            with self.model.hooks(fwd_hooks=list(hooks)):
                resid = self.model.backbone(
                    resid,
                    start_at_layer=layer,
                    stop_at_layer=stop,
                    attention_mask=given(self.repeated(self.data.mask, len(resid))),
                    head_mask=self.head_mask if masks is None else masks,
                    past_key_values=past,
                    use_cache=False,
                ).last
            self.evaluations.layers += len(resid) * (stop - layer)
        if stop == n_layer:
            return resid[:, asked]
        self.evaluations.last_layers += len(resid)
        return self._last_layer(resid, asked, past, since)

    def bias(self, rows: int, queries: Int[Tensor, " query"] | None = None) -> AttentionBias:
        """ALiBi and mask of some queries, None: of all, for every key."""
        mask, place = self.repeated(self.data.mask, rows), self.data.tokens.device
        if mask is None:
            positions = torch.arange(self.data.tokens.shape[1], device=place)[None]
        else:
            positions = token_positions(mask)
        if queries is None:
            queries = torch.arange(self.data.tokens.shape[1], device=place)
        return AttentionBias(
            query_positions=positions[:, queries],
            key_positions=positions,
            keys_seen=mask,
            mode=self.model.config.alibi,
            dtype=self.model.dtype,
            first=int(queries.min()),
            columns=queries,
        )

    def repeated(self, mask: Any, rows: int) -> Any:
        """A mask of the examples, once for every run."""
        return None if mask is None else mask.repeat(rows // len(mask), 1)

    def _past(self, since: int, rows: int) -> KVCache | None:
        if not since:
            return None
        assert self.past is not None
        n = len(self.data)
        return self.past.crop(since).gather(torch.arange(n).repeat(rows // n))

    def _last_layer(self, resid: Tensor, asked: Tensor, past: KVCache | None, since: int) -> Tensor:
        """The last block at the asked columns: keys and values of all, all else of few."""
        block = self.model.blocks[-1]
        attn, bias = block.attn, self.bias(len(resid), asked + since)
        normed = block.ln1(resid)
        at = normed[:, asked]
        q = einsum(at, attn.W_Q, "b t m, h m d -> b h t d") + attn.b_Q[:, None]
        one_by_one = not bias.rounded and 4 * len(asked) * attn.n_head <= normed.shape[-1]
        if past is None and one_by_one:
            z = read_from_stream(attn, q, normed, bias)
        else:
            k, v = keys_and_values(attn, normed)
            if past is not None:
                before = joined(past._layers[-1], len(resid))
                k, v = (torch.cat(pair, 2) for pair in zip(before, (k, v), strict=True))
            blind = torch.is_grad_enabled() and bias.has_blind_queries
            attend = rounded_attention if bias.rounded or blind else fused_attention
            z = attend(q, k, v, bias=bias, slopes=attn.slopes)
        if self.head_mask is not None:
            z = z * self.head_mask[-1].to(z)[:, None, None]
        out = attn.o(rearrange(z, "b h t d -> b t (h d)"))
        skip = at if block.post_norm_skip else resid[:, asked]
        return block.from_mid(skip + out, rounded=self.rounded)
