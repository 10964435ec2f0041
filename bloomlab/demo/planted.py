"""A BLOOM whose weights are written by hand, so that it is known what every head is for.

The smallest circuit of two heads that need each other: induction (Elhage et al., 2021; Olsson et
al., 2022, arXiv:2209.11895). What a method of interpretability says of it can be checked.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.model.alibi import alibi_slopes
from bloomlab.model.config import BloomConfig
from bloomlab.model.heads import BloomForCausalLM

BOS = 0
# how strongly the first head avoids the token itself, how the second matches, and writes
SHARP, FIRM, SOFT = (40.0, 60.0, 8.0), (8.0, 16.0, 3.0), (6.0, 12.0, 1.5)
Head = tuple[int, int]  # layer, head


@dataclass(frozen=True, kw_only=True)
class PlantedCircuit:
    """A model that copies what was said before, and the heads that do it.

    Attributes:
        model: two layers; token 0 begins every text. It has no tokenizer.
        previous: the head of layer 0 that writes the token before.
        matchers: the heads of layer 1 that copy; each does all of it.
        n_token: size of the vocabulary.
    """

    model: Any
    previous: Head
    matchers: tuple[Head, ...]
    n_token: int

    @property
    def alive(self) -> list[Head]:
        """The heads that do something, sorted."""
        return [self.previous, *self.matchers]

    @property
    def dead(self) -> list[Head]:
        """All others, sorted: they attend to something, and write zeros."""
        every = [(layer, head) for layer in range(2) for head in range(self.model.config.n_head)]
        return [head for head in every if head not in self.alive]

    @property
    def edges(self) -> list[tuple[str, str]]:
        """What a copy is made of, as `experiments.Graph` names it.

        Embeddings tell the first head what it reads and the matchers what to look for and what to
        say; the first head's writes are the matchers' keys; the matchers speak.
        """
        first, *later = (f"L{layer}H{head}" for layer, head in self.alive)
        found = [("embed", f"{first}.{read}") for read in "qkv"]
        for head in later:
            found += [("embed", f"{head}.q"), (first, f"{head}.k"), ("embed", f"{head}.v")]
        return found + [(head, "logits") for head in later]

    @property
    def length(self) -> int:
        """Tokens that are said twice."""
        return self.n_token // 2

    @property
    def positions(self) -> list[int]:
        """Columns whose next token was seen before."""
        return list(range(self.length + 1, 2 * self.length))

    def ids(self, rows: int = 4, seed: int = 0) -> Int[Tensor, "batch pos"]:
        """The first token, then distinct ones, twice."""
        source = torch.Generator().manual_seed(seed)
        drawn = [torch.randperm(self.n_token - 1, generator=source) for _ in range(rows)]
        once = torch.stack(drawn)[:, : self.length] + 1
        return torch.cat([torch.full((rows, 1), BOS), once, once], 1)

    def accuracy(
        self, logits: Float[Tensor, "batch pos vocab"], ids: Int[Tensor, "batch pos"]
    ) -> float:
        """Share of the tokens seen before that are foretold, 0 ... 1."""
        told = logits[:, self.positions].argmax(-1) == ids[:, [i + 1 for i in self.positions]]
        return told.double().mean().item()


@torch.no_grad()
def induction_circuit(
    strengths: tuple[float, float, float] = SHARP,
    *,
    n_token: int = 16,
    n_head: int = 8,
    copies: int = 1,
    busy: float = 0.3,
    dtype: torch.dtype = torch.float64,
) -> PlantedCircuit:
    """A circuit that copies what was said before.

    The head of layer 0 with the steepest slope looks at the token before, because a token avoids
    itself and ALiBi does the rest, and writes that token's code into a part of the stream that is
    otherwise empty. The head of layer 1 with the flattest slope looks for tokens that have its own
    in that part, and writes their code where the unembedding reads. There are no MLPs to speak of:
    they write zeros. All other heads have busy patterns and write zeros too.

    Args:
        strengths: `SHARP`, `FIRM` or `SOFT`: how much the first head avoids the token itself and
            the second prefers a match, in logits at most, and how much it writes, in codes.
            The sharper, the more a softmax is saturated, and the less a derivative sees of it.
        n_token: size of the vocabulary, and of a head.
        n_head: heads of each layer, 4 or more.
        copies: how many heads of layer 1, from the flattest on, do what one could.
        busy: standard deviation of the other heads' query, key and value weights.
        dtype: of the weights, which are made in float64.

    Raises:
        InputError: fewer than 4 heads or tokens, or more copies than heads.
    """
    if n_head < 4 or n_token < 4 or not 1 <= copies <= n_head:
        raise InputError(
            f"n_head is {n_head}, n_token {n_token}, copies {copies}: expected 4 or more heads and "
            "tokens, and 1 to n_head copies."
        )
    push, match, write = strengths
    width = n_token * n_head
    config = BloomConfig(vocab_size=n_token, hidden_size=width, n_layer=2, n_head=n_head)
    model = BloomForCausalLM(config).eval().double()
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
    for name, value in model.named_parameters():
        value.fill_(float("ln" in name and name.endswith("weight")))
    model.embed.weight.copy_(now)
    for layer, block in enumerate(model.blocks):
        qkv = block.attn.qkv.weight.view(n_head, 3, n_token, width)
        out = block.attn.o.weight.view(width, n_head, n_token)
        qkv.copy_(torch.randn(qkv.shape, generator=source, dtype=torch.float64) * busy)
        for (at, head), (strength, key, written) in heads.items():
            if at == layer:
                query = strength * math.sqrt(n_token) * read["now"]
                qkv[head] = torch.stack([query, read[key], read["now"]])
                out[:, head] = written.T
    return PlantedCircuit(
        model=model.to(dtype), previous=previous, matchers=matchers, n_token=n_token
    )
