"""What the residual stream would predict after each layer; see `analysis.lens`."""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.analysis.lens import Reading, ReadOut, read_streams
from bloomlab.experiments.dataset import dataset
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.residual_stream import (
    LOGITS_AT_ONCE,
    Place,
    Streams,
    places,
    require_unembedding,
    streams,
    token_ids,
)
from bloomlab.experiments.sweep import rows_that_fit
from bloomlab.experiments.tuned_lens import TunedLens
from bloomlab.printable import printable_tokens


@dataclass(frozen=True, kw_only=True, repr=False)
class Lens(Framed):
    """Predictions of every attended token's stream at every place; made by `logit_lens`.

    Attributes:
        places: layer and site; the layer axis of `reading`.
        text: number of each row's text.
        pos: attended tokens before it in its text.
        token: id of the row's token.
        next: id of the token that follows; -1 for a text's last.
        chosen: the tokens of interest.
        reading: ranks, log-probabilities, entropies and divergences.
        tokenizer: names the tokens in frames; None: ids alone.
    """

    places: list[Place]
    text: Int[Tensor, " row"]
    pos: Int[Tensor, " row"]
    token: Int[Tensor, " row"]
    next: Int[Tensor, " row"]
    chosen: Int[Tensor, " some"]
    reading: Reading
    tokenizer: Any

    @property
    def frame(self) -> pd.DataFrame:
        """One row for each place and token of a text.

        Columns: layer, site, text, pos, token; top and top_probability (the likeliest token here);
        last, last_rank, last_probability (the token that the model itself finds likeliest); next,
        next_rank, next_probability (the token that follows; missing for a text's last); entropy
        and kl (of the model's prediction from this one), in nats. Rank 0 is the likeliest.
        """
        read = self.reading
        after = self._rows(self.next)
        found = self._index() | {
            "top": read.top[..., 0].flatten(),
            "top_probability": read.top_logprob[..., 0].exp().flatten(),
            "last": self._rows(read.last),
            "last_rank": read.last_rank.flatten(),
            "last_probability": read.last_logprob.exp().flatten(),
            "next": after,
            "next_rank": read.chosen_rank[..., -1].flatten(),
            "next_probability": read.chosen_logprob[..., -1].exp().flatten(),
            "entropy": read.entropy.flatten(),
            "kl": read.kl.flatten(),
        }
        frame = _frame(found).astype({"next": "Int64", "next_rank": "Int64"})
        missing = (after < 0).numpy()
        frame.loc[missing, ["next", "next_rank"]] = pd.NA
        frame.loc[missing, "next_probability"] = float("nan")
        return frame

    @property
    def top(self) -> pd.DataFrame:
        """The k likeliest tokens of each row of `frame`.

        Columns: layer, site, text, pos, token; rank, predicted (id), label (if there is a
        tokenizer), probability.
        """
        read, k = self.reading, self.reading.top.shape[-1]
        rank = repeat(torch.arange(k), "k -> (rows k)", rows=read.entropy.numel())
        return self._listed(rank, read.top.flatten(), read.top_logprob.flatten(), k)

    @property
    def interest(self) -> pd.DataFrame:
        """The tokens of interest in each row of `frame`; columns as of `top`."""
        read, n = self.reading, len(self.chosen)
        ids = repeat(self.chosen, "some -> (rows some)", rows=read.entropy.numel())
        rank, logprob = read.chosen_rank[..., :n], read.chosen_logprob[..., :n]
        return self._listed(rank.flatten(), ids, logprob.flatten(), n)

    def _listed(self, rank: Tensor, ids: Tensor, logprob: Tensor, n: int) -> pd.DataFrame:
        index = {
            name: [one for one in values for _ in range(n)]
            if isinstance(values, list)
            else values.repeat_interleave(n)
            for name, values in self._index().items()
        }
        found = {**index, "rank": rank, "predicted": ids}
        if self.tokenizer is not None:
            names = {i: printable_tokens(self.tokenizer, [i])[0] for i in set(ids.tolist())}
            found["label"] = [names[i] for i in ids.tolist()]
        return _frame(found | {"probability": logprob.exp()})

    def _rows(self, values: Int[Tensor, " row"]) -> Int[Tensor, " all"]:
        return repeat(values, "row -> (layer row)", layer=len(self.places))

    def _index(self) -> dict[str, Any]:
        n = len(self.text)
        layers = torch.tensor([layer for layer, _ in self.places]).repeat_interleave(n)
        names = [site for _, site in self.places for _ in range(n)]
        rows = {name: self._rows(getattr(self, name)) for name in ("text", "pos", "token")}
        return {"layer": layers, "site": names, **rows}


