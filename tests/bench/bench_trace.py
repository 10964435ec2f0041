"""A trace of everything against a plain forward, in one run; and what it weighs.

python -m tests.bench.bench_trace
"""

import statistics
import time

import torch

import bloomlab as bl
from tests.bench.bench_forward import interleaved

SHAPES = {  # name: config fields, dtype
    "demo": ({"vocab_size": 8192, "hidden_size": 256, "n_layer": 4, "n_head": 8}, "float32"),
    "560m layers": (
        {"vocab_size": 2048, "hidden_size": 1024, "n_layer": 4, "n_head": 16},
        "bfloat16",
    ),
}


def show(what: str, ratios: list[float]) -> None:
    """A line: the median of ratios, with quartiles."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    spread = f"quartiles {low:.2f} to {high:.2f}, {len(ratios)} pairs"
    print(f"{what} = {middle:.2f} ({spread})")


@torch.no_grad()
def main(seconds: float = 5) -> None:
    """Print time and memory of each shape."""
    torch.manual_seed(0)
    for name, (fields, dtype) in SHAPES.items():
        model = bl.BloomForCausalLM(bl.BloomConfig(**fields)).eval().to(getattr(torch, dtype))
        ids = torch.randint(4, fields["vocab_size"], (1, 512))
        for what, plain in (
            ("forward", lambda m=model, i=ids: m(i, use_cache=False)),
            ("forward without logits", lambda m=model, i=ids: m.backbone(i, use_cache=False)),
        ):
            ratios = interleaved(lambda m=model, i=ids: m.trace(i), plain, seconds=seconds)
            show(f"{name:12} {dtype:8} 512 tokens: trace / {what}", ratios)

        ids = torch.randint(4, fields["vocab_size"], (1, 1024))
        patterns = fields["n_layer"] * fields["n_head"] * 1024 * 1024 * 4
        queries_and_keys = model.trace(ids, keep=("q", "k"), dtype=torch.bfloat16)
        everything = model.trace(ids)
        start = time.perf_counter()
        everything.thumbnails()
        drawn = time.perf_counter() - start
        start = time.perf_counter()
        everything.pattern(0, 0)
        print(
            f"{name:12} {dtype:8} 1024 tokens: of the bytes of all float32 patterns, q and k in "
            f"bfloat16 take {queries_and_keys.nbytes / patterns:.1%}, everything "
            f"{everything.nbytes / patterns:.1%}; all thumbnails take {drawn:.2f} s, "
            f"one pattern {1000 * (time.perf_counter() - start):.1f} ms"
        )


if __name__ == "__main__":
    main()
