"""Loading and saving in transformers' layout. transformers' parameter names live only here."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor, nn
from tqdm.auto import tqdm

from bloomlab.errors import CheckpointError, UnsupportedError
from bloomlab.model.alibi import alibi_slopes
from bloomlab.model.config import PRUNED, BloomConfig, as_device, as_dtype, read_config
from bloomlab.model.files import Weights, find_folder, replaced
from bloomlab.model.inflate import whole
from bloomlab.model.kept import check_slopes
from bloomlab.model.shards import write_weights
from bloomlab.tokens import BloomTokenizer

# ours -> transformers', applied in order
NAMES = (
    (r"^embed\.", "word_embeddings."),
    (r"^embed_ln\.", "word_embeddings_layernorm."),
    (r"^blocks\.", "h."),
    (r"\.ln1\.", ".input_layernorm."),
    (r"\.attn\.qkv\.", ".self_attention.query_key_value."),
    (r"\.attn\.o\.", ".self_attention.dense."),
    (r"\.attn\.slopes$", ".self_attention.alibi_slopes"),  # where someone made them trainable
    (r"\.ln2\.", ".post_attention_layernorm."),
    (r"\.mlp\.fc_in\.", ".mlp.dense_h_to_4h."),
    (r"\.mlp\.fc_out\.", ".mlp.dense_4h_to_h."),
    (r"^ln_final\.", "ln_f."),
    (r"^unembed\.", "lm_head."),
)

log = logging.getLogger("bloomlab")
HEADS = ("lm_head.", "score.", "classifier.", "qa_outputs.")
PREFIX = "transformer."
EMBEDDING, UNEMBEDDING = "word_embeddings.weight", "lm_head.weight"
SLOPES = "self_attention.alibi_slopes"  # ours alone: written only where slopes were edited

Model = TypeVar("Model", bound="Checkpoints")


def hf_name(name: str) -> str:
    """Name of one of our parameters in transformers' BloomModel (no prefix)."""
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
        cls: type[Model],
        path: str | Path,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        allow_pickle: bool = False,
        progress: bool = True,
        **config_fields: Any,
    ) -> Model:
        """The model stored in a folder, on the hub or in the package ("demo"), in eval mode.

        Args:
            path: "demo", a folder, or a hub id such as "bigscience/bloom-560m".
            dtype: number format, such as torch.bfloat16 or "bfloat16"; None keeps the file's (the
                embedding's, where they are mixed).
            device: where the weights go; None is the CPU (memory-mapped: nothing is copied
                unless the dtype changes).
            revision: branch, tag or commit of a hub id.
            cache_dir: where downloads are kept; None is huggingface-hub's own place.
            local_files_only: never ask the hub.
            allow_pickle: also read pytorch_model.bin (tensors only).
            progress: show a bar while it takes long.
            **config_fields: fields of the configuration to set otherwise than in the file, such
                as num_labels, id2label and label2id, hidden_dropout, or alibi="exact";
                torch_dtype is an older name of dtype.

        Raises:
            UnknownArgumentError: a keyword that is neither an argument nor a field.
            CheckpointError: files missing, truncated, inconsistent or of another shape.
            ConfigError: a config.json that describes no BLOOM.
        """
        older = config_fields.pop("torch_dtype", None)
        wanted, place = as_dtype(older if dtype is None else dtype), as_device(device)
        folder = find_folder(
            path,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            allow_pickle=allow_pickle,
        )
        config = read_config(folder, **config_fields)
        config._name_or_path = str(path)
        weights = Weights(folder, allow_pickle=allow_pickle, device=place)
        model = cls._assembled(config, weights, dtype=wanted, progress=progress)
        if (folder / "tokenizer.json").exists():
            model.tokenizer = BloomTokenizer.from_pretrained(folder)
        return model.eval()

    @classmethod
    def from_hf(cls: type[Model], hf_model: nn.Module, *, share: bool = False) -> Model:
        """A bloomlab model with a transformers model's weights: copies, or shared with `share`.

        Raises:
            ConfigError: not a BLOOM.
            CheckpointError: weights that are no plain floating-point tensors of this class.
        """
        config = BloomConfig.from_dict(hf_model.config.to_dict())  # pyright: ignore  # HF config
        tensors = {name: value.detach() for name, value in hf_model.named_parameters()}
        if not share:
            tensors = {name: value.clone() for name, value in tensors.items()}
        return cls._assembled(config, Weights(tensors)).train(hf_model.training)

    def to_hf(self) -> Any:
        """The transformers model of the same class, with copies of the weights.

        Pruned heads and neurons come back as zeros, so that stock transformers computes the same.

        Raises:
            UnsupportedError: transformers cannot express this model (edited ALiBi slopes).
        """
        if self.config.kept_heads is not None or self.config.kept_neurons is not None:
            return whole(self).to_hf()
        if self._edited_slopes():
            raise UnsupportedError(
                "transformers computes ALiBi slopes itself; edited ones cannot go there."
            )
        hf_class = getattr(transformers, self.hf_class)
        fields = {n: v for n, v in self.config.to_dict().items() if n not in PRUNED}
        config = transformers.BloomConfig.from_dict(fields)
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
        """Our parameters under transformers' names: the same objects, not copies."""
        for ours, value in self.named_parameters():
            name = hf_name(ours)
            yield (name if name.startswith(HEADS) else self._prefix() + name), value

    def save_pretrained(
        self, path: str | Path, *, max_shard_size: int | str = "5GB", progress: bool = True
    ) -> None:
        """Write config, weights (safetensors) and tokenizer as transformers reads them.

        Old files are replaced when all new ones are written: a failure leaves an older checkpoint
        intact. (Edited ALiBi slopes are written too; transformers does not read them.)

        Args:
            path: the folder; made if it is not there.
            max_shard_size: of a file, in bytes or as "5GB".
            progress: show a bar while it takes long.
        """
        weights = {name: value.detach().contiguous() for name, value in self.hf_named_parameters()}
        config = BloomConfig.from_dict(self.config.to_dict())
        slopes = edited = self._edited_slopes()
        if config.kept_heads is not None:  # then they cannot be told from the number of heads
            slopes = {layer: block.attn.slopes for layer, block in enumerate(self.blocks)}
            config.edited_slopes = sorted(edited) or None
        for layer, own in slopes.items():
            weights[f"{self._prefix()}h.{layer}.{SLOPES}"] = own.detach().clone()
        config.architectures = [self.hf_class]
        config.dtype = next(self.parameters()).dtype
        with replaced(Path(path)) as folder:
            write_weights(weights, folder, max_shard_size=max_shard_size, progress=progress)
            config.save_pretrained(folder)
            if self.tokenizer is not None:
                self.tokenizer.save_pretrained(folder)

    def _prefix(self) -> str:
        return "" if self.hf_class == "BloomModel" else PREFIX

    def _edited_slopes(self) -> dict[int, Tensor]:
        stock = alibi_slopes(self.config.n_head)
        return {
            layer: block.attn.slopes
            for layer, block in enumerate(self.blocks)
            if not torch.equal(
                block.attn.slopes.detach().to(stock), stock[list(self.config.heads_of(layer))]
            )
        }

    @classmethod
    def _assembled(
        cls: type[Model],
        config: BloomConfig,
        weights: Weights,
        *,
        dtype: torch.dtype | None = None,
        progress: bool = False,
    ) -> Model:
        """A model built without memory, its parameters replaced by `weights`; all or nothing."""
        with torch.device("meta"):
            model: Any = cls(config)
        stored = {name.removeprefix(PREFIX): name for name in weights}
        if len(stored) < len(weights):
            raise CheckpointError(
                f"{weights.source} has weights twice: with the prefix {PREFIX!r} and without."
            )
        shapes = {hf_name(name): tuple(value.shape) for name, value in model.named_parameters()}
        heads = {name.split(".")[0] for name in shapes if name.startswith(HEADS[1:])}
        fresh = heads - {name.split(".")[0] for name in stored}  # a head is new as a whole
        missing = [n for n in shapes if n not in stored and n.split(".")[0] not in fresh]
        if missing:
            raise CheckpointError(
                f"{weights.source} lacks {len(missing)} weights, such as {missing[0]!r}. Is it "
                f"the checkpoint of a {cls.hf_class}?"
            )
        slopes = {f"h.{layer}.{SLOPES}": layer for layer in range(config.n_layer)}
        shapes |= {name: (len(config.heads_of(layer)),) for name, layer in slopes.items()}
        if config.kept_heads is not None and (lost := slopes.keys() - stored.keys()):
            raise CheckpointError(
                f"{weights.source} is pruned, but lacks ALiBi slopes of {len(lost)} layers, such "
                f"as {min(lost)!r}: which heads were kept cannot be checked. Save it again from "
                "the pruned model."
            )
        tied = UNEMBEDDING not in shapes and hasattr(model, "unembed")
        if tied:
            shapes[UNEMBEDDING] = shapes[EMBEDDING]
        for name in [n for n in shapes if n in stored]:
            weights.check(stored[name], shapes[name])
        embedding = weights[stored[EMBEDDING]]
        if tied and UNEMBEDDING in stored:
            _check_tied(weights[stored[UNEMBEDDING]], embedding, weights.source)

        config.dtype = dtype = dtype or embedding.dtype
        names = [ours for ours, _ in model.named_parameters() if hf_name(ours) in stored]
        bar = tqdm(names, desc="loading", unit="tensor", delay=2, disable=not progress)
        state = {ours: weights[stored[hf_name(ours)]].to(dtype) for ours in bar}
        model.load_state_dict(state, assign=True, strict=False)
        for name in slopes.keys() & stored.keys():
            own = weights[stored[name]].float().cpu()
            check_slopes(own, config, slopes[name], weights.source)
            model.blocks[slopes[name]].attn.slopes = own
        new = [model.get_submodule(head).to_empty(device=embedding.device) for head in fresh]
        model.init_weights([module.to(dtype) for module in new])
        unknown = sorted(n for n in stored if n not in shapes and not n.startswith(HEADS[0]))
        if unknown:
            log.warning(
                f"{weights.source}: a {cls.hf_class} does not use {len(unknown)} of its tensors, "
                f"such as {unknown[0]!r}."
            )
        for head in sorted(fresh):
            log.warning(f"{weights.source} has no {head!r} head: newly drawn, train before use.")
        return model


def _check_tied(unembedding: Tensor, embedding: Tensor, source: str) -> None:
    if not torch.equal(unembedding, embedding):
        raise CheckpointError(
            f"{source}: {UNEMBEDDING} differs from {EMBEDDING}, but the configuration ties them. "
            "Set tie_word_embeddings to false in config.json to use both."
        )
