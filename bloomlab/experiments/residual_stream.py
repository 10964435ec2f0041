"""The residual stream of texts at chosen sites, and what a model must have to read it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bloomlab.errors import InputError, UnknownNameError, UnsupportedError
from bloomlab.experiments.dataset import Dataset

SITES = ("pre", "mid", "post")
LOGITS_AT_ONCE = 2**24  # numbers
Place = tuple[int, str]  # layer, and one of SITES


@dataclass(frozen=True, kw_only=True, slots=True)
class Streams:
    """The stream of the attended tokens of some texts, one row a token.

    Attributes:
        text: number of each row's text.
        pos: attended tokens before it in its text.
        token: its id.
        next: id of the token after it; -1 for a text's last.
        values: the stream by layer and site.
        last: after the final norm.
    """

    text: Int[Tensor, " row"]
    pos: Int[Tensor, " row"]
    token: Int[Tensor, " row"]
    next: Int[Tensor, " row"]
    values: dict[Place, Tensor]
    last: Float[Tensor, "row d_model"]


def places(model: Any, sites: Any) -> list[Place]:
    """Layer and site of every stream that was asked for, in the order of computation.

    Raises:
        UnknownNameError: no such site.
        InputError: no site.
    """
    wanted = [sites] if isinstance(sites, str) else list(sites)
    for site in wanted:
        if site not in SITES:
            raise UnknownNameError("site of the stream", site, SITES)
    if not wanted:
        raise InputError(f"sites is {sites!r}: expected some of {SITES}.")
    ordered = [site for site in SITES if site in wanted]
    return [(layer, site) for layer in range(len(model.blocks)) for site in ordered]


@torch.no_grad()
def streams(model: Any, data: Dataset, wanted: Sequence[Place]) -> Streams:
    """The streams at some places, from one forward of all texts of the data."""
    attended, seen = data.attended, dict[Place, Tensor]()

    def keep(place: Place) -> Callable[..., None]:
        def hook(value: Tensor, hook: Any) -> None:
            seen[place] = value[attended]

        hook.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
        return hook

    hooks = [(f"blocks.{layer}.hook_resid_{site}", keep((layer, site))) for layer, site in wanted]
    mask = None if data.mask is None else data.mask.long()
    with model.hooks(fwd_hooks=hooks):
        last = model.backbone(data.tokens, attention_mask=mask, use_cache=False).last
    text = attended.nonzero()[:, 0]
    token = data.tokens[attended]
    after = token.roll(-1)
    after[text != text.roll(-1)] = -1
    after[-1] = -1
    return Streams(
        text=text,
        pos=(attended.cumsum(-1) - 1)[attended],
        token=token,
        next=after,
        values=seen,
        last=last[attended],
    )


def asked_tokens(
    attended: Bool[Tensor, "batch pos"], positions: Any, name: str = "positions"
) -> Bool[Tensor, "batch pos"]:
    """Which tokens of a batch are asked for.

    Args:
        attended: False for padding.
        positions: in each text, padding not counted: -1 the last, None all, or several.
        name: what a caller calls them.

    Raises:
        InputError: positions that some text does not have.
    """
    if positions is None:
        return attended
    try:
        wanted = torch.as_tensor(positions, device=attended.device).reshape(-1)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} is {positions!r:.60}, expected numbers of tokens.") from None
    lengths = attended.sum(-1, keepdim=True)
    whole = not wanted.is_floating_point() and wanted.dtype != torch.bool
    if not whole or not len(wanted) or bool(((wanted < -lengths) | (wanted >= lengths)).any()):
        shortest = int(lengths.min())
        raise InputError(
            f"{name} is {positions!r}, expected whole numbers from {-shortest} to "
            f"{shortest - 1}: every text needs those tokens."
        )
    wanted = wanted.where(wanted >= 0, wanted + lengths)  # batch wanted
    counted = attended.cumsum(-1) - 1
    return (counted[..., None] == wanted[:, None]).any(-1) & attended


def require_unembedding(model: Any) -> None:
    """Raise unless the model makes logits of its stream.

    Raises:
        UnsupportedError: it has another head, or none.
    """
    if not hasattr(model, "unembed"):
        raise UnsupportedError(
            f"a {type(model).__name__} has no unembedding, so its stream predicts no tokens. Load "
            "the checkpoint as a BloomForCausalLM."
        )


def require_sum(model: Any, function: str) -> None:
    """Raise unless the model's stream is the sum of what its components write.

    Raises:
        UnsupportedError: LayerNorms stand on the stream itself.
    """
    if model.config.apply_residual_connection_post_layernorm:
        raise UnsupportedError(
            f"{function}: with apply_residual_connection_post_layernorm=True each layer normalises "
            "the stream that it adds to, so the stream is no sum of what components write."
        )


def token_ids(model: Any, tokens: Any) -> Int[Tensor, " some"]:
    """Ids of tokens that a caller names: None (none), an id, a text of one token, or several.

    Raises:
        InputError: a text of several tokens, or something that is no id of the vocabulary.
        TokenizerError: a text, but no tokenizer.
    """
    if isinstance(tokens, Tensor):
        tokens = tokens.reshape(-1).tolist()
    several = isinstance(tokens, Iterable) and not isinstance(tokens, str)
    listed: list[Any] = [] if tokens is None else list(tokens) if several else [tokens]
    ids = [model.to_single_token(one) if isinstance(one, str) else one for one in listed]
    size = model.config.vocab_size
    for one in ids:
        if not hasattr(one, "__index__") or isinstance(one, bool) or not 0 <= one < size:
            raise InputError(f"{one!r} is no token: expected a text or an id from 0 to {size - 1}.")
    return torch.tensor([int(one) for one in ids], dtype=torch.long, device=model.device)