@torch.no_grad()
def logit_lens(
    model: Any,
    tokens: Any,
    attention_mask: Any = None,
    *,
    k: int = 5,
    tokens_of_interest: Any = None,
    sites: Any = ("mid", "post"),
    lens: TunedLens | None = None,
    progress: bool = True,
) -> Lens:
    """What the final norm and the unembedding make of the stream inside every layer.

    nostalgebraist (2020); with `lens`, the stream first goes through its affine maps (tuned lens,
    Belrose et al., 2023, arXiv:2303.08112). Logits are in memory for a few tokens of one layer.

    Args:
        model: a BLOOM with an unembedding, whole or pruned.
        tokens: texts, ids [batch pos] or a dict with `attention_mask`.
        attention_mask: [batch pos], 0 for padding; padding has no rows.
        k: how many of the likeliest tokens are kept.
        tokens_of_interest: tokens followed through all layers: an id, a text, or several.
        sites: "mid" (after attention), "post" (after the MLP), "pre" (before the layer).
        lens: of this very model, and trained at these sites.
        progress: show a bar while it takes long.

    Raises:
        UnsupportedError: a model without unembedding.
        UnknownNameError: no such site, or one that the lens was not trained at.
        InputError: no data, k out of range, tokens that are none, or another model's lens.
    """
    require_unembedding(model)
    data, wanted = dataset(model, tokens, attention_mask), places(model, sites)
    interest = token_ids(model, tokens_of_interest)
    if lens is not None:
        lens.check(model)
    read_outs = [_read_out(model, lens, place) for place in wanted]
    at_once = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    seen: list[tuple[int, Streams]] = []
    parts: list[Reading] = []
    for first, some in data.chunks(rows_that_fit(model, data), progress=progress):
        stream = streams(model, some, wanted)
        chosen = repeat(interest, "some -> row some", row=len(stream.text))
        chosen = torch.cat([chosen, rearrange(stream.next.clamp(min=0), "row -> row 1")], 1)
        values = [stream.values[place] for place in wanted]
        parts.append(
            read_streams(
                values, read_outs, stream.last, model.unembed, chosen=chosen, k=k, at_once=at_once
            )
        )
        seen.append((first, stream))
    rows = {
        name: torch.cat([getattr(stream, name) for _, stream in seen]).cpu()
        for name in ("pos", "token", "next")
    }
    return Lens(
        places=wanted,
        text=torch.cat([first + stream.text for first, stream in seen]).cpu(),
        chosen=interest.cpu(),
        reading=Reading.joined(parts),
        tokenizer=model.tokenizer,
        **rows,
    )


def _read_out(model: Any, lens: TunedLens | None, place: Place) -> ReadOut:
    if lens is None:
        return lambda stream: model.unembed(model.ln_final.plain(stream))
    translate = lens.translator(*place, device=model.device)

    def read(stream: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        return model.unembed(model.ln_final.plain(translate(stream).to(stream.dtype)))

    return read


def _frame(columns: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame(
        {name: v.numpy() if isinstance(v, Tensor) else v for name, v in columns.items()}
    )
