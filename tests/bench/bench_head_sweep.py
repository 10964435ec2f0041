"""Exact sweeps over all heads against TransformerLens: one `run_with_hooks` a head.

python -m tests.bench.bench_head_sweep
"""

from typing import Annotated

import torch
import transformers
import typer
from torch.nn import functional as F

import bloomlab as bl
from bloomlab.bench.plan import Plan
from bloomlab.bench.table import LEGEND, heading, line
from bloomlab.bench.timing import Row, interleaved
from bloomlab.experiments import ablate_heads
from tests.bridge import bridge_of

SHAPES = {"demo": (6, 8, 256), "4 x 8, d 256": (4, 8, 256), "12 x 8, d 512": (12, 8, 512)}
VOCABULARY, LENGTH = 8192, 256
RIGHT, WRONG = 5, 6


def models(name):
    """transformers' model, ours with the same weights, and TransformerLens' on top of theirs."""
    n_layer, n_head, width = SHAPES[name]
    if name == "demo":
        ours = bl.load("demo", device="cpu")
        theirs = ours.to_hf().eval()
    else:
        torch.manual_seed(0)
        config = transformers.BloomConfig(
            vocab_size=VOCABULARY, hidden_size=width, n_layer=n_layer, n_head=n_head
        )
        theirs = transformers.BloomForCausalLM(config).eval()
        ours = bl.BloomForCausalLM.from_hf(theirs)
    assert (ours.config.n_layer, ours.config.n_head, ours.config.hidden_size) == SHAPES[name]
    return ours, bridge_of(theirs)


def last(logits, ids):
    """Logit difference at the last position."""
    return logits[:, -1, RIGHT] - logits[:, -1, WRONG]


def cross_entropy(logits, ids):
    """Of the next tokens, at all positions."""
    return F.cross_entropy(logits[:, :-1].mT, ids[:, 1:], reduction="none").mean(-1)


@torch.no_grad()
def loop(bridge, ids, metric):
    """Effect of every head, as TransformerLens' users measure it."""

    def silenced(head):
        def edit(z, hook):
            z[:, :, head] = 0
            return z

        return edit

    def value(hooks):
        logits = bridge.run_with_hooks(ids, return_type="logits", fwd_hooks=hooks)
        return metric(logits, ids)

    clean, shape = value([]), (bridge.cfg.n_layers, bridge.cfg.n_heads)
    return torch.stack(
        [
            value([(f"blocks.{layer}.attn.hook_z", silenced(head))]) - clean
            for layer in range(shape[0])
            for head in range(shape[1])
        ]
    )


@torch.no_grad()
def rows_of(name, plan):
    """Both metrics, and the share of a cross-entropy sweep that its logits alone take."""
    ours, bridge = models(name)
    ids = torch.randint(4, VOCABULARY, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    cases = {
        "last position": (
            lambda: ablate_heads(ours, ids, last, positions=-1, progress=False),
            lambda: loop(bridge, ids, last),
        ),
        "cross-entropy": (
            lambda: ablate_heads(ours, ids, progress=False),
            lambda: loop(bridge, ids, cross_entropy),
        ),
    }
    n_run = ours.config.n_layer * ours.config.n_head
    stream = ours.backbone(ids, use_cache=False).last

    def logits():
        for _ in range(n_run + 1):
            ours.unembed(stream)

    for case, calls in cases.items():
        effects, expected = calls[0]().effects, calls[1]()
        note = f"differ by {(effects - expected).abs().max().item():.0e} at most"
        timed = [*calls, logits] if case == "cross-entropy" else list(calls)
        mine, lens, *floor = interleaved(timed, seconds=plan.seconds, least=5)
        sweep = f"{name}: {n_run} heads, {case}"
        yield Row(case=sweep, peer="TransformerLens", ours=mine, theirs=lens, note=note)
        for one in floor:
            yield Row(case=sweep, peer="its logits alone", ours=mine, theirs=one, kind="share")


def main(
    shapes: Annotated[str, typer.Option(help="Parted by semicolons.")] = ";".join(SHAPES),
    seconds: Annotated[float, typer.Option(help="Measuring time of a row.")] = 10.0,
    markdown: bool = False,
) -> None:
    """Print a table."""
    print(f"{LEGEND}\n\n{heading(markdown=markdown)}", flush=True)
    for name in shapes.split(";"):
        for row in rows_of(name, Plan(seconds=seconds)):
            print(line(row, markdown=markdown), flush=True)


if __name__ == "__main__":
    typer.run(main)
