"""TransformerLens' model protocol: weights as views, tokens and residual directions, `cfg`."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from bloomlab.errors import InputError, TokenizerError, UnsupportedError
from bloomlab.model.activations import Caching
from bloomlab.model.config import BloomConfig
from bloomlab.model.hooks import FactoredMatrix, TransformerBridgeConfig, composition_scores


class Submodule:
    """A submodule that the class knows of too: from Python 3.12 on, protocol checks look there."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, model: nn.Module | None, owner: type | None = None) -> Any:
        return self if model is None else model._modules[self.name]


class LensProtocol(Caching):
    """What TransformerLens' tools ask of a model, on top of its hooks."""

    config: BloomConfig
    embed: Any
    blocks: Any = Submodule()
    ln_final: Any = Submodule()
    tokenizer: Any = None
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
        return torch.stack([block.attn.W_Q for block in self.blocks])

    @property
    def W_K(self) -> Float[Tensor, "layer head d_model d_head"]:
        """All key weights, stacked (a copy; `blocks[i].attn.W_K` is a view)."""
        return torch.stack([block.attn.W_K for block in self.blocks])

    @property
    def W_V(self) -> Float[Tensor, "layer head d_model d_head"]:
        """All value weights, stacked (a copy; `blocks[i].attn.W_V` is a view)."""
        return torch.stack([block.attn.W_V for block in self.blocks])

    @property
    def W_O(self) -> Float[Tensor, "layer head d_head d_model"]:
        """All output weights, stacked (a copy; `blocks[i].attn.W_O` is a view)."""
        return torch.stack([block.attn.W_O for block in self.blocks])

    @property
    def W_in(self) -> Float[Tensor, "layer d_model d_mlp"]:
        """All MLP input weights, stacked (a copy; `blocks[i].mlp.W_in` is a view)."""
        return torch.stack([block.mlp.W_in for block in self.blocks])

    @property
    def W_out(self) -> Float[Tensor, "layer d_mlp d_model"]:
        """All MLP output weights, stacked (a copy; `blocks[i].mlp.W_out` is a view)."""
        return torch.stack([block.mlp.W_out for block in self.blocks])

    @property
    def b_Q(self) -> Float[Tensor, "layer head d_head"]:
        """All query biases, stacked."""
        return torch.stack([block.attn.b_Q for block in self.blocks])

    @property
    def b_K(self) -> Float[Tensor, "layer head d_head"]:
        """All key biases, stacked."""
        return torch.stack([block.attn.b_K for block in self.blocks])

    @property
    def b_V(self) -> Float[Tensor, "layer head d_head"]:
        """All value biases, stacked."""
        return torch.stack([block.attn.b_V for block in self.blocks])

    @property
    def b_O(self) -> Float[Tensor, "layer d_model"]:
        """All attention output biases, stacked."""
        return torch.stack([block.attn.b_O for block in self.blocks])

    @property
    def b_in(self) -> Float[Tensor, "layer d_mlp"]:
        """All MLP input biases, stacked."""
        return torch.stack([block.mlp.b_in for block in self.blocks])

    @property
    def b_out(self) -> Float[Tensor, "layer d_model"]:
        """All MLP output biases, stacked."""
        return torch.stack([block.mlp.b_out for block in self.blocks])

    @property
    def QK(self) -> FactoredMatrix:
        """W_Q W_K^T of every head, factored; [layer head d_model d_model]."""
        return FactoredMatrix(self.W_Q, self.W_K.transpose(-2, -1))

    @property
    def OV(self) -> FactoredMatrix:
        """W_V W_O of every head, factored; [layer head d_model d_model]."""
        return FactoredMatrix(self.W_V, self.W_O)

    @property
    def all_head_labels(self) -> list[str]:
        """L0H0, L0H1, ... of all heads, in the order of stacked head results."""
        heads = range(self.config.n_head)
        return [f"L{layer}H{head}" for layer in range(self.config.n_layer) for head in heads]

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

    # Text: thin wrappers with TransformerLens' names around the tokenizer.

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise TokenizerError(
                "this model has no tokenizer, so it takes token ids only. Set model.tokenizer = "
                "bl.BloomTokenizer.from_pretrained(folder), or load with bl.load(folder)."
            )
        return self.tokenizer

    def to_tokens_and_mask(
        self,
        text: str | Sequence[str],
        *,
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
    ) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
        """Token ids and attention mask of one or several texts, padded to the longest."""
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(item, str) for item in texts):
            raise InputError(
                f"expected text, a list of texts or a tensor of token ids, got {text!r}."
            )
        tokenizer = self._need_tokenizer()
        if self.cfg.default_prepend_bos if prepend_bos is None else prepend_bos:
            texts = [tokenizer.bos_token + item for item in texts]
        if empty := [i for i, item in enumerate(texts) if not item]:
            raise InputError(f"text {empty[0]} is empty: a prompt needs at least one token.")
        side = padding_side or tokenizer.padding_side
        encoded = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
        device = self.embed.weight.device
        return encoded["input_ids"].to(device), encoded["attention_mask"].to(device)

    def to_tokens(
        self,
        text: str | Sequence[str],
        prepend_bos: bool | None = None,
        padding_side: str | None = None,
        move_to_device: bool = True,
    ) -> Int[Tensor, "batch pos"]:
        """Token ids of one or several texts, padded; no beginning-of-text token unless asked for.

        With texts of different lengths use `to_tokens_and_mask`: the model needs the mask.
        """
        ids, _ = self.to_tokens_and_mask(text, prepend_bos=prepend_bos, padding_side=padding_side)
        return ids if move_to_device else ids.cpu()

    def to_string(self, tokens: Any) -> str | list[str]:
        """The text of token ids [pos], or the texts of [batch pos]."""
        ids = torch.as_tensor(tokens)
        tokenizer = self._need_tokenizer()
        return tokenizer.batch_decode(ids) if ids.ndim == 2 else tokenizer.decode(ids.reshape(-1))

    def to_str_tokens(self, text: Any, prepend_bos: bool | None = None) -> Any:
        """The text of each token of a text, of ids [pos] or [1 pos]; for several, lists."""
        if isinstance(text, list | tuple) and text and isinstance(text[0], str):
            return [self.to_str_tokens(item, prepend_bos) for item in text]
        ids = self.to_tokens(text, prepend_bos) if isinstance(text, str) else torch.as_tensor(text)
        if ids.ndim == 2 and len(ids) > 1:
            return [self.to_str_tokens(row) for row in ids]
        return [self._need_tokenizer().decode([i]) for i in ids.reshape(-1).tolist()]

    def to_single_token(self, text: str) -> int:
        """The id of a text that is exactly one token."""
        ids = self.to_tokens(text, prepend_bos=False)[0].tolist()
        if len(ids) != 1:
            raise InputError(
                f"{text!r} is {len(ids)} tokens ({self.to_str_tokens(text, False)}), expected one."
            )
        return ids[0]

    def to_single_str_token(self, token: int) -> str:
        """The text of one token id."""
        return self._need_tokenizer().decode([token])

    def get_token_position(self, single_token: str | int, text: Any, mode: str = "first") -> int:
        """Where a token stands in a text or in ids [pos]; the first or last time."""
        ids = self.to_tokens(text)[0] if isinstance(text, str) else torch.as_tensor(text).flatten()
        named = isinstance(single_token, str)
        token = self.to_single_token(single_token) if named else single_token
        found = (ids == token).nonzero()[:, 0].tolist()
        if not found:
            raise InputError(f"token {single_token!r} does not occur in {text!r}.")
        return found[0 if mode == "first" else -1]

    def tokens_to_residual_directions(self, tokens: Any) -> Float[Tensor, "*lead d_model"]:
        """The unembedding column of each token: the stream's direction that raises its logit.

        The final LayerNorm's gain and bias act between stream and unembedding; fold or apply them.
        """
        if isinstance(tokens, str):
            tokens = self.to_single_token(tokens)
        ids = torch.as_tensor(tokens, device=self.embed.weight.device)
        directions = rearrange(self.W_U, "m v -> v m")[ids.reshape(-1)]
        return directions.reshape(*ids.shape, -1) if ids.numel() > 1 else directions[0]
