"""Loading and saving in transformers' layout. transformers' parameter names live only here."""

import re
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import torch
import transformers
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

from bloomlab.errors import CheckpointError, ConfigError, InputError, UnsupportedError
from bloomlab.model.alibi import alibi_slopes
from bloomlab.model.config import BloomConfig
from bloomlab.model.files import Weights, find_folder, read_json
from bloomlab.tokens import BloomTokenizer

# ours -> transformers', applied in order
NAMES = (
    (r"^embed\.", "word_embeddings."),
    (r"^embed_ln\.", "word_embeddings_layernorm."),
    (r"^blocks\.", "h."),
    (r"\.ln1\.", ".input_layernorm."),
    (r"\.attn\.qkv\.", ".self_attention.query_key_value."),
    (r"\.attn\.o\.", ".self_attention.dense."),
    (r"\.ln2\.", ".post_attention_layernorm."),
    (r"\.mlp\.fc_in\.", ".mlp.dense_h_to_4h."),
    (r"\.mlp\.fc_out\.", ".mlp.dense_4h_to_h."),
    (r"^ln_final\.", "ln_f."),
    (r"^unembed\.", "lm_head."),
)
HEADS = ("lm_head.", "score.", "classifier.", "qa_outputs.")
PREFIX = "transformer."
SLOPES = "self_attention.alibi_slopes"  # ours alone: written only where slopes were edited


def hf_name(name: str) -> str:
    """transformers' name of one of our parameters, as in a BloomModel (no prefix)."""
    for ours, theirs in NAMES:
        name = re.sub(ours, theirs, name)
    return name


