"""How likely given continuations are: many of them after one prefix, which is read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from bloomlab.errors import InputError
from bloomlab.model.bloom import BloomModel
from bloomlab.model.cache import KVCache
from bloomlab.model.inputs import check_ids
from bloomlab.model.memory import check_memory
from bloomlab.model.prompt import read_prompt


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scores:
    """Log-probabilities of continuations, in nats.

    Attributes:
        tokens: ids of the continuations, padded on the right.
        mask: True for tokens.
        log_probs: of each token given what is before it; 0 for padding.
    """

    tokens: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    log_probs: Float[Tensor, "batch pos"]

    @property
    def sums(self) -> Float[Tensor, " batch"]:
        """Log-probability of each whole continuation, in nats."""
        return self.log_probs.sum(-1)

    @property
    def means(self) -> Float[Tensor, " batch"]:
        """Log-probability per token of each continuation, in nats."""
        return self.sums / self.mask.sum(-1)


class Scoring(BloomModel):
    """Scores of continuations, for a BLOOM with a language-model head."""

    @torch.no_grad()
    def score_continuations(
        self, prompt: Any, continuations: Any, *, head_mask: Any = None, batch_size: int = 32
    ) -> Scores:
        """How likely each continuation is after the prompt; `.sums` in nats.

        As full forwards give it, but the prompt is read once and its keys and values shared.
        A text's tokens are those of prompt and continuation apart: start the continuation with its
        space (" Paris"). Hooks that are attached see the prompt alone, then each batch alone.

        Args:
            prompt: one text, or its ids [pos] or [1 pos].
            continuations: texts, or lists of ids of any length, or ids [batch pos].
            head_mask: as in a forward: [head] or [layer head].
            batch_size: continuations per forward.

        Raises:
            InputError: an empty or several prompts, an empty continuation, ids out of range, or
                more keys and values than memory holds.
        """
        if isinstance(prompt, Tensor) and prompt.ndim == 1:
            prompt = prompt[None]
        start = read_prompt(
            self, prompt, attention_mask=None, pad_token_id=-1, past=None, use_cache=True
        )
        if len(start.ids) != 1:
            raise InputError(f"{len(start.ids)} prompts; expected one, which all continue.")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}, expected a whole number from 1.")
        tokens, mask = self._ragged(continuations)
        length = start.ids.shape[1]
        n_row, total = min(batch_size, len(tokens)), length + tokens.shape[1]
        check_memory(self, rows=n_row, prompt=length, length=total, cached=0)
        decoder = start.decoder(self, head_mask)
        first = decoder.advance(start.ids)[:, None]
        cache = decoder.cache or KVCache()
        found = [
            self._scored(ids, real, first, cache=cache, head_mask=head_mask)
            for ids, real in zip(tokens.split(batch_size), mask.split(batch_size), strict=True)
        ]
        return Scores(tokens=tokens, mask=mask, log_probs=torch.cat(found))

    def _scored(
        self,
        ids: Int[Tensor, "batch pos"],
        real: Bool[Tensor, "batch pos"],
        first: Float[Tensor, "1 1 vocab"],
        *,
        cache: KVCache,
        head_mask: Any,
    ) -> Float[Tensor, "batch pos"]:
        n, longest = len(ids), int(real.sum(-1).max())
        logits = first.expand(n, -1, -1)
        if longest > 1:
            read = slice(0, longest - 1)
            held = real.new_ones(n, len(cache))
            rest = self(
                ids[:, read],
                attention_mask=torch.cat([held, real[:, read]], -1).long(),
                past_key_values=cache.fork(n),
                head_mask=head_mask,
                use_cache=True,
                return_type="logits",
            )
            logits = torch.cat([logits, rest], 1)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
        loss = F.cross_entropy(wide, ids[:, :longest].flatten(), reduction="none")
        scores = -loss.unflatten(0, (n, longest))
        return F.pad(scores.masked_fill(~real[:, :longest], 0.0), (0, ids.shape[1] - longest))

    def _ragged(self, given: Any) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """Continuations padded on the right, and which tokens are real."""
        if isinstance(given, str) or not isinstance(given, Sequence | Tensor) or not len(given):
            raise InputError(f"continuations is {given!r:.80}, expected several texts or ids.")
        rows = []
        for i, one in enumerate(given):
            try:
                ids = self.to_tokens(one)[0] if isinstance(one, str) else torch.as_tensor(one)
            except (TypeError, ValueError, RuntimeError) as error:
                raise InputError(
                    f"continuation {i} is {one!r:.80}: {error} Expected a text that is not empty, "
                    "or a list of token ids."
                ) from error
            if ids.ndim != 1 or not len(ids):
                raise InputError(f"continuation {i} is {one!r:.80}, expected at least one token.")
            check_ids(ids[None], self.config.vocab_size)
            rows.append(ids.to(self.device).long())
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        columns = torch.arange(tokens.shape[1], device=self.device)
        return tokens, columns < lengths[:, None]
