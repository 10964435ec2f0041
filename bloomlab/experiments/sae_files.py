"""Sparse autoencoders from the folders that SAELens writes, read without SAELens."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bloomlab.errors import CheckpointError, UnsupportedError

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = ("standard", "jumprelu", "topk")
PLAIN = {  # setting -> the value in which it does nothing, the only one that is read
    "normalize_activations": "none",
    "rescale_acts_by_decoder_norm": False,
    "activation_fn": "relu",
    "activation_fn_str": "relu",
    "finetuning_scaling_factor": False,
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredSAE:
    """A one-layer autoencoder: `standard` (ReLU), `jumprelu` or `topk`.

    Attributes:
        W_enc: reads the value.
        b_enc: added to what is read.
        W_dec: directions that the latents write.
        b_dec: what the decoder adds.
        threshold: below or at it a latent is 0; None: at 0.
        k: so many latents are not 0 at most; None: any number.
        centred: whether `b_dec` is subtracted from the value first.
        by_head: whether values have heads, [batch pos head d_head], as at `attn.hook_z`.
        config: everything the folder says of it.
    """

    W_enc: Float[Tensor, "d_in latent"]
    b_enc: Float[Tensor, " latent"]
    W_dec: Float[Tensor, "latent d_in"]
    b_dec: Float[Tensor, " d_in"]
    threshold: Float[Tensor, " latent"] | None
    k: int | None
    centred: bool
    by_head: bool
    config: dict[str, Any]

    def encode(self, x: Float[Tensor, "batch pos *rest"]) -> Float[Tensor, "batch pos latent"]:
        """Latents of a hook's value."""
        flat = (x.flatten(2) if self.by_head else x).to(self.W_enc)
        before = (flat - self.b_dec * self.centred) @ self.W_enc + self.b_enc
        if self.threshold is not None:
            return before.relu() * (before > self.threshold)
        if self.k is None:
            return before.relu()
        best = before.topk(self.k, dim=-1)
        return torch.zeros_like(before).scatter(-1, best.indices, best.values.relu())

    def decode(
        self, feature_acts: Float[Tensor, "batch pos latent"]
    ) -> Float[Tensor, "batch pos d_in"]:
        """The value that latents stand for; heads side by side."""
        return feature_acts @ self.W_dec + self.b_dec


def read_sae(folder: Any, *, device: Any = "cpu") -> StoredSAE:
    """An autoencoder from a folder with `cfg.json` and `sae_weights.safetensors`.

    Args:
        folder: as SAELens' `sae.save_model(folder)` writes it.
        device: where its weights go; take the model's.

    Raises:
        CheckpointError: files missing, damaged, or of shapes that do not belong together.
        UnsupportedError: another architecture, or settings that scale the input.
    """
    config, weights = _read(Path(folder), str(device))
    kind = config.get("architecture", "standard")
    if kind not in ARCHITECTURES:
        raise UnsupportedError(
            f"{folder} holds an autoencoder {kind!r}, expected one of {list(ARCHITECTURES)}. "
            "splice_sae takes any object with encode and decode."
        )
    for name, plain in PLAIN.items():
        if config.get(name, plain) != plain:
            raise UnsupportedError(
                f"{folder} says {name} = {config[name]!r}, expected {plain!r}: fold the scale into "
                "the weights first, or give splice_sae your own object with encode and decode."
            )
    names = ["W_enc", "b_enc", "W_dec", "b_dec", *(["threshold"] if kind == "jumprelu" else [])]
    d_in, latent = config.get("d_in"), config.get("d_sae")
    shapes = {"W_enc": (d_in, latent), "W_dec": (latent, d_in), "b_dec": (d_in,)}
    for name in names:
        got = tuple(weights[name].shape) if name in weights else None
        if got != (expected := shapes.get(name, (latent,))):
            raise CheckpointError(f"{folder}: {name} is {got}, expected shape {expected}.")
    k = config.get("k") if kind == "topk" else None
    if kind == "topk" and k not in range(1, len(weights["b_enc"]) + 1):
        raise CheckpointError(f"{folder}: k is {k!r}, expected a number from 1 to {latent}.")
    return StoredSAE(
        **{name: weights[name] for name in names[:4]},
        threshold=weights["threshold"] if kind == "jumprelu" else None,
        k=k,
        centred=config.get("apply_b_dec_to_input", True),
        by_head=config.get("reshape_activations", "none") == "hook_z",
        config=config,
    )


def _read(folder: Path, device: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        weights = load_file(folder / WEIGHTS, device=device)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} holds no autoencoder that can be read: {error}. Expected {CONFIG} and "
            f"{WEIGHTS}, as SAELens' save_model writes them."
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / CONFIG} holds {config!r:.40}, expected settings.")
    return config, weights
