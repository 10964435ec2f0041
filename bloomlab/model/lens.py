"""TransformerLens' model protocol: weights as views, residual directions, `cfg`."""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from bloomlab.errors import InputError, UnsupportedError
from bloomlab.model.activations import Caching
from bloomlab.model.config import BloomConfig
from bloomlab.model.hooks import FactoredMatrix, TransformerBridgeConfig, composition_scores
from bloomlab.model.text import TextProtocol


class Submodule:
    """A submodule that the class knows of too: from Python 3.12 on, protocol checks look there."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: nn.Module | None, owner: type | None = None) -> Any:
        return self if model is None else model._modules[self.name]


class LensProtocol(TextProtocol, Caching):
    """What TransformerLens' tools ask of a model, on top of its hooks."""

    config: BloomConfig
    blocks: Any = Submodule()
    ln_final: Any = Submodule()
    W_U: Any  # of the models that have an unembedding
    _cfg: TransformerBridgeConfig

    def make_cfg(self) -> TransformerBridgeConfig:
        """TransformerLens' description of this model."""
        config = self.config
        return TransformerBridgeConfig(
            d_model=config.hidden_size,
            d_head=config.d_head,
            n_layers=config.n_layer,
            n_ctx=getattr(config, "seq_length", None) or 2048,
            n_heads=config.n_head,
            d_mlp=4 * config.hidden_size,
            d_vocab=config.vocab_size,
            d_vocab_out=config.vocab_size,
            device="cpu",
            eps=config.layer_norm_epsilon,
            act_fn="gelu_new",
            architecture=type(self).__name__,
            model_name=config._name_or_path or "bloom",
            positional_embedding_type="alibi",
            default_prepend_bos=False,
            tokenizer_prepends_bos=False,
            tie_word_embeddings=config.tie_word_embeddings,
            initializer_range=config.initializer_range,
        )

    @property
    def cfg(self) -> TransformerBridgeConfig:
        """TransformerLens' view of the configuration; `config` is transformers'."""
        self._cfg.device, self._cfg.dtype = str(self.embed.weight.device), self.embed.weight.dtype
        return self._cfg

    @property
    def W_E(self) -> Float[Tensor, "vocab d_model"]:
        """Token embedding, before the embedding LayerNorm: the parameter itself."""
        return self.embed.weight

    @property
    def W_Q(self) -> Float[Tensor, "layer head d_model d_head"]:
        """All query weights, stacked (a copy; `blocks[i].attn.W_Q` is a view)."""
        return self._stacked("attn", "W_Q")

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """All key weights, stacked (a copy; `blocks[i].attn.W_K` is a view)."""
        return self._stacked("attn", "W_K")

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """All value weights, stacked (a copy; `blocks[i].attn.W_V` is a view)."""
        return self._stacked("attn", "W_V")

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """All output weights, stacked (a copy; `blocks[i].attn.W_O` is a view)."""
        return self._stacked("attn", "W_O")

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """All MLP input weights, stacked (a copy; `blocks[i].mlp.W_in` is a view)."""
        return self._stacked("mlp", "W_in")

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """All MLP output weights, stacked (a copy; `blocks[i].mlp.W_out` is a view)."""
        return self._stacked("mlp", "W_out")

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """All query biases, stacked."""
        return self._stacked("attn", "b_Q")

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """All key biases, stacked."""
        return self._stacked("attn", "b_K")

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """All value biases, stacked."""
        return self._stacked("attn", "b_V")

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """All attention output biases, stacked."""
        return torch.stack([block.attn.b_O for block in self.blocks])

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """All MLP input biases, stacked."""
        return self._stacked("mlp", "b_in")

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """All MLP output biases, stacked."""
        return torch.stack([block.mlp.b_out for block in self.blocks])

    def _stacked(self, part: str, name: str) -> Tensor:
        weights = [getattr(getattr(block, part), name) for block in self.blocks]
        if len({weight.shape for weight in weights}) > 1:
            raise UnsupportedError(
                f"model.{name}: layers of this pruned model have different sizes, so there is no "
                f"stack of all. Take blocks[i].{part}.{name}."
            )
        return torch.stack(weights)

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_K^T of every head, factored; [layer head d_model d_model]."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head, factored; [layer head d_model d_model]."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def kept_heads(self) -> dict[int, list[int]]:
        """Numbers of the heads in each layer: all, or those that pruning left."""
        return {layer: list(self.config.heads_of(layer)) for layer in range(self.config.n_layer)}

    @property
    def all_head_labels(self) -> list[str]:
        """L0H0, L0H1, ... of all heads, in the order of stacked head results."""
        heads = self.config.heads_of
        return [f"L{layer}H{head}" for layer in range(self.config.n_layer) for head in heads(layer)]

    def all_composition_scores(self, mode: str) -> Float[Tensor, "layer head layer head"]:
        """How much of what a head writes a later head reads by its "Q", "K" or "V"; 0 ... 1.

        Elhage et al., 2021; 0 where the second head's layer is not later. Ignores the LayerNorms.
        """
        if mode not in ("Q", "K", "V"):
            raise InputError(f"mode is {mode!r}, expected 'Q', 'K' or 'V'.")
        reads = self.OV if mode == "V" else self.QK if mode == "Q" else self.QK.T
        n_layer, device = self.config.n_layer, self.embed.weight.device
        later = torch.ones(n_layer, n_layer, device=device).triu(1)[:, None, :, None]
        return composition_scores(self.OV, reads) * later

    def blocks_with(self, submodule: str) -> list[tuple[int, Any]]:
        """Layer number and block of every block with such a submodule."""
        return [(i, block) for i, block in enumerate(self.blocks) if submodule in block._modules]

    def tl_parameters(self) -> dict[str, Tensor]:
        """Every weight under TransformerLens' name and in its layout; views."""
        named = {"embed.W_E": self.embed.weight}
        parts = {
            "attn": ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"),
            "mlp": ("W_in", "W_out", "b_in", "b_out"),
            "ln1": ("w", "b"),
            "ln2": ("w", "b"),
        }
        for layer, block in enumerate(self.blocks):
            for part, names in parts.items():
                for name in names:
                    named[f"blocks.{layer}.{part}.{name}"] = getattr(getattr(block, part), name)
        for name in ("embed_ln", "ln_final"):
            module = getattr(self, name)
            named |= {f"{name}.w": module.w, f"{name}.b": module.b}
        if isinstance(unembed := getattr(self, "unembed", None), nn.Module):
            named |= {"unembed.W_U": unembed.W_U, "unembed.b_U": unembed.b_U}
        return named

    def accumulated_bias(
        self, layer: int, mlp_input: bool = False, include_mlp_biases: bool = True
    ) -> Float[Tensor, " d_model"]:
        """Sum of the biases written to the stream before `layer` (or before its MLP)."""
        if self.config.apply_residual_connection_post_layernorm:
            raise UnsupportedError(
                "accumulated_bias: with apply_residual_connection_post_layernorm=True the stream "
                "is no sum of component outputs."
            )
        blocks = self.blocks[:layer]
        total = torch.zeros_like(self.blocks[0].attn.b_O)
        for block in blocks:
            total = total + block.attn.b_O + (block.mlp.b_out if include_mlp_biases else 0)
        return total + self.blocks[layer].attn.b_O if mlp_input else total

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "*lead d_model"]:
        """The unembedding column of each token: the stream's direction that raises its logit.

        The final LayerNorm's gain and bias act between stream and unembedding; fold or apply them.
        """
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        ids = torch.as_tensor(tokens, device=self.embed.weight.device)
        directions = rearrange(self.W_U, "m v -> v m")[ids.reshape(-1)]
        return directions.reshape(*ids.shape, -1) if ids.numel() > 1 else directions[0]
