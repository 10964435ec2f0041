"""What a forward pass returns: transformers' output classes, under their names."""

from dataclasses import dataclass
from typing import Any

from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)

__all__ = [
    "BaseModelOutputWithPastAndCrossAttentions",
    "CausalLMOutput",
    "QuestionAnsweringModelOutput",
    "SequenceClassifierOutputWithPast",
    "TokenClassifierOutput",
]


@dataclass
class CausalLMOutput(CausalLMOutputWithCrossAttentions):
    """transformers' output; `output[:, -1]` indexes the logits.

    TransformerLens' tools call `model(tokens)` and index what comes back as logits.
    """

    past_key_values: Any = None  # a KVCache

    def __getitem__(self, key: Any) -> Any:
        """A field by name or number, or a part of the logits by a tuple of indices."""
        return self.logits[key] if isinstance(key, tuple) else super().__getitem__(key)
