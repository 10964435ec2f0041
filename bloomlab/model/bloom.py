"""BloomModel: embeddings, blocks and final norm; every class with a head on top is one too."""

import copy
import importlib
import inspect
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from bloomlab.errors import InputError, UnknownArgumentError
from bloomlab.model.block import Block
from bloomlab.model.cache import KVCache
from bloomlab.model.checkpoint import Checkpoints
from bloomlab.model.config import ALIBI_MODES, BloomConfig
from bloomlab.model.embed import Embedding
from bloomlab.model.hooks import HookPoint, hooked
from bloomlab.model.inputs import (
    attention_bias,
    check_ids,
    check_stream,
    layer_head_mask,
    layer_range,
    name_all_arguments,
    warn_of_padding,
)
from bloomlab.model.lens import LensProtocol
from bloomlab.model.norm import LayerNorm
from bloomlab.model.outputs import Backbone, BaseModelOutputWithPastAndCrossAttentions, bare
from bloomlab.model.recompute import Recomputing

# Token ids [batch pos], a text or texts. Checked by hand, so that errors speak plainly.
Inputs = Any


class BloomModel(LensProtocol, Checkpoints, Recomputing):
    """A BLOOM without a head: token ids in, hidden states out.

    Args:
        config: a BloomConfig, or transformers' own.

    Attributes:
        config: transformers' view of the configuration.
        cfg: TransformerLens' view of it.
        tokenizer: the tokenizer that belongs to the weights, or None.
    """

    # What transformers' Trainer asks of a model.
    accepts_loss_kwargs = False
    main_input_name = "input_ids"

    def __init__(self, config: Any) -> None:
        super().__init__()
        if not isinstance(config, BloomConfig):
            if not hasattr(config, "to_dict"):
                raise InputError(
                    f"expected a BloomConfig, got {config!r}; for stored weights: "
                    f"{type(self).__name__}.from_pretrained(...)."
                )
            config = BloomConfig.from_dict(config.to_dict())
        config = copy.deepcopy(config)
        config.check()
        self.config = config
        self.embed = Embedding(config)
        self.embed_ln = LayerNorm(config)
        self.hook_embed = HookPoint()  # batch pos d_model; after the embedding LayerNorm
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_final = LayerNorm(config)
        self.build_head()
        self.setup()
        self._cfg = self.make_cfg()
        if not self.embed.weight.is_meta:
            self.init_weights()

    def build_head(self) -> None:
        """Add the modules on top of the final norm; none here."""

    def init_weights(self, modules: Sequence[nn.Module] | None = None) -> None:
        """Draw weights from N(0, initializer_range), biases 0; of all modules, or of some."""
        for module in self.modules() if modules is None else modules:
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, 0.0, self.config.initializer_range)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        return self.embed.weight.dtype

    @property
    def alibi(self) -> str:
        """The bias's form, settable: "hf" (as transformers) or "exact" (relative, float32)."""
        return self.config.alibi

    @alibi.setter
    def alibi(self, mode: str) -> None:
        if mode not in ALIBI_MODES:
            raise InputError(f"alibi is {mode!r}, expected one of {ALIBI_MODES}.")
        self.config.alibi = mode

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.embed

    def forward(
        self,
        input_ids: Inputs | None = None,
        *,
        return_dict: bool | None = None,
        return_type: str | None = None,
        **arguments: Any,
    ) -> Any:
        """The hidden state of every token; `return_type="logits"` gives it as a bare tensor.

        Takes the arguments of `backbone` too.
        """
        back = self.backbone(input_ids, return_type=return_type, **arguments)
        if back.stopped:
            return back.last
        return self.deliver(
            BaseModelOutputWithPastAndCrossAttentions(**back.fields(), last_hidden_state=back.last),
            back.last,
            return_dict=return_dict,
            return_type=return_type,
        )

    def backbone(
        self,
        input_ids: Inputs | None = None,
        *,
        past_key_values: Any = None,
        cache: Any = None,
        attention_mask: Any = None,
        head_mask: Any = None,
        inputs_embeds: Any = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_type: str | None = None,
        start_at_layer: int | None = None,
        stop_at_layer: int | None = None,
        cache_position: Tensor | None = None,
        position_ids: Tensor | None = None,
        **unknown: Any,
    ) -> Backbone:
        """Run embeddings, blocks and final norm: what every head builds on.

        Args:
            input_ids: token ids [batch pos], or text.
            past_key_values: a KVCache or transformers' DynamicCache to go on from; it grows by the
                new tokens.
            cache: transformers 5.24's name of `past_key_values`.
            attention_mask: [batch key], 0 for padding; covers cached and new tokens.
            head_mask: [head], [layer head] or [batch layer head]; scales each head's output.
            inputs_embeds: [batch pos d_model] instead of `input_ids`.
            use_cache: return a KVCache; None takes `config.use_cache`, or False if `return_type`.
            output_attentions: return every layer's pattern, masked by `head_mask`.
            output_hidden_states: return the stream before every block and after the final norm.
            return_type: what the caller will return.
            start_at_layer: `input_ids` is the stream [batch pos d_model] before this layer.
            stop_at_layer: return the residual stream before this layer instead. A run of some
                layers reads a cache but does not grow it.
            cache_position: column of each new token; checked against the cache.
            position_ids: ignored with a FutureWarning, as in transformers.
            **unknown: refused.

        Raises:
            InputError: ids outside the vocabulary, no tokens, both or neither of ids and embeds.
            ShapeError: a mask of the wrong shape.
            CacheError: a cache that does not fit input or model.
            UnknownArgumentError: an argument no BLOOM takes.
        """
        for name in unknown:
            known = inspect.signature(self.forward)
            raise UnknownArgumentError(f"{type(self).__name__}.forward", name, known)
        if position_ids is not None:
            warnings.warn(
                "position_ids are ignored: ALiBi counts attended tokens.", FutureWarning, 3
            )
        if cache is not None and past_key_values is not None:
            raise InputError("cache and past_key_values are one argument; expected one of them.")
        given = cache if past_key_values is None else past_key_values
        if isinstance(input_ids, str | list | tuple):
            input_ids, from_text = self.to_tokens_and_mask(input_ids)
            if attention_mask is None and (given is None or not from_text.all()):
                attention_mask = from_text  # else nothing is padded, and the cache knows its own
        if attention_mask is None and given is None and start_at_layer is None:
            warn_of_padding(input_ids, self.config)
        first, last = layer_range(start_at_layer, stop_at_layer, len(self.blocks))
        resid = self._embedded(input_ids, inputs_embeds, resumed=start_at_layer is not None)

        if use_cache is None:
            use_cache = self.config.use_cache and return_type is None
        whole = (first, last) == (0, len(self.blocks))
        recomputing = self.gradient_checkpointing and self.training
        use_cache = use_cache and whole and not recomputing
        past = KVCache() if given is None and use_cache else given
        if past is not None and not isinstance(past, KVCache):
            past = KVCache.lent(past, attention_mask)
        self.require_whole_text(0 if past is None else len(past))
        bias, extension = attention_bias(
            resid,
            attention_mask=attention_mask,
            cache=past,
            cache_position=cache_position,
            mode=self.config.alibi,
        )
        masks = layer_head_mask(
            head_mask, batch=len(resid), config=self.config, device=resid.device
        )
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states

        states: list[Tensor] = []
        patterns: list[Tensor] = []
        for layer in range(first, last):
            if output_hidden_states:
                states.append(resid)
            block = self.blocks[layer]
            run = partial(
                block,
                bias=bias,
                extension=extension,
                head_mask=None if masks is None else masks[:, layer],
                output_attentions=output_attentions,
            )
            if recomputing and not block.is_hooked():  # backward may find its hooks gone
                run = self.recomputed(run, layer)
            resid, pattern = run(resid)
            if output_attentions:
                patterns.append(pattern)
        if extension is not None and whole:
            extension.commit(len(self.blocks))
        if stop_at_layer is not None:
            return Backbone(last=resid, stopped=True)
        normed = self.ln_final(resid)
        return Backbone(
            last=normed,
            past_key_values=(past if given is None else given) if whole else None,
            hidden_states=(*states, normed) if output_hidden_states else None,
            attentions=tuple(patterns) if output_attentions else None,
        )

    def deliver(
        self, output: Any, logits: Tensor, *, return_dict: bool | None, return_type: str | None
    ) -> Any:
        """A forward's result in the form asked for: output object, tuple, or bare tensors."""
        if return_type is not None:
            return bare(output, logits, return_type)
        return (
            output
            if (self.config.return_dict if return_dict is None else return_dict)
            else output.to_tuple()
        )

    def trace(self, *inputs: Any, **options: Any) -> Any:
        """What one forward leaves behind, as a Trace; any head's pattern is rebuilt on demand.

        `model.trace("text").pattern(layer, head)`. Takes tokens or text, `attention_mask`,
        `head_mask`, `fwd_hooks` (pairs or interventions), and what to keep: `keep` (of "q", "k",
        "v", "resid"), `layers`, `dtype`, `device`; see `bloomlab.trace.record`.
        """
        return importlib.import_module("bloomlab.trace").record(self, *inputs, **options)

    def _embedded(
        self, ids: Any, embeds: Tensor | None, *, resumed: bool
    ) -> Float[Tensor, "batch pos d_model"]:
        if (ids is None) == (embeds is None):
            got = "neither" if ids is None else "both"
            raise InputError(f"expected exactly one of input_ids and inputs_embeds, got {got}.")
        if resumed:
            check_stream("the stream for start_at_layer", ids, self.config.hidden_size)
            return ids
        if embeds is None:
            check_ids(ids, self.config.vocab_size)
            embeds = self.embed(ids)
        else:
            check_stream("inputs_embeds", embeds, self.config.hidden_size)
        return hooked(self.hook_embed, self.embed_ln(embeds))

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        name_all_arguments(cls, BloomModel.backbone)


name_all_arguments(BloomModel, BloomModel.backbone)
