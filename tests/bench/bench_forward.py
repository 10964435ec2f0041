"""A forward with no hook attached against transformers' forward of the same weights, in one run.

python -m tests.bench.bench_forward
"""

from dataclasses import replace

from bloomlab.bench.forwards import forward
from bloomlab.bench.models import make_pair
from bloomlab.bench.plan import Plan
from bloomlab.bench.table import heading, line

RUNS = (  # model, dtype, lengths
    ("demo", "float32", (8, 64, 512)),
    ("demo", "bfloat16", (8, 64, 512)),
    ("thin", "float32", (16, 128)),
    ("560m-blocks", "float32", (16, 128)),
)


def main() -> None:
    """Print a line per model and length."""
    print(heading(markdown=False))
    for model, dtype, lengths in RUNS:
        pair = make_pair(model, dtype=dtype)
        plan = Plan(lengths=lengths, seconds=3.0)
        for row in forward(pair, plan):
            print(line(replace(row, note=f"{model} {dtype}"), markdown=False), flush=True)


if __name__ == "__main__":
    main()
