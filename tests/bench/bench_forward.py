"""A forward with no hook attached against transformers' forward of the same weights, in one run.

python -m tests.bench.bench_forward
"""

import statistics
import time
from collections.abc import Callable

import torch
import transformers

import bloomlab as bl

SHAPES = {  # name: config fields, dtype, prompt lengths
    "demo": (
        {"vocab_size": 8192, "hidden_size": 256, "n_layer": 4, "n_head": 8},
        "float32",
        (8, 64, 512),
    ),
    "demo bf16": (
        {"vocab_size": 8192, "hidden_size": 256, "n_layer": 4, "n_head": 8},
        "bfloat16",
        (8, 64, 512),
    ),
    "deep and thin": (
        {"vocab_size": 256, "hidden_size": 64, "n_layer": 24, "n_head": 16},
        "float32",
        (16, 128),
    ),
    "560m layers": (
        {"vocab_size": 2048, "hidden_size": 1024, "n_layer": 24, "n_head": 16},
        "float32",
        (16, 128),
    ),
}


def interleaved(
    first: Callable[[], object], second: Callable[[], object], *, seconds: float
) -> list[float]:
    """Ratios of the times of two calls made in turn, for about so many seconds."""
    ratios: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(ratios) < 7:
        times = []
        for call in (first, second):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        ratios.append(times[0] / times[1])
    return ratios


@torch.no_grad()
def main() -> None:
    """Print a line per shape and length."""
    torch.manual_seed(0)
    for name, (fields, dtype, lengths) in SHAPES.items():
        theirs = transformers.BloomForCausalLM(transformers.BloomConfig(**fields)).eval()
        theirs = theirs.to(getattr(torch, dtype))
        ours = bl.BloomForCausalLM.from_hf(theirs, share=True)
        for length in lengths:
            ids = torch.randint(4, fields["vocab_size"], (1, length))
            ratios = interleaved(
                lambda i=ids, m=theirs: m(i), lambda i=ids, m=ours: m(i), seconds=3
            )
            low, middle, high = statistics.quantiles(ratios, n=4)
            print(
                f"{name:14} {dtype:8} {length:4} tokens: transformers / bloomlab = "
                f"{middle:.2f} (quartiles {low:.2f} to {high:.2f}, {len(ratios)} pairs)"
            )


if __name__ == "__main__":
    main()
