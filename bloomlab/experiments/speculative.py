"""How well a smaller model drafts for the whole one: acceptance in speculative decoding.

The draft says a few tokens, the target looks at all of them in one forward and keeps the first that
it would have said (Leviathan et al., 2023, arXiv:2211.17192). What the target says is unchanged;
how many tokens it keeps tells how close the two are where it counts.
"""

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.experiments.dataset import Dataset, dataset

AT_ONCE = 8  # examples in a forward


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """How much of a draft is kept, for every example.

    Attributes:
        sampled: chance that a token drawn from the draft is kept, sum over the vocabulary of
            min(p, q) (Leviathan et al., corollary 3.6): mean over the example's positions.
        greedy: share of positions at which both have the same likeliest token.
    """

    sampled: Float[Tensor, " example"]
    greedy: Float[Tensor, " example"]

    @property
    def frame(self) -> pd.DataFrame:
        """One row an example: sampled, greedy."""
        return pd.DataFrame({"sampled": self.sampled.tolist(), "greedy": self.greedy.tolist()})

    def tokens_per_call(self, gamma: int, *, greedy: bool = False) -> float:
        """Expected tokens for each call of the target, which checks `gamma` drafted tokens.

        (1 - a^(gamma + 1)) / (1 - a), a the mean acceptance, taken as the same at every position
        (Leviathan et al., equation 1).

        Raises:
            InputError: gamma below 1.
        """
        if isinstance(gamma, bool) or gamma < 1:
            raise InputError(f"gamma is {gamma!r}, expected 1 or more drafted tokens.")
        rate = (self.greedy if greedy else self.sampled).mean().item()
        return sum(rate**i for i in range(gamma + 1))


@torch.no_grad()
def draft_acceptance(
    target: Any,
    draft: Any,
    tokens: Any,
    attention_mask: Any = None,
    *,
    temperature: float = 1.0,
    progress: bool = True,
) -> Acceptance:
    """Acceptance of a draft on given texts: what both say next after each attended token.

    Args:
        target: a BLOOM with an unembedding.
        draft: another with the same vocabulary, such as a pruned one; or a head mask [layer head]
            of the target.
        tokens: texts, ids [batch pos] or a dict with `attention_mask`.
        attention_mask: [batch pos], 0 for padding.
        temperature: of both distributions.
        progress: show a bar while it takes long.

    Raises:
        InputError: other vocabularies, a temperature that is not above 0, no data.
        ShapeError: masks that do not fit.
    """
    if not temperature > 0:
        raise InputError(f"temperature is {temperature!r}, expected above 0.")
    data, mask = dataset(target, tokens, attention_mask), None
    if not hasattr(draft, "config"):
        draft, mask = target, draft
    n_target, n_draft = target.config.vocab_size, draft.config.vocab_size
    if n_target != n_draft:
        raise InputError(
            f"the draft has a vocabulary of {n_draft} tokens, the target of {n_target}: acceptance "
            "compares them token by token."
        )
    sampled, greedy = [], []
    for _, part in data.chunks(AT_ONCE, progress=progress):
        p, q = (_chances(*one, part, temperature) for one in ((target, None), (draft, mask)))
        seen = part.attended.to(p)
        kept = torch.minimum(p, q.to(p)).sum(-1)
        same = (p.argmax(-1) == q.argmax(-1)).to(p)
        sampled.append((kept * seen).sum(-1) / seen.sum(-1))
        greedy.append((same * seen).sum(-1) / seen.sum(-1))
    return Acceptance(sampled=torch.cat(sampled).cpu(), greedy=torch.cat(greedy).cpu())


def _chances(
    model: Any, head_mask: Any, data: Dataset, temperature: float
) -> Float[Tensor, "batch pos vocab"]:
    mask = None if data.mask is None else data.mask.long()
    logits = model(data.tokens, attention_mask=mask, head_mask=head_mask, use_cache=False).logits
    wide = torch.promote_types(logits.dtype, torch.float32)
    return (logits.to(wide) / temperature).softmax(-1)
