"""Models whose weights are written by hand, so that it is known what every head is for.

`induction_circuit`: the steepest head of layer 0 writes the previous token's code, the flattest of
layer 1 finds the token that followed this one before and copies it; all other heads have busy
patterns and write nothing. `linear_model`: content-free patterns, no MLPs, LayerNorms that only
scale: logits are linear in the gate of each head.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import transformers

import bloomlab as bl
from bloomlab.model.alibi import alibi_slopes

# how strongly the first head avoids the token itself, the second matches, and writes
SHARP, FIRM, SOFT = (40.0, 60.0, 8.0), (8.0, 16.0, 3.0), (6.0, 12.0, 1.5)
BOS = 0


@dataclass(frozen=True, kw_only=True)
class Circuit:
    """A planted circuit.

    Attributes:
        hf: transformers' model.
        model: ours, with the same weights.
        previous: the head that writes the token before.
        matchers: the heads that copy; each does all of it.
        n_token: size of the vocabulary; token 0 begins every text.
    """

    hf: Any
    model: Any
    previous: tuple[int, int]
    matchers: tuple[tuple[int, int], ...]
    n_token: int

    @property
    def alive(self):
        """The heads that do something, sorted."""
        return [self.previous, *self.matchers]

    @property
    def dead(self):
        """All others, sorted."""
        every = [(layer, head) for layer in range(2) for head in range(self.model.config.n_head)]
        return [head for head in every if head not in self.alive]

    @property
    def length(self):
        """Tokens that are said twice."""
        return self.n_token // 2

    @property
    def positions(self):
        """Columns whose next token was seen before."""
        return list(range(self.length + 1, 2 * self.length))

    def ids(self, rows=4, seed=0):
        """The first token, then distinct ones, twice."""
        source = torch.Generator().manual_seed(seed)
        drawn = [torch.randperm(self.n_token - 1, generator=source) for _ in range(rows)]
        once = torch.stack(drawn)[:, : self.length] + 1
        return torch.cat([torch.full((rows, 1), BOS), once, once], 1)

    def accuracy(self, logits, ids):
        """Share of the tokens seen before that are foretold."""
        told = logits[:, self.positions].argmax(-1) == ids[:, [i + 1 for i in self.positions]]
        return told.double().mean().item()


def induction_circuit(
    strengths=SHARP, *, n_token=16, n_head=8, copies=1, busy=0.3, dtype=torch.float64
):
    """A circuit that copies what was said before; `copies` heads do what one could."""
    push, match, write = strengths
    width = n_token * n_head
    fields = {"vocab_size": n_token, "hidden_size": width, "n_layer": 2, "n_head": n_head}
    hf = transformers.BloomForCausalLM(transformers.BloomConfig(**fields)).eval().double()
    code = torch.cat([torch.eye(n_token), -torch.eye(n_token)], 1).double()
    now, before = torch.zeros(2, n_token, width, dtype=torch.float64)
    now[:, : 2 * n_token], before[:, 2 * n_token : 4 * n_token] = code, code
    scale = math.sqrt(width / 2)  # the norm's, of a code
    read = {name: block / (2 * scale) for name, block in (("now", now), ("before", before))}
    by_slope = alibi_slopes(n_head).argsort().tolist()
    previous = (0, by_slope[-1])
    matchers = tuple(sorted((1, head) for head in by_slope[:copies]))
    heads = {previous: (-push, "now", scale * before)}
    heads |= {head: (match, "before", write * scale * now) for head in matchers}
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        _blank(hf)
        hf.transformer.word_embeddings.weight.copy_(now)
        for layer, block in enumerate(hf.transformer.h):
            attention = block.self_attention
            qkv = attention.query_key_value.weight.view(n_head, 3, n_token, width)
            out = attention.dense.weight.view(width, n_head, n_token)
            qkv.copy_(torch.randn(qkv.shape, generator=source, dtype=torch.float64) * busy)
            for (at, head), (strength, key, written) in heads.items():
                if at == layer:
                    query = strength * math.sqrt(n_token) * read["now"]
                    qkv[head] = torch.stack([query, read[key], read["now"]])
                    out[:, head] = written.T
    hf = hf.to(dtype)
    return Circuit(
        hf=hf,
        model=bl.BloomForCausalLM.from_hf(hf),
        previous=previous,
        matchers=matchers,
        n_token=n_token,
    )


def linear_model(*, n_layer=3, n_head=6, d_head=4, n_token=11, seed=0):
    """A float64 model whose logits are linear in each head's gate: to the last bits."""
    width, huge = n_head * d_head, 1e18
    config = transformers.BloomConfig(
        vocab_size=n_token,
        hidden_size=width,
        n_layer=n_layer,
        n_head=n_head,
        layer_norm_epsilon=huge,  # beside it a variance is nothing: the norm divides by sqrt(huge)
    )
    hf = transformers.BloomForCausalLM(config).eval().double()
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        _blank(hf, gain=math.sqrt(huge))
        hf.transformer.word_embeddings.weight.normal_(generator=source)
        for block in hf.transformer.h:
            attention = block.self_attention
            values = attention.query_key_value.weight.view(n_head, 3, d_head, width)[:, 2]
            values.copy_(torch.randn(values.shape, generator=source) / math.sqrt(width))
            attention.dense.weight.normal_(generator=source)
            attention.dense.bias.normal_(generator=source)
    return bl.BloomForCausalLM.from_hf(hf)


def _blank(hf, gain=1.0):
    """All weights zero, but the norms' gains."""
    for name, value in hf.named_parameters():
        value.fill_(gain * float("layernorm.weight" in name or "ln_f.weight" in name))
