"""From tokens to vectors and back: the embedding table and the unembedding that shares it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from bloomlab.model.config import BloomConfig
from bloomlab.model.hooks import HookPoint, hooked
from bloomlab.model.linear import linear


class Embedding(nn.Embedding):
    """Token embedding, before the embedding LayerNorm."""

    def __init__(self, config: BloomConfig) -> None:
        super().__init__(config.vocab_size, config.hidden_size)
        self.hook_out = HookPoint()  # batch pos d_model

    def reset_parameters(self) -> None:
        """Random weights as in torch; on meta, where drawing imports torch's compiler, nothing."""
        if not self.weight.is_meta:
            super().reset_parameters()

    @property
    def W_E(self) -> Float[Tensor, "vocab d_model"]:
        """The table itself, under TransformerLens' name."""
        return self.weight

    def forward(self, input: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        """Rows of the table."""
        return hooked(self.hook_out, super().forward(input))


class Unembed(nn.Module):
    """From the final norm's output to logits; shares the embedding's weights when tied."""

    def __init__(self, embed: nn.Embedding, *, tied: bool) -> None:
        super().__init__()
        # in a tuple it is no registered child: the table has one entry in the state dict
        self._tied_to = (embed,)
        self.weight = None if tied else nn.Parameter(torch.empty_like(embed.weight))

    def reset_parameters(self) -> None:
        """A random table of its own, as in torch's own modules; nothing when tied."""
        if self.weight is not None:
            nn.init.normal_(self.weight)

    @property
    def W_U(self) -> Float[Tensor, "d_model vocab"]:
        """Unembedding weights: a view of the parameter."""
        return (self._tied_to[0].weight if self.weight is None else self.weight).T

    @property
    def b_U(self) -> Float[Tensor, " vocab"]:
        """Zeros: BLOOM's unembedding has no bias."""
        return torch.zeros_like(self.W_U[0])

    def forward(self, stream: Float[Tensor, "*lead d_model"]) -> Float[Tensor, "*lead vocab"]:
        """Logits."""
        return linear(stream, self.W_U.T)
