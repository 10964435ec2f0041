"""What a trained model can do: losses of text, copying of random tokens, what its heads look at."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from bloomlab.analysis.roles import at_distance, role_score
from bloomlab.experiments.head_roles import repeated_tokens

LN2 = 0.6931471805599453


@dataclass(frozen=True, kw_only=True, slots=True)
class TextLoss:
    """Loss of a text: nats per token, bits per byte, and how many of each there were."""

    nats: float
    bits: float
    n_token: int
    n_byte: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Copying:
    """How well random tokens are copied, and what every head attends to meanwhile.

    `first` and `second` are nats per token of the two copies (the second from its second token
    on: nothing tells that the first ends), `accuracy` the share of them predicted. Scores are mean
    attention from the tokens of the second copy: `induction` to what followed the token last time,
    `previous` to the token before, `duplicate` to the same token last time.
    """

    first: float
    second: float
    accuracy: float
    induction: Float[Tensor, "layer head"]
    previous: Float[Tensor, "layer head"]
    duplicate: Float[Tensor, "layer head"]


def windows(ids: Int[Tensor, " text"], width: int) -> Int[Tensor, "batch pos"]:
    """A text in rows of `width` tokens, each row's last token the next one's first.

    Every token but the first is predicted once; the last, shorter row is left out.
    """
    rows = ids.unfold(0, width, width - 1) if len(ids) >= width else ids[None]
    return rows.contiguous()


@torch.no_grad()
def text_loss(
    model: Any,
    texts: Iterable[str],
    *,
    width: int = 257,
    limit: int | None = None,
    batch: int = 16,
    head_mask: Float[Tensor, "layer head"] | None = None,
) -> TextLoss:
    """Loss of documents, each ended by </s>, read in windows without <s>.

    Args:
        model: a BloomForCausalLM with its tokenizer.
        texts: the documents.
        width: tokens of a window; each predicts one fewer.
        limit: tokens to read at most.
        batch: windows in a forward.
        head_mask: heads scaled meanwhile.
    """
    end = model.tokenizer.eos_token_id
    rows = model.tokenizer(list(texts), return_attention_mask=False)["input_ids"]
    ids = torch.tensor([i for row in rows for i in (*row, end)][:limit])
    total, n_token, n_byte = 0.0, 0, 0
    for part in windows(ids, width).split(batch):
        place = part.to(model.device)
        logits = model(place[:, :-1], use_cache=False, head_mask=head_mask).logits.float()
        loss = F.cross_entropy(logits.flatten(0, 1), place[:, 1:].flatten(), reduction="sum")
        total += float(loss)
        n_token += part[:, 1:].numel()
        n_byte += sum(_n_byte(model.tokenizer, row, end) for row in part[:, 1:].tolist())
    nats = total / n_token
    return TextLoss(nats=nats, bits=total / LN2 / n_byte, n_token=n_token, n_byte=n_byte)


@torch.no_grad()
def copying(
    model: Any,
    *,
    period: int = 32,
    rows: int = 16,
    seed: int = 7,
    head_mask: Float[Tensor, "layer head"] | None = None,
) -> Copying:
    """Losses and head scores on random tokens that are said twice; see `Copying`."""
    ids = repeated_tokens(model, period=period, rows=rows, seed=seed)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.config.n_layer)]
    logits, cache = model.run_with_cache(ids, names_filter=names, head_mask=head_mask)
    losses = F.cross_entropy(logits[:, :-1].float().mT, ids[:, 1:], reduction="none")
    told = logits[:, period + 1 : -1].argmax(-1) == ids[:, period + 2 :]
    attended = torch.ones_like(ids, dtype=torch.bool)

    def score(distance: int) -> Float[Tensor, "layer head"]:
        targets = at_distance(attended, distance)
        targets[:, : period + 1] = False  # the second copy's queries alone
        return torch.stack([role_score(cache[name].float(), targets) for name in names]).cpu()

    return Copying(
        first=float(losses[:, :period].mean()),
        second=float(losses[:, period + 1 :].mean()),
        accuracy=float(told.float().mean()),
        induction=score(period - 1),
        previous=score(1),
        duplicate=score(period),
    )


def _n_byte(tokenizer: Any, ids: list[int], end: int) -> int:
    # a byte-level token has a character for every byte; </s> stands for a document's end
    tokens = tokenizer.convert_ids_to_tokens(ids)
    return sum(1 if i == end else len(token) for i, token in zip(ids, tokens, strict=True))
