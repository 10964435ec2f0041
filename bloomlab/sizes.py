"""How large a BLOOM is: parameters and bytes from its shape alone; no torch, nothing loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from bloomlab.errors import InputError

WIDTHS = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}  # bytes per number
USABLE = 0.9  # of the free memory; the rest is for activations, logits and the runtime


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """The shape of a BLOOM (fields as in its config.json) and what follows from it.

    Raises:
        InputError: a size below one, or a width that the heads do not divide.
    """

    hidden_size: int
    n_layer: int
    n_head: int
    vocab_size: int
    tie_word_embeddings: bool = True
    kept_heads: Any = None
    kept_neurons: Any = None

    def __post_init__(self) -> None:
        for name in ("hidden_size", "n_layer", "n_head", "vocab_size"):
            if (size := getattr(self, name)) < 1:
                raise InputError(f"{name} is {size}, expected a positive number.")
        if self.hidden_size % self.n_head:
            raise InputError(
                f"hidden_size {self.hidden_size} is not divisible by n_head {self.n_head}; "
                "every head takes hidden_size / n_head dimensions."
            )

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.n_head

    @property
    def embedding(self) -> int:
        """Numbers in the embedding: vocab x d_model."""
        return self.vocab_size * self.hidden_size

    def heads(self, layer: int) -> int:
        """Heads of a layer, fewer where some were pruned."""
        return self.n_head if self.kept_heads is None else len(self.kept_heads[layer])

    def neurons(self, layer: int) -> int:
        """Width of a layer's MLP."""
        return 4 * self.hidden_size if self.kept_neurons is None else len(self.kept_neurons[layer])

    def block(self, layer: int) -> int:
        """Numbers in one block; of a whole one 12 d^2 + 13 d.

        Attention 4 h d + 3 h + d with h numbers in all heads, MLP 2 m d + m + d with m neurons, two
        LayerNorms 4 d.
        """
        d, h, m = self.hidden_size, self.heads(layer) * self.d_head, self.neurons(layer)
        return (4 * h * d + 3 * h + d) + (2 * m * d + m + d) + 4 * d

    @property
    def parameters(self) -> int:
        """Parameters of the language model; a tied unembedding counts once."""
        embeddings = self.embedding * (1 if self.tie_word_embeddings else 2)
        blocks = sum(self.block(layer) for layer in range(self.n_layer))
        return embeddings + blocks + 4 * self.hidden_size  # two outer LayerNorms

    @property
    def cache(self) -> int:
        """Numbers the KV cache holds per token: a key and a value in every layer."""
        return 2 * self.d_head * sum(self.heads(layer) for layer in range(self.n_layer))


# As in the config.json of bigscience/bloom-560m ... bigscience/bloom
PUBLISHED = {
    name: Sizes(hidden_size=hidden, n_layer=n_layer, n_head=n_head, vocab_size=250_880)
    for name, hidden, n_layer, n_head in (
        ("560m", 1024, 24, 16),
        ("1b1", 1536, 24, 16),
        ("1b7", 2048, 24, 16),
        ("3b", 2560, 30, 32),
        ("7b1", 4096, 30, 32),
        ("176b", 14336, 70, 112),
    )
}


def sizes_of(config: Any) -> Sizes:
    """The sizes of a BloomConfig, transformers' or ours."""
    names = [field.name for field in fields(Sizes)]
    return Sizes(**{name: getattr(config, name) for name in names if hasattr(config, name)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """Bytes that running a model takes, and whether they fit."""

    weights: int
    cache: int

    @property
    def total(self) -> int:
        """Weights and KV cache, in bytes."""
        return self.weights + self.cache

    def fits(self, free: int) -> bool:
        """Whether it fits in `free` bytes with a tenth of them left for activations."""
        return self.total <= free * USABLE


def need(sizes: Sizes, dtype: str, *, tokens: int, parameters: int | None = None) -> Need:
    """Bytes of the weights and of the KV cache of one row of `tokens`, both in `dtype`.

    Args:
        sizes: the model's shape.
        dtype: "float64", "float32", "bfloat16" or "float16".
        tokens: length of the context.
        parameters: their number where it is known better than by the formula (from a file).

    Raises:
        InputError: an unknown dtype or a negative number of tokens.
    """
    if dtype not in WIDTHS:
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(WIDTHS)}.")
    if tokens < 0:
        raise InputError(f"tokens is {tokens}, expected 0 or more.")
    weights = sizes.parameters if parameters is None else parameters
    return Need(weights=weights * WIDTHS[dtype], cache=sizes.cache * tokens * WIDTHS[dtype])


def readable(count: int) -> str:
    """Bytes as a person reads them, three digits in decimal units: 1118429184 -> '1.12 GB'."""
    if count < 1000:
        return f"{count} B"
    value = count / 1000
    for unit in ("kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:#.3g}".rstrip(".") + f" {unit}"
        value /= 1000
    return f"{value:,.2f} TB"


def shape_line(sizes: Sizes) -> str:
    """The shape in one line."""
    return (
        f"{sizes.n_layer} layers, {sizes.n_head} heads of {sizes.d_head} (d_head), "
        f"width {sizes.hidden_size:,}, vocabulary {sizes.vocab_size:,}"
    )


def fit_lines(
    sizes: Sizes, memory: Mapping[str, int], *, tokens: int, parameters: int | None = None
) -> list[str]:
    """What fits where, with the arithmetic: a line for each memory and each dtype in it.

    Args:
        sizes: the model's shape.
        memory: free bytes by the name of the memory ("RAM", "GPU 0 ...").
        tokens: length of the context.
        parameters: their number where it is known better than by the formula.
    """
    lines = []
    for name, free in memory.items():
        room = readable(int(free * USABLE))
        lines.append(f"{name}: {readable(free)} free, {USABLE:.0%} of it is {room}")
        for dtypes in (("float32",), ("bfloat16", "float16")):
            wanted = need(sizes, dtypes[0], tokens=tokens, parameters=parameters)
            fits = wanted.fits(free)
            terms = f"{readable(wanted.weights)} + {readable(wanted.cache)}"
            total = f"{readable(wanted.total)} {'<=' if fits else '>'} {room}"
            verdict = "yes" if fits else "no"
            lines.append(f"  {verdict:<3}  {', '.join(dtypes):<18}{terms} = {total}")
    return lines
