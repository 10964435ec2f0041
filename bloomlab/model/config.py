"""Configuration: every field of transformers' BloomConfig, checked, plus the ALiBi mode."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import BloomConfig as HFBloomConfig

from bloomlab.errors import ConfigError, InputError, UnknownArgumentError
from bloomlab.model.files import FORMATS, read_json
from bloomlab.model.kept import check_kept, check_layers

ALIBI_MODES = ("hf", "exact")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# Fields of real BLOOM config files that no code reads (Megatron's); kept, written back on saving.
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
    "name_or_path",
    "output_attentions",
)
# ours alone; None in a model that is whole
PRUNED = ("edited_slopes", "kept_heads", "kept_layers", "kept_neurons")
KNOWN = {
    "alibi",
    *PRUNED,
    *(field.name for field in dataclasses.fields(HFBloomConfig)),
    *MEGATRON_LEFTOVERS,
    *ALIASES,
    *INHERITED,
}
# what may differ from the file without other weights
CHANGEABLE = (
    "alibi",
    "attention_dropout",
    "bos_token_id",
    "classifier_dropout",
    "eos_token_id",
    "hidden_dropout",
    "id2label",
    "label2id",
    "num_labels",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "problem_type",
    "return_dict",
    "use_cache",
)
# what strict validation and the conversions before it raise
INVALID = (StrictDataclassError, AttributeError, TypeError, ValueError)


class BloomConfig(HFBloomConfig):
    """Shape and behaviour of a BLOOM, with transformers' names, defaults and file format.

    Adds `alibi`: "hf" (transformers' absolute bias in the model's dtype) or "exact" (relative,
    float32). Real config files may call `hidden_size` `n_embed`, `n_head` `num_attention_heads`
    and `n_layer` `num_hidden_layers`.

    A pruned model's also has `kept_heads` and `kept_neurons` (for each layer the numbers of what
    was kept, of `n_head` and of 4 x `hidden_size`), `kept_layers` (their numbers before) and
    `edited_slopes` (pruned layers whose ALiBi slopes are not those of the kept heads).

    Raises:
        UnknownArgumentError: a keyword that neither transformers nor BLOOM's config files know.
            (Files may hold more; it is kept.)
        ConfigError: a value of the wrong type or range, or sizes that do not fit together.
    """

    alibi: str = "hf"
    kept_heads: Any = None
    kept_layers: Any = None
    kept_neurons: Any = None
    edited_slopes: Any = None

    def __init__(self, **fields: Any) -> None:
        for name in fields:
            if name not in KNOWN:
                raise UnknownArgumentError("BloomConfig", name, sorted(KNOWN))
        try:
            super().__init__(**{"alibi": "hf", **fields})
        except INVALID as error:
            raise ConfigError(f"not a BLOOM configuration: {error}") from error
        self.check()

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The configuration in a parsed config.json, changed by `kwargs`.

        Entries nobody knows are kept as attributes and written back, not refused; what
        transformers drops is dropped (generation settings: generation_config.json has them).

        Raises:
            UnknownArgumentError: a keyword that is no field, unless `return_unused_kwargs`.
            ConfigError: the entries describe no BLOOM.
        """
        if (kind := config_dict.get("model_type", "bloom")) != "bloom":
            raise ConfigError(f"model_type is {kind!r}, expected 'bloom': bloomlab reads no other.")
        for name in () if kwargs.get("return_unused_kwargs") else kwargs:
            if name not in KNOWN and not name.startswith("_") and name != "return_unused_kwargs":
                raise UnknownArgumentError("BloomConfig", name, sorted(KNOWN))
        known = {name: value for name, value in config_dict.items() if name in KNOWN}
        extra = {n: v for n, v in config_dict.items() if n not in KNOWN and not hasattr(cls, n)}
        try:
            result = super().from_dict(known, **kwargs)
            kept = vars(HFBloomConfig(**extra))
        except ConfigError:
            raise
        except INVALID as error:
            raise ConfigError(f"not a BLOOM configuration: {error}") from error
        config = result[0] if isinstance(result, tuple) else result
        for name in extra.keys() & kept.keys():
            setattr(config, name, kept[name])
        config.check()
        return result

    @classmethod
    def from_json_file(cls, json_file: Any) -> Any:
        """The configuration in a file; see `from_dict`."""
        return cls.from_dict(cls._dict_from_json_file(json_file))

    def check(self) -> None:
        """Raise a ConfigError unless the values describe a BLOOM."""
        for name in ("vocab_size", "hidden_size", "n_layer", "n_head", "pretraining_tp"):
            if type(size := getattr(self, name)) is not int or size < 1:
                raise ConfigError(f"{name} is {size!r}, expected a positive whole number.")
        if not self.num_labels:
            raise ConfigError("num_labels is 0 (id2label is empty), expected at least one.")
        if self.hidden_size % self.n_head:
            raise ConfigError(
                f"hidden_size {self.hidden_size} is not divisible by n_head {self.n_head}; "
                "every head takes hidden_size / n_head dimensions."
            )
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= (rate := getattr(self, name)) < 1:
                raise ConfigError(f"{name} is {rate}, expected a probability in [0, 1).")
        if not self.layer_norm_epsilon > 0:
            raise ConfigError(f"layer_norm_epsilon is {self.layer_norm_epsilon}, expected > 0.")
        if not self.initializer_range >= 0:
            raise ConfigError(f"initializer_range is {self.initializer_range}, expected >= 0.")
        if self.problem_type not in (None, *PROBLEM_TYPES):
            raise ConfigError(f"problem_type is {self.problem_type!r}, expected {PROBLEM_TYPES}.")
        if self.alibi not in ALIBI_MODES:
            raise ConfigError(f"alibi is {self.alibi!r}, expected one of {ALIBI_MODES}.")
        check_kept("kept_heads", self.kept_heads, self.n_layer, self.n_head)
        check_kept("kept_neurons", self.kept_neurons, self.n_layer, 4 * self.hidden_size)
        check_layers("kept_layers", self.kept_layers, self.n_layer)
        check_layers("edited_slopes", self.edited_slopes)

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.n_head

    def heads_of(self, layer: int) -> tuple[int, ...]:
        """Numbers of the heads that a layer has: all `n_head`, or the kept ones."""
        return tuple(range(self.n_head) if self.kept_heads is None else self.kept_heads[layer])

    def neurons_of(self, layer: int) -> int:
        """Width of a layer's MLP."""
        if self.kept_neurons is None:
            return 4 * self.hidden_size
        return len(self.kept_neurons[layer])

    def to_dict(self) -> dict[str, Any]:
        """Every field, without those that only a pruned model has where it is none."""
        fields = super().to_dict()
        return {n: v for n, v in fields.items() if n not in PRUNED or v is not None}

    @property
    def n_label(self) -> int:
        """Number of labels of a classification head (transformers' num_labels may be unset)."""
        return self.num_labels or 0


