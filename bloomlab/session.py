"""A model and the prompt it is looking at: what a view asks of a model, in arrays and labels."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.model.heads import BloomForCausalLM
from bloomlab.tokens import token_labels


class Session:
    """Answers a view's questions about one model; text in, arrays and printable labels out.

    Raises:
        InputError: not a BloomForCausalLM with a tokenizer.
    """

    def __init__(self, model: Any) -> None:
        if not isinstance(model, BloomForCausalLM) or model.tokenizer is None:
            raise InputError(
                f"a Session needs a BloomForCausalLM with its tokenizer, as bl.load gives it; got "
                f"{type(model).__name__}."
            )
        self.model = model

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return self.model.config.n_layer

    @property
    def n_head(self) -> int:
        """Number of heads in a layer."""
        return self.model.config.n_head

    def tokens(self, prompt: Any) -> list[str]:
        """Printable, HTML-escaped label of every token of the prompt."""
        if not isinstance(prompt, str):
            raise InputError(f"a Session looks at one text, got {prompt!r}.")
        return token_labels(self.model.tokenizer, self.model.to_tokens(prompt)[0].tolist())

    def pattern(
        self,
        prompt: str,
        layer: int,
        head: int,
        head_mask: Float[np.ndarray, "layer head"] | None = None,
    ) -> Float[np.ndarray, "query key"]:
        """Attention pattern of one head while the masked heads are silent upstream."""
        if not 0 <= head < self.n_head:
            raise InputError(f"no head {head}: the model has heads 0 to {self.n_head - 1}.")
        patterns = self.patterns(prompt, head_mask, layers=[layer])
        self.model.blocks[layer].attn.index([head])
        return patterns[0, head]

    @torch.no_grad()
    def patterns(
        self,
        prompt: str,
        head_mask: Float[np.ndarray, "layer head"] | None = None,
        *,
        layers: list[int] | None = None,
    ) -> Float[np.ndarray, "chosen head query key"]:
        """Attention patterns of all heads of the given layers (None: all); 0 for pruned heads."""
        chosen = list(range(self.n_layer)) if layers is None else layers
        if wrong := [layer for layer in chosen if not 0 <= layer < self.n_layer]:
            raise InputError(f"no layer {wrong[0]}: the model has layers 0 to {self.n_layer - 1}.")
        names = [f"blocks.{layer}.attn.hook_pattern" for layer in chosen]
        _, cache = self.model.run_with_cache(
            prompt, names_filter=names, head_mask=self._mask(head_mask), logits_to_keep=1
        )
        n_key = cache[names[0]].shape[-1]
        found = np.zeros((len(chosen), self.n_head, n_key, n_key), dtype=np.float32)
        for place, (layer, name) in enumerate(zip(chosen, names, strict=True)):
            heads = list(self.model.blocks[layer].attn.heads)
            found[place, heads] = cache[name][0].float().cpu().numpy()
        return found

    @torch.no_grad()
    def next_tokens(
        self, prompt: str, head_mask: Float[np.ndarray, "layer head"] | None = None, k: int = 8
    ) -> tuple[list[str], Float[np.ndarray, " token"], Float[np.ndarray, " token"]]:
        """Labels of the likeliest next tokens, their probability with all heads on, and masked.

        The k likeliest of either distribution, in the order of the larger of the two.
        """
        k = min(k, self.model.config.vocab_size)
        before, after = self._next(prompt, None), self._next(prompt, head_mask)
        either = torch.cat([before.topk(k).indices, after.topk(k).indices]).unique()
        order = torch.maximum(before, after)[either].argsort(descending=True)
        ids = either[order][:k]
        labels = [token_labels(self.model.tokenizer, [i])[0] for i in ids.tolist()]
        return labels, before[ids].numpy(), after[ids].numpy()

    def _next(
        self, prompt: str, head_mask: Float[np.ndarray, "layer head"] | None
    ) -> Float[Tensor, " vocab"]:
        logits = self.model(
            prompt, head_mask=self._mask(head_mask), logits_to_keep=1, return_type="logits"
        )
        return logits[0, -1].float().softmax(-1).cpu()

    def _mask(self, head_mask: Float[np.ndarray, "layer head"] | None) -> Tensor | None:
        return None if head_mask is None else torch.as_tensor(head_mask, dtype=self.model.dtype)
