"""A trace in the form that other viewers of attention take: bertviz and CircuitsVis."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from bloomlab.errors import UnsupportedError
from bloomlab.model.recording import one_of
from bloomlab.trace import Trace

Index = Any  # a number, maybe negative; checked by hand, so that errors speak plainly


class HeadPatterns(NamedTuple):
    """Patterns of a layer's heads in a text, named as CircuitsVis names its arguments."""

    attention: Float[Tensor, "head query key"]
    attention_head_names: list[str]


def to_bertviz(trace: Trace) -> tuple[Float[Tensor, "batch head query key"], ...]:
    """Attention probabilities of each kept layer, as `output_attentions` gives them.

    `bertviz.head_view(to_bertviz(trace), tokens)`, also `model_view`: it shows a trace of one text,
    so take `trace.gather([row])` of several. Holds layers x heads x tokens x tokens numbers; see
    `trace.thumbnails` for long texts.

    Raises:
        InputError: a trace without queries and keys.
        UnsupportedError: a pruned model whose layers differ in heads, which bertviz cannot show.
    """
    counts = {layer: len(_heads(trace, layer)) for layer in trace.layers}
    if len(set(counts.values())) > 1:
        raise UnsupportedError(
            f"layers of this pruned model differ in heads: {counts}; bertviz wants as many in each."
            " Take to_circuitsvis(trace, layer)."
        )
    return tuple(_patterns(trace, layer) for layer in trace.layers)


def to_circuitsvis(trace: Trace, layer: Index, *, row: Index = 0) -> HeadPatterns:
    """Attention probabilities of a layer's heads in one text, and the names of the heads.

    ```
    view = to_circuitsvis(trace, 3)
    circuitsvis.attention.attention_heads(tokens=labels, **view._asdict())
    ```

    Raises:
        InputError: a layer that was not kept, or a trace without queries and keys.
        UnknownNameError: a layer or row that there is not.
    """
    row = one_of("row", row, len(trace.tokens))
    patterns = _patterns(trace.gather([row]), layer)[0]
    number = one_of("layer", layer, trace.n_layer)
    names = [f"L{number}H{head}" for head in _heads(trace, number)]
    return HeadPatterns(attention=patterns, attention_head_names=names)


def _patterns(trace: Trace, layer: Index) -> Float[Tensor, "batch head query key"]:
    heads = _heads(trace, one_of("layer", layer, trace.n_layer))
    if not heads:
        rows, columns = trace.tokens.shape
        return torch.zeros(rows, 0, columns, columns, device=trace.device)
    return torch.stack([trace.pattern(layer, head) for head in heads], 1)


def _heads(trace: Trace, layer: int) -> Sequence[int]:
    """Numbers of a layer's heads, those of a pruned model as in the whole one."""
    part = trace._parts[0]
    return range(len(part.slopes[layer])) if part.heads is None else part.heads[layer]
