"""OV and QK circuits of heads: from token to token, by the weights alone; see `analysis.circuits`.

A layer is taken to read token t's embedding, normalised twice: by the embedding LayerNorm and by
its own. What heads write goes through the final norm's centring and gain, not its scale.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn import functional as F

from bloomlab.analysis.attribution import through_norm
from bloomlab.analysis.circuits import (
    copying_score,
    ov_eigenvalues,
    qk_eigenvalues,
    random_composition,
)
from bloomlab.errors import UnknownNameError
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.residual_stream import require_sum, require_unembedding, token_ids

AT_ONCE = 2**22  # numbers of a part of the embedding table


@dataclass(frozen=True, kw_only=True, repr=False)
class HeadCircuits(Framed):
    """Eigenvalues of every head's circuits; made by `head_circuits`.

    Attributes:
        heads: numbers of the heads in each layer.
        ov: of each layer's heads, largest first: how much a token seen promotes itself.
        qk: how much a token looks for itself.
    """

    heads: list[tuple[int, ...]]
    ov: list[Complex[Tensor, "head d_head"]]
    qk: list[Complex[Tensor, "head d_head"]]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a head: layer, head, copying and matching.

        Sum of the eigenvalues over the sum of their sizes, -1 ... 1; of the OV circuit (1: every
        token promotes itself), and of the QK circuit (1: every token looks for itself). NaN for
        a head of zeros.
        """
        scores = [[copying_score(of).tolist() for of in both] for both in (self.ov, self.qk)]
        rows = [
            {"layer": layer, "head": head, "copying": copying, "matching": matching}
            for layer, heads in enumerate(self.heads)
            for head, copying, matching in zip(
                heads, scores[0][layer], scores[1][layer], strict=True
            )
        ]
        return pd.DataFrame(rows, columns=["layer", "head", "copying", "matching"])


@torch.no_grad()
def head_circuits(model: Any) -> HeadCircuits:
    """Copying and matching of every head, from eigenvalues of its circuits over all tokens.

    Elhage et al. (2021). The [vocab vocab] circuits are never made: V d_model^2 multiplications a
    layer, the embedding table in parts. Biases add the same to all tokens and are left out.

    Args:
        model: a BLOOM with an unembedding, whole or pruned; heads keep their numbers.

    Raises:
        UnsupportedError: no unembedding, or a stream that is no sum.
    """
    require_unembedding(model)
    require_sum(model, "head_circuits")
    found = HeadCircuits(heads=[], ov=[], qk=[])
    for layer, block in enumerate(model.blocks):
        attn = block.attn
        ov_gram, qk_gram = _grams(model, layer)
        weights = (w.to(ov_gram) for w in (attn.W_Q, attn.W_K, attn.W_V, attn.W_O))
        W_Q, W_K, W_V, W_O = weights
        found.heads.append(tuple(attn.heads))
        found.ov.append(_sorted(ov_eigenvalues(W_V, W_O, ov_gram)))
        found.qk.append(_sorted(qk_eigenvalues(W_Q, W_K, qk_gram)))
    return found


@torch.no_grad()
def ov_circuit(
    model: Any, layer: int, head: int, *, sources: Any, targets: Any
) -> Float[Tensor, "source target"]:
    """How much a head that attends to a source token raises a target's logit.

    In logits times the final norm's scale: b_V counts, b_O belongs to no head.

    Args:
        model: a BLOOM with an unembedding.
        layer: the head's.
        head: its number in the unpruned model.
        sources: tokens attended to: ids, texts, or one of either.
        targets: tokens promoted.

    Raises:
        UnknownNameError: no such layer.
        InputError: no such head, or tokens that are none.
        UnsupportedError: no unembedding, or a stream that is no sum.
    """
    require_unembedding(model)
    require_sum(model, "ov_circuit")
    writes = head_writes(model, layer, head, token_ids(model, sources))
    return writes @ write_directions(model, token_ids(model, targets)).T


@torch.no_grad()
def qk_circuit(
    model: Any, layer: int, head: int, *, queries: Any, keys: Any
) -> Float[Tensor, "query key"]:
    """The score between a query's and a key's token without ALiBi: q.k/sqrt(d_head), in logits.

    In layer 0 that is what attention itself computes.

    Args:
        model: a BLOOM.
        layer: the head's.
        head: its number in the unpruned model.
        queries: tokens that look: ids, texts, or one of either.
        keys: tokens looked at.

    Raises:
        UnknownNameError: no such layer.
        InputError: no such head, or tokens that are none.
        UnsupportedError: a stream that is no sum.
    """
    require_sum(model, "qk_circuit")
    attn, at = find_head(model, layer, head)
    q, k = (token_reads(model, layer, token_ids(model, tokens)) for tokens in (queries, keys))
    q = q @ attn.W_Q[at].to(q) + attn.b_Q[at].to(q)
    k = k @ attn.W_K[at].to(k) + attn.b_K[at].to(k)
    return q @ k.T / attn.d_head**0.5


