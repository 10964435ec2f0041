"""What a forward pass returns: transformers' output classes, and what they are made from."""

from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from torch import Tensor
from transformers import modeling_outputs as theirs
from transformers.modeling_outputs import QuestionAnsweringModelOutput, TokenClassifierOutput

from bloomlab.errors import InputError

__all__ = [
    "Backbone",
    "BaseModelOutputWithPastAndCrossAttentions",
    "CausalLMOutput",
    "QuestionAnsweringModelOutput",
    "SequenceClassifierOutputWithPast",
    "TokenClassifierOutput",
    "bare",
]


# transformers 5.24 renamed the field; `past_key_values` goes on as the old name of it
PAST = "cache"
RENAMED = PAST in {field.name for field in fields(theirs.CausalLMOutputWithCrossAttentions)}
PAST = PAST if RENAMED else "past_key_values"


class BothNames:
    """A ModelOutput's cache under the name of any transformers, without notices."""

    def _replace_old_cache_name(self, key: str) -> str:
        return PAST if key == "past_key_values" else key

    if RENAMED:

        @property
        def past_key_values(self) -> Any:
            """The KVCache of this forward."""
            return getattr(self, PAST)


@dataclass
class BaseModelOutputWithPastAndCrossAttentions(
    BothNames, theirs.BaseModelOutputWithPastAndCrossAttentions
):
    """transformers' output of a model without a head."""

    if RENAMED:
        cache: Any = None  # a KVCache
    else:
        past_key_values: Any = None


@dataclass
class SequenceClassifierOutputWithPast(BothNames, theirs.SequenceClassifierOutputWithPast):
    """transformers' output of a sequence classifier."""

    if RENAMED:
        cache: Any = None  # a KVCache
    else:
        past_key_values: Any = None


@dataclass
class CausalLMOutput(BothNames, theirs.CausalLMOutputWithCrossAttentions):
    """transformers' output; `output[:, -1]` indexes the logits.

    TransformerLens' tools call `model(tokens)` and index what comes back as logits.
    """

    if RENAMED:
        cache: Any = None  # a KVCache
    else:
        past_key_values: Any = None

    def __getitem__(self, key: Any) -> Any:
        """A field by name or number, or a part of the logits by a tuple of indices."""
        if isinstance(key, tuple) and self.logits is not None:
            return self.logits[key]
        return super().__getitem__(key)


class Backbone(NamedTuple):
    """What the blocks leave behind, before any head."""

    last: Tensor  # batch pos d_model; after the final norm
    past_key_values: Any = None
    hidden_states: tuple[Tensor, ...] | None = None  # layer + 1 of [batch pos d_model]
    attentions: tuple[Tensor, ...] | None = None  # layer of [batch head query key]
    stopped: bool = False  # `last` is the stream before `stop_at_layer`

    def fields(self, *, past: bool = True) -> dict[str, Any]:
        """The fields that outputs of all classes share."""
        shared = {"hidden_states": self.hidden_states, "attentions": self.attentions}
        return {**shared, PAST: self.past_key_values} if past else shared


def bare(output: Any, logits: Tensor, return_type: str) -> Any:
    """Logits, loss or both as tensors, in TransformerLens' manner."""
    if return_type not in ("logits", "loss", "both"):
        raise InputError(
            f"return_type is {return_type!r}, expected 'logits', 'loss', 'both' or None."
        )
    if return_type == "logits":
        return logits
    if output.get("loss") is None:
        raise InputError(f"return_type={return_type!r} needs labels.")
    return output.loss if return_type == "loss" else (logits, output.loss)