def read_config(folder: Path, **changed: Any) -> BloomConfig:
    """The configuration in a folder, with some fields changed; None leaves the file's value.

    Raises:
        CheckpointError: no config.json, or not JSON.
        ConfigError: another architecture, or values that describe no BLOOM.
        UnknownArgumentError: a field that no BLOOM has.
    """
    for name in changed:
        if name not in CHANGEABLE:
            known = ["dtype", "device", "revision", "cache_dir", "local_files_only", "allow_pickle"]
            raise UnknownArgumentError("from_pretrained", name, [*known, *CHANGEABLE])
    changed = {name: value for name, value in changed.items() if value is not None}
    fields = read_json(folder / "config.json")
    if changed.keys() & {"num_labels", "id2label"}:  # other labels than the file's
        labels = ("num_labels", "id2label", "label2id")
        fields = {name: value for name, value in fields.items() if name not in labels}
    fields |= changed
    try:
        return BloomConfig.from_dict(fields)
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from error


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A torch dtype from its name; None and "auto" give None."""
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in FORMATS.values():
        raise InputError(
            f"dtype is {dtype!r}, expected 'float32', 'bfloat16', 'float16' or 'float64'."
        )
    return found


def as_device(device: torch.device | str | None) -> torch.device:
    """A torch device that is here, from its name; None is the CPU."""
    try:
        place = torch.device("cpu" if device is None else device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        says = str(error).splitlines()[0]
        why = "torch knows no such device" if says.startswith("Expected one of") else says
        raise InputError(
            f"device is {str(device)!r}, which is not here ({why}). Expected 'cpu', 'cuda' (if "
            "there is one) or another device torch can use; `bloomlab info` lists GPUs."
        ) from error
    if place.type == "meta":
        raise InputError("device is 'meta', which holds no numbers; expected one that does.")
    return place
