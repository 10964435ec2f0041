"""Configuration: every field of transformers' BloomConfig, checked, plus the ALiBi mode."""

import dataclasses
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import BloomConfig as HFBloomConfig

from bloomlab.errors import ConfigError, UnknownArgumentError

ALIBI_MODES = ("hf", "exact")

# Fields of real BLOOM config files that no code reads (Megatron's); kept, and written back on saving.
MEGATRON_LEFTOVERS = (
    "attention_softmax_in_fp32",
    "bias_dropout_fusion",
    "masked_softmax_fusion",
    "n_inner",
    "offset_alibi",
    "seq_length",
    "skip_bias_add",
    "skip_bias_add_qkv",
    "unk_token_id",
)
ALIASES = ("n_embed", "num_attention_heads", "num_hidden_layers", "num_labels", "torch_dtype")
INHERITED = (
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "classifier_dropout",
    "output_attentions",
    "use_return_dict",
)
KNOWN = {
    "alibi",
    *(field.name for field in dataclasses.fields(HFBloomConfig)),
    *MEGATRON_LEFTOVERS,
    *ALIASES,
    *INHERITED,
}


class BloomConfig(HFBloomConfig):
    """Shape and behaviour of a BLOOM, with transformers' names, defaults and file format.

    Adds `alibi`: "hf" (transformers' absolute bias in the model's dtype) or "exact" (relative,
    float32). Real config files may call `hidden_size` `n_embed`, `n_head` `num_attention_heads`
    and `n_layer` `num_hidden_layers`.

    Raises:
        UnknownArgumentError: a keyword that neither transformers nor BLOOM's config files know.
            (Files read by `from_pretrained` or `from_dict` may hold more; it is kept.)
        ConfigError: a value of the wrong type or range, or sizes that do not fit together.
    """

    alibi: str = "hf"

    def __init__(self, **fields: Any) -> None:
        for name in fields:
            if name not in KNOWN:
                raise UnknownArgumentError("BloomConfig", name, sorted(KNOWN))
        try:
            super().__init__(**{"alibi": "hf", **fields})
        except (StrictDataclassError, TypeError, ValueError) as error:
            raise ConfigError(f"not a BLOOM configuration: {error}") from error
        self.check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration in a parsed config.json; entries nobody knows are kept, not refused."""
        extra = {name: value for name, value in config_dict.items() if name not in KNOWN}
        result = super().from_dict(
            {name: value for name, value in config_dict.items() if name in KNOWN}, **kwargs
        )
        config = result[0] if isinstance(result, tuple) else result
        for name, value in extra.items():
            if name not in ("model_type", "transformers_version"):
                setattr(config, name, value)
        return result

    def check(self) -> None:
        """Raise a ConfigError unless the values describe a BLOOM."""
        for name in ("vocab_size", "hidden_size", "n_layer", "n_head", "pretraining_tp"):
            if (size := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {size}, expected a positive number.")
        if self.hidden_size % self.n_head:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not divisible by n_head {self.n_head}; "
                "every head takes hidden_size / n_head dimensions."
            )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= (rate := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {rate}, expected a probability in [0, 1).")
        if self.layer_norm_epsilon <= 0:
            raise ConfigError(f"layer_norm_epsilon is {self.layer_norm_epsilon}, expected > 0.")
        if self.alibi not in ALIBI_MODES:
            raise ConfigError(f"alibi is {self.alibi!r}, expected one of {ALIBI_MODES}.")

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.n_head
