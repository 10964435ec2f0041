"""A whole pruning study of the demo model, timed, and repeated from what it stored.

python -m tests.bench.bench_pruning_study --heldout DIR
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

import bloomlab as bl
from bloomlab.analysis.rankings import rank_correlations
from bloomlab.experiments import ablate_heads, head_importance, prune_curve, prune_order, read_run

LANGUAGES = ("en", "fr", "zh")
LENGTH, ROWS = 128, 8


def examples(model, folder, language):
    """The first tokens of a text, in rows."""
    text = (folder / f"{language}.txt").read_text(encoding="utf-8")[: 40 * LENGTH * ROWS]
    ids = model.to_tokens(text)[0, : LENGTH * ROWS]
    return {"input_ids": ids.view(ROWS, LENGTH)}


def main(
    heldout: Annotated[Path, typer.Option(help="Folder of <language>.txt files.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
) -> None:
    """Four rankings, 20 random orders, three languages."""
    out = out or Path(tempfile.mkdtemp())
    model = bl.load("demo", device="cpu")
    data = {name: examples(model, heldout, name) for name in LANGUAGES}
    start = time.perf_counter()

    def told(name, value):
        print(f"{time.perf_counter() - start:6.1f} s  {name}", flush=True)
        return value

    english = data["en"]
    rankings = {
        "ablation": told("ablation", ablate_heads(model, english, progress=False)),
        "ablation, again and again": told(
            "iterative", prune_order(model, english, search="iterative", progress=False)
        ),
        "gradient": told("gradient", head_importance(model, english, "example_abs")),
        "attention confidence": told(
            "confidence", head_importance(model, english, "attention_confidence")
        ),
    }
    curve = prune_curve(model, data, rankings, results=out, progress=False)
    told("curves", None)
    print(f"\nthe study took {time.perf_counter() - start:.1f} s: {len(curve.frame)} models")
    matrices = {name: one.matrix for name, one in rankings.items() if hasattr(one, "matrix")}
    print(rank_correlations(matrices).round(2).to_string(index=False))
    table = curve.frame.groupby(["dataset", "ranking", "kept"]).value.mean().unstack("kept")
    print(table.round(2).to_string())

    for name in LANGUAGES:
        run = read_run(out / name)
        again = prune_curve(model, data[name], **run["arguments"], seed=run["seed"], progress=False)
        once = curve.frame[curve.frame.dataset == name].reset_index(drop=True)
        same = [frame.drop(columns="dataset") for frame in (once, again.frame)]
        largest = (same[0].value - same[1].value).abs().max()
        stored = prune_curve(
            model, data[name], **run["arguments"], seed=run["seed"], results=out / f"{name} again",
            progress=False,
        )  # fmt: skip
        pd.testing.assert_frame_equal(
            same[0], stored.frame.drop(columns="dataset"), check_exact=True
        )
        print(
            f"{name}: repeated from its arguments, bit for bit ({largest:.0e} if rows are joined)"
        )


if __name__ == "__main__":
    typer.run(main)
