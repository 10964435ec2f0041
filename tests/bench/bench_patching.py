"""A grid of patches, all layers x heads x positions, against `transformer_lens.patching`.

python -m tests.bench.bench_patching
"""

import contextlib
import io
from typing import Annotated

import torch
import typer
from transformer_lens import patching

import bloomlab as bl
from bloomlab.bench.table import LEGEND, heading, line
from bloomlab.bench.timing import Row, interleaved
from bloomlab.experiments import patch_activations
from tests.bridge import bridge_of

LENGTH, RIGHT, WRONG = 32, 5, 6


def difference(logits):
    """Logit difference at the last position."""
    return (logits[:, -1, RIGHT] - logits[:, -1, WRONG]).mean()


def texts(model):
    """Two texts that differ in one token."""
    source = torch.Generator().manual_seed(1)
    clean = torch.randint(4, model.config.vocab_size, (1, LENGTH), generator=source)
    corrupted = clean.clone()
    corrupted[:, 5] = 77
    return clean, corrupted


@torch.no_grad()
def rows_of(seconds):
    """TransformerLens' functions on its own model of the same weights, and on ours."""
    model = bl.load("demo", device="cpu")
    clean, corrupted = texts(model)
    answers = torch.tensor([[RIGHT, WRONG]])

    def ours():
        return patch_activations(model, clean, corrupted, "z", answers=answers, progress=False)

    for name, theirs in (("its model", bridge_of(model.to_hf().eval())), ("our model", model)):

        def lens(theirs=theirs):
            _, cache = theirs.run_with_cache(clean)
            with contextlib.redirect_stderr(io.StringIO()):
                return patching.get_act_patch_attn_head_out_by_pos(
                    theirs, corrupted, cache, difference
                )

        found, expected = ours(), lens()
        values = found.grid * found.total.mean() + found.corrupted.mean()
        note = f"differ by {(values - expected).abs().max().item():.0e} at most"
        mine, slow = interleaved([ours, lens], seconds=seconds, least=3)
        case = f"demo: {len(found.cells)} patches of z"
        peer = f"TransformerLens, {name}"
        yield Row(case=case, peer=peer, ours=mine, theirs=slow, note=note)


def main(
    seconds: Annotated[float, typer.Option(help="Measuring time of a row.")] = 10.0,
    markdown: bool = False,
) -> None:
    """Print a table."""
    print(f"{LEGEND}\n\n{heading(markdown=markdown)}", flush=True)
    for row in rows_of(seconds):
        print(line(row, markdown=markdown), flush=True)


if __name__ == "__main__":
    typer.run(main)