class Checkpoints(nn.Module):
    """Loading, saving and conversion, for every BLOOM class."""

    config: BloomConfig
    blocks: Any
    tokenizer: Any
    hf_class = "BloomModel"  # the transformers class this one corresponds to

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        allow_pickle: bool = False,
        alibi: str | None = None,
    ) -> Self:
        """The model stored in a folder, on the hub or in the package ("demo"), in eval mode.

        Args:
            path: "demo", a folder, or a hub id such as "bigscience/bloom-560m".
            dtype: number format, such as torch.bfloat16 or "bfloat16"; None keeps the file's.
            device: where the weights go; None is the CPU (memory-mapped: nothing is copied
                unless the dtype changes).
            revision: branch, tag or commit of a hub id.
            cache_dir: where downloads are kept; None is huggingface-hub's own place.
            local_files_only: never ask the hub.
            allow_pickle: also read pytorch_model.bin (tensors only).
            alibi: "hf" or "exact"; None takes the config's.

        Raises:
            CheckpointError: files missing, truncated, inconsistent or of another shape.
            ConfigError: a config.json that describes no BLOOM.
        """
        wanted = as_dtype(dtype)
        folder = find_folder(
            path,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_pickle=allow_pickle,
        )
        config = read_config(folder)
        config._name_or_path = str(path)
        if alibi is not None:
            config.alibi = alibi
            config.check()
        weights = Weights(folder, allow_pickle=allow_pickle, device=device or "cpu")
        model = cls._assembled(config, weights, dtype=wanted, device=device, source=str(folder))
        if (folder / "tokenizer.json").exists():
            model.tokenizer = BloomTokenizer.from_pretrained(folder)
        return model.eval()

    @classmethod
    def from_hf(cls, hf_model: nn.Module, *, share: bool = False) -> Self:
        """A bloomlab model with a transformers model's weights: copies, or shared with `share`."""
        weights = {name: value.detach() for name, value in hf_model.named_parameters()}
        if not share:
            weights = {name: value.clone() for name, value in weights.items()}
        config = BloomConfig.from_dict(hf_model.config.to_dict())  # pyright: ignore  # HF config
        return cls._assembled(config, weights, source=type(hf_model).__name__).train(
            hf_model.training
        )

    def to_hf(self) -> Any:
        """The transformers model of the same class, with copies of the weights.

        Raises:
            UnsupportedError: transformers cannot express this model (edited ALiBi slopes).
        """
        if self._edited_slopes():
            raise UnsupportedError(
                "transformers computes ALiBi slopes itself; edited ones cannot go there."
            )
        hf_class = getattr(transformers, self.hf_class)
        config = transformers.BloomConfig.from_dict(self.config.to_dict())
        with torch.device("meta"):
            hf_model = hf_class(config)
        weights = {name: value.detach().clone() for name, value in self.hf_named_parameters()}
        hf_model.load_state_dict(weights, assign=True, strict=False)
        hf_model.tie_weights()
        left = [name for name, value in hf_model.named_parameters() if value.is_meta]
        if left:
            raise UnsupportedError(
                f"transformers' {self.hf_class} wants weights this model lacks: {left}."
            )
        return hf_model.train(self.training)

    def hf_named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """transformers' names with our parameters: the same objects, not copies."""
        prefix = "" if self.hf_class == "BloomModel" else PREFIX
        for ours, value in self.named_parameters():
            name = hf_name(ours)
            yield (name if name.startswith(HEADS) else prefix + name), value

    def save_pretrained(self, path: str | Path, *, max_shard_size: int | str = "5GB") -> None:
        """Write config, weights (safetensors) and tokenizer as transformers reads them.

        The files appear when all are written, so a failure leaves an older checkpoint intact.
        """
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().contiguous() for name, value in self.hf_named_parameters()}
        prefix = "" if self.hf_class == "BloomModel" else PREFIX
        for layer, slopes in self._edited_slopes().items():
            weights[f"{prefix}h.{layer}.{SLOPES}"] = slopes.detach().clone()
        config = BloomConfig.from_dict(self.config.to_dict())
        config.architectures = [self.hf_class]
        config.dtype = next(self.parameters()).dtype
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as scratch:
            save_torch_state_dict(weights, scratch, max_shard_size=max_shard_size)
            config.save_pretrained(scratch)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(scratch)
            for stale in folder.glob("model*.safetensors*"):
                stale.unlink()
            for file in Path(scratch).iterdir():
                shutil.move(file, folder / file.name)

    def _edited_slopes(self) -> dict[int, Tensor]:
        stock = alibi_slopes(self.config.n_head)
        return {
            i: b.attn.slopes
            for i, b in enumerate(self.blocks)
            if not torch.equal(b.attn.slopes.cpu(), stock)
        }

    @classmethod
    def _assembled(
        cls,
        config: BloomConfig,
        weights: Mapping[str, Tensor],
        *,
        dtype: torch.dtype | None = None,
        device: Any = None,
        source: str,
    ) -> Self:
        """A model built without memory, its parameters replaced by `weights`; all or nothing."""
        with torch.device("meta"):
            model: Any = cls(config)
        stored = {name.removeprefix(PREFIX): name for name in weights}
        wanted = {hf_name(ours): (ours, value) for ours, value in model.named_parameters()}
        missing, fresh = [], []
        for name, (ours, value) in wanted.items():
            if name not in stored:
                (fresh if name.startswith(HEADS[1:]) else missing).append(name)
                continue
            shape = (
                weights.shape(stored[name])
                if isinstance(weights, Weights)
                else weights[stored[name]].shape
            )
            if tuple(shape) != tuple(value.shape):
                raise CheckpointError(
                    f"{source}: {stored[name]} has shape {tuple(shape)}, the configuration expects "
                    f"{tuple(value.shape)}. Do config.json and the weights belong together?"
                )
        if missing:
            raise CheckpointError(f"{source} lacks {len(missing)} weights, such as {missing[0]!r}.")
        _report_unknown(source, set(stored) - set(wanted))
        if dtype is None:
            dtype = weights[stored["word_embeddings.weight"]].dtype
        if not dtype.is_floating_point:
            raise CheckpointError(
                f"{source} holds {dtype} weights; expected floating-point numbers."
            )
        state = {
            ours: weights[stored[name]].to(device, dtype)
            for name, (ours, _) in wanted.items()
            if name in stored
        }
        model.load_state_dict(state, assign=True, strict=False)
        if config.tie_word_embeddings and "lm_head.weight" in stored:
            _check_tied(
                weights[stored["lm_head.weight"]], weights[stored["word_embeddings.weight"]], source
            )
        if fresh:
            model.draw_fresh([name.split(".")[0] for name in fresh], dtype=dtype, device=device)
            warnings.warn(
                f"{source} has no {', '.join(sorted(fresh))}: newly drawn, train before use.",
                stacklevel=4,
            )
        for layer, block in enumerate(model.blocks):
            if (name := f"h.{layer}.{SLOPES}") in stored:
                block.attn.slopes = weights[stored[name]].float().cpu()
        return model

    def draw_fresh(self, names: Iterable[str], *, dtype: torch.dtype, device: Any) -> None:
        """Give the named child modules, built without memory, newly drawn weights."""
        modules = [self.get_submodule(name) for name in dict.fromkeys(names)]
        for module in modules:
            module.to_empty(device=device or "cpu").to(dtype)
        self.init_weights(modules)  # pyright: ignore[reportCallIssue]  # BloomModel has it