@torch.no_grad()
def composition(model: Any, mode: str) -> pd.DataFrame:
    """How much of what a head writes each head of a later layer reads, beside chance.

    Columns: layer, head (that writes), to_layer, to_head (that reads), score, excess.
    score = ||A B|| / (||A|| ||B||), 0 ... 1 (Elhage et al., 2021); excess is less what these
    matrices get if one is turned at random, d_model^(-1/2). LayerNorms are ignored.

    Args:
        model: a BLOOM; a pruned one only if all layers have as many heads.
        mode: "Q", "K" or "V": by what the later head reads.

    Raises:
        InputError: no such mode.
        UnsupportedError: layers with unlike numbers of heads, or a stream that is no sum.
    """
    require_sum(model, "composition")
    scores = model.all_composition_scores(mode).cpu()
    chance = random_composition(model.config.hidden_size)
    heads = [block.attn.heads for block in model.blocks]
    rows = [
        (layer, head, later, other, float(scores[layer, i, later, j]))
        for layer in range(len(heads))
        for i, head in enumerate(heads[layer])
        for later in range(layer + 1, len(heads))
        for j, other in enumerate(heads[later])
    ]
    frame = pd.DataFrame(rows, columns=["layer", "head", "to_layer", "to_head", "score"])
    return frame.assign(excess=frame["score"] - chance)


def token_reads(model: Any, layer: int, ids: Tensor) -> Float[Tensor, "some d_model"]:
    """What a layer's heads read of tokens that stand alone: embedding, normalised twice."""
    wide = torch.promote_types(model.dtype, torch.float32)
    embedded = model.embed.weight[ids].to(wide)
    return _normed(_normed(embedded, model.embed_ln), model.blocks[layer].ln1)


def head_writes(model: Any, layer: int, head: int, ids: Tensor) -> Float[Tensor, "some d_model"]:
    """What a head that attends to these tokens alone writes to the stream."""
    attn, at = find_head(model, layer, head)
    reads = token_reads(model, layer, ids)
    value = reads @ attn.W_V[at].to(reads) + attn.b_V[at].to(reads)
    return value @ attn.W_O[at].to(reads)


def write_directions(model: Any, ids: Any) -> Float[Tensor, "some d_model"]:
    """Of tokens (ids, or a slice of them): what a write's product with raises the logit."""
    wide = torch.promote_types(model.dtype, torch.float32)
    return through_norm(model.W_U.T[ids].to(wide), model.ln_final.w.to(wide))


def find_head(model: Any, layer: int, head: int) -> tuple[Any, int]:
    """A layer's attention, and where a head stands in it by its number.

    Raises:
        UnknownNameError: no such layer.
        InputError: no such head.
    """
    if layer not in range(len(model.blocks)):
        raise UnknownNameError("layer", layer, map(str, range(len(model.blocks))))
    attn = model.blocks[layer].attn
    return attn, attn.index([head])[0]


def _grams(model: Any, layer: int) -> tuple[Tensor, Tensor]:
    """U X and X^T X of a layer, the vocabulary in parts."""
    wide, width = torch.promote_types(model.dtype, torch.float32), model.config.hidden_size
    ov, qk = torch.zeros(2, width, width, dtype=wide, device=model.device)
    every = torch.arange(model.config.vocab_size, device=model.device)
    for ids in every.split(max(1, AT_ONCE // width)):
        reads = token_reads(model, layer, ids)
        ov.addmm_(write_directions(model, ids).T, reads)
        qk.addmm_(reads.T, reads)
    return ov, qk


def _sorted(eigenvalues: Tensor) -> Tensor:
    order = eigenvalues.abs().argsort(-1, descending=True)
    return eigenvalues.gather(-1, order).cpu()


def _normed(stream: Tensor, norm: Any) -> Tensor:
    """A LayerNorm at the precision of the stream."""
    return F.layer_norm(stream, norm.w.shape, norm.w.to(stream), norm.b.to(stream), norm.eps)
