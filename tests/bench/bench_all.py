"""Every benchmark on the shapes of the README's table, TransformerLens' model among the peers.

python -m tests.bench.bench_all --markdown
"""

from typing import Annotated

import torch
import typer

from bloomlab.bench.cases import chosen, rows
from bloomlab.bench.inspection import inspection
from bloomlab.bench.models import machine_line, make_pair
from bloomlab.bench.plan import QUICK, Plan
from bloomlab.bench.table import LEGEND, heading, line
from tests.bridge import bridge_of

MODELS = {"demo": "float32", "560m": "bfloat16"}


def main(
    models: Annotated[str, typer.Option(help="Parted by commas.")] = ",".join(MODELS),
    only: Annotated[str, typer.Option(help="Benchmarks, parted by commas.")] = "",
    seconds: Annotated[float, typer.Option(help="Measuring time of a row.")] = Plan().seconds,
    quick: bool = False,
    markdown: bool = False,
) -> None:
    """Print a table for each model."""
    names = chosen([name for name in only.split(",") if name])
    plan = QUICK if quick else Plan(seconds=seconds)
    print(LEGEND)
    for model in models.split(","):
        pair = make_pair(model, dtype=MODELS.get(model))
        print(f"\n{machine_line(pair)}\n\n{heading(markdown=markdown)}", flush=True)
        for name in names:
            for row in rows(pair, plan, [name]):
                print(line(row, markdown=markdown), flush=True)
            if name == "run_with_cache":
                print(line(transformer_lens(pair, plan), markdown=markdown), flush=True)


@torch.no_grad()
def transformer_lens(pair, plan):
    """`run_with_cache` of everything against TransformerLens' own."""
    bridge, ids = bridge_of(pair.theirs), pair.ids(1, plan.look)
    return inspection(pair, plan, "TransformerLens", lambda: bridge.run_with_cache(ids))


if __name__ == "__main__":
    typer.run(main)