def load(
    name: str | Path,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    alibi: str | None = None,
    allow_pickle: bool = False,
    cache_dir: str | Path | None = None,
) -> Any:
    """A BloomForCausalLM with its tokenizer: `load("demo")`, a hub id, or a folder.

    Args:
        name: "demo" (packaged, offline), a hub id such as "bigscience/bloom-560m", or a folder.
        device: None takes a GPU if there is one.
        dtype: None takes float32 on a CPU, where half precision is slow and coarse, and the
            file's format on a GPU; "auto" always takes the file's.
        revision: branch, tag or commit of a hub id.
        alibi: "hf" (bit-like transformers, the default) or "exact" (relative, float32).
        allow_pickle: also read pytorch_model.bin (tensors only).
        cache_dir: where downloads are kept.

    Raises:
        CheckpointError: not found, not readable, or no BLOOM.
        TokenizerError: no tokenizer beside the weights.
    """
    from bloomlab.model.heads import BloomForCausalLM  # heads build on this file

    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None and place.type == "cpu":
        dtype = torch.float32
    folder = find_folder(name, revision=revision, cache_dir=cache_dir, allow_pickle=allow_pickle)
    read_config(folder)
    tokenizer = BloomTokenizer.from_pretrained(folder)
    model = BloomForCausalLM.from_pretrained(
        folder, dtype=dtype, device=place, alibi=alibi, allow_pickle=allow_pickle
    )
    model.config._name_or_path, model.tokenizer = str(name), tokenizer
    return model


def read_config(folder: Path) -> BloomConfig:
    """The configuration in a folder.

    Raises:
        CheckpointError: no config.json, or not JSON, or of another architecture.
        ConfigError: values that describe no BLOOM.
    """
    fields = read_json(folder / "config.json")
    if (kind := fields.get("model_type", "bloom")) != "bloom":
        raise CheckpointError(f"{folder} holds a {kind!r} model; bloomlab reads 'bloom' only.")
    try:
        return BloomConfig.from_dict(fields)
    except ConfigError as error:
        raise ConfigError(f"{folder / 'config.json'}: {error}") from error


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A torch dtype from its name; None and "auto" give None."""
    if dtype is None or dtype == "auto":
        return None
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise InputError(
            f"dtype is {dtype!r}, expected 'float32', 'bfloat16', 'float16' or 'float64'."
        )
    return found


def _report_unknown(source: str, names: set[str]) -> None:
    unknown = sorted(n for n in names if not n.startswith(HEADS) and not n.endswith(SLOPES))
    if unknown:
        warnings.warn(
            f"{source}: ignored {len(unknown)} tensors no BLOOM has, such as {unknown[0]!r}.",
            stacklevel=5,
        )


def _check_tied(unembedding: Tensor, embedding: Tensor, source: str) -> None:
    if unembedding.shape != embedding.shape or not torch.equal(unembedding, embedding):
        raise CheckpointError(
            f"{source}: lm_head.weight differs from word_embeddings.weight, but the configuration "
            "ties them. Set tie_word_embeddings to false in config.json to use both."
        )
