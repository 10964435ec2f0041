"""Text in and out of a model: thin wrappers with TransformerLens' names around the tokenizer."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from bloomlab.errors import InputError, TokenizerError


class TextProtocol:
    """TransformerLens' methods between text and token ids."""

    embed: Any
    cfg: Any
    tokenizer: Any = None

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
