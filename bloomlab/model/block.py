"""MLP and the transformer block, each intermediate behind a hook point."""

from functools import cache

import torch
from einops import repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from bloomlab.model.alibi import AttentionBias
from bloomlab.model.attention import Attention, HeadInputs, sliced_linear
from bloomlab.model.config import BloomConfig
from bloomlab.model.extension import Extension
from bloomlab.model.hooks import HookPoint, hooked, is_hooked
from bloomlab.model.linear import Linear, gelu
from bloomlab.model.norm import LayerNorm


class MLP(nn.Module):
    """Two linear maps with a tanh-approximated GELU between."""

    def __init__(self, config: BloomConfig, layer: int) -> None:
        super().__init__()
        self.tp = config.pretraining_tp if config.slow_but_exact else 1
        width = config.neurons_of(layer)
        self.fc_in = Linear(config.hidden_size, width)
        self.fc_out = Linear(width, config.hidden_size)
        self.hook_pre = HookPoint()  # batch pos d_mlp
        self.hook_post = HookPoint()  # batch pos d_mlp

    @property
    def W_in(self) -> Float[Tensor, "d_model d_mlp"]:
        """Input weights: a view of the parameter."""
        return self.fc_in.weight.T

    @property
    def W_out(self) -> Float[Tensor, "d_mlp d_model"]:
        """Output weights: a view of the parameter."""
        return self.fc_out.weight.T

    @property
    def b_in(self) -> Float[Tensor, " d_mlp"]:
        """Input bias: the parameter itself."""
        return self.fc_in.bias

    @property
    def b_out(self) -> Float[Tensor, " d_model"]:
        """Output bias: the parameter itself."""
        return self.fc_out.bias

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], *, rounded: bool = False
    ) -> Float[Tensor, "batch pos d_model"]:
        """The MLP's write to the residual stream, for normalised input `x`.

        `rounded` computes the GELU operation by operation, rounding as transformers does.
        """
        if rounded or is_hooked(self.hook_pre) or not isinstance(self.fc_in, Linear):
            pre = hooked(self.hook_pre, self.fc_in(x))
            post = rounded_gelu(pre) if rounded else gelu(pre)
        else:
            post = self.fc_in.gelu(x)
        post = hooked(self.hook_post, post)
        return sliced_linear(self.fc_out, post, self.tp)


def stepwise_gelu(x: Float[Tensor, "*lead d_mlp"]) -> Float[Tensor, "*lead d_mlp"]:
    """Tanh-approximated GELU as transformers' BLOOM writes it; each operation rounds."""
    return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))


def rounded_gelu(x: Float[Tensor, "*lead d_mlp"]) -> Float[Tensor, "*lead d_mlp"]:
    """`stepwise_gelu` of half-precision numbers, to the same bits.

    There are only 65,536 of them: without gradients a table of all is several times faster.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        return stepwise_gelu(x)
    places = x.view(torch.int16).to(torch.int32).add_(2**15).flatten()
    return _gelu_table(x.dtype).index_select(0, places).view(x.shape)


@cache
def _gelu_table(dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
        return stepwise_gelu(every.view(dtype))


class Block(nn.Module):
    """One transformer block; its hooks see the additive contributions, not the running sums."""

    hook_out_is_single_residual_stream = True  # TransformerLens' logit lens asks

    def __init__(self, config: BloomConfig, layer: int) -> None:
        super().__init__()
        self.post_norm_skip = config.apply_residual_connection_post_layernorm
        self.dropout = config.hidden_dropout
        self.ln1 = LayerNorm(config)
        self.attn = Attention(config, layer)
        self.ln2 = LayerNorm(config)
        self.mlp = MLP(config, layer)
        self.hook_resid_pre = HookPoint()  # batch pos d_model
        self.hook_attn_out = HookPoint()  # batch pos d_model
        self.hook_resid_mid = HookPoint()  # batch pos d_model
        self.hook_mlp_in = HookPoint()  # batch pos d_model; when hooked: resid_mid, MLP branch only
        self.hook_mlp_out = HookPoint()  # batch pos d_model
        self.hook_resid_post = HookPoint()  # batch pos d_model

    def forward(
        self,
        resid: Float[Tensor, "batch query d_model"],
        *,
        bias: AttentionBias,
        extension: Extension | None,
        head_mask: Float[Tensor, "#batch head"] | None,
        output_attentions: bool,
    ) -> tuple[Float[Tensor, "batch query d_model"], Tensor | None]:
        """The residual stream after this block, and the pattern if asked for."""
        resid_pre = hooked(self.hook_resid_pre, resid)
        forks, inputs = self._forks(resid_pre), None
        if forks:
            normed, forked = self.ln1.with_branches(resid_pre, forks)
            inputs = HeadInputs(*forked)
        else:
            normed = self.ln1(resid_pre)
        attended = self.attn(
            normed,
            inputs=inputs,
            bias=bias,
            extension=extension,
            head_mask=head_mask,
            output_attentions=output_attentions,
        )
        attn_out = hooked(self.hook_attn_out, self._dropped(attended.out))
        skip = normed if self.post_norm_skip else resid_pre
        resid_mid = hooked(self.hook_resid_mid, skip + attn_out)
        return self.from_mid(resid_mid, rounded=bias.rounded), attended.pattern

    def from_mid(
        self, resid_mid: Float[Tensor, "batch pos d_model"], *, rounded: bool
    ) -> Float[Tensor, "batch pos d_model"]:
        """The residual stream after this block, from the one between attention and MLP."""
        if is_hooked(self.hook_mlp_in):
            normed, [mlp_in] = self.ln2.with_branches(
                resid_mid, [hooked(self.hook_mlp_in, resid_mid)]
            )
        else:
            normed = mlp_in = self.ln2(resid_mid)
        mlp_out = hooked(
            self.hook_mlp_out,
            self._dropped(self.mlp(mlp_in, rounded=rounded)),
        )
        skip = normed if self.post_norm_skip else resid_mid
        return hooked(self.hook_resid_post, skip + mlp_out)

    def _dropped(self, contribution: Tensor) -> Tensor:
        if self.training and self.dropout:
            return F.dropout(contribution, self.dropout)
        return contribution

    def is_hooked(self) -> bool:
        """Whether anything is attached to a hook point in this block."""
        return any(is_hooked(point) for point in self.modules() if isinstance(point, HookPoint))

    def _forks(self, resid: Tensor) -> list[Tensor | None]:
        """Each head's own copy of the stream for q, k and v, where hooks ask for one."""
        attn = self.attn
        splits = attn.hook_q_input, attn.hook_k_input, attn.hook_v_input
        shared = is_hooked(attn.hook_attn_in)
        if not shared and not any(map(is_hooked, splits)):
            return []
        forked = hooked(attn.hook_attn_in, repeat(resid, "b q m -> b q h m", h=attn.n_head))
        return [hooked(point, forked) if shared or is_hooked(point) else None for point in splits]
