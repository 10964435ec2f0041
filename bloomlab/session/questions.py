"""What a session answers about its runs: numbers for views, and for the next cell."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from bloomlab.errors import UnknownNameError
from bloomlab.experiments.head_ablation import ablate_heads
from bloomlab.experiments.head_search import prune_order
from bloomlab.model.inflate import whole
from bloomlab.session.matching import common_places, likeliest_of_two
from bloomlab.session.readings import (
    Stream,
    next_difference,
    read_contributions,
    read_lens,
    read_stream,
)
from bloomlab.session.run import Run, difference_tiles
from bloomlab.session.selection import RUNS

DIFFERENCE = "difference"
FLOWS = ("head", "value", "mean", "rollout")


class Questions:
    """The questions of a session: it has a model, edits and runs."""

    model: Any
    edits: Any
    _importance: Any  # of heads, once it was asked for
    run: Callable[..., Run]  # the "edited" or the "clean" one
    kept: Callable[[int], list[int]]  # numbers of a layer's heads

    def attention(
        self, mode: str, layer: int, head: int, *, which: str = "edited", queries: Any = None
    ) -> Float[np.ndarray, "query key"]:
        """A quantity of one head, see `Attention.heads`; or "difference": edited minus clean."""
        if mode == DIFFERENCE:
            edited, clean = (self.run(run).pattern(layer, head, queries) for run in RUNS)
            return edited - clean
        return self.run(which).pattern(layer, head, queries, quantity=mode)

    def tiles(
        self, mode: str, layer: int, size: int, *, which: str = "edited"
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pooled attention of a layer's heads, see `Attention.tiles`; "difference" as above.

        A cell of a difference is the one farthest from 0.
        """
        if mode != DIFFERENCE:
            return self.run(which).tiles(layer, size, quantity=mode)
        edited, clean = (self.run(run) for run in RUNS)
        return difference_tiles(edited, clean, layer, size)

    def flow(
        self, flow: str, layer: int, head: int, *, which: str = "edited"
    ) -> Float[np.ndarray, "query key"]:
        """Weights between tokens by one of FLOWS, 0 ... 1 (but "value" in norms).

        "head", "value": of one head; "mean": of its layer; "rollout": of all layers up to it.

        Raises:
            UnknownNameError: no such flow.
            InputError: no such layer or head.
        """
        run = self.run(which)
        run.require(layer)
        if flow not in FLOWS:
            raise UnknownNameError("flow of attention", flow, FLOWS)
        if flow in ("head", "value"):
            return run.pattern(layer, head, quantity="value" if flow == "value" else "pattern")
        found = run.attention.mean(layer) if flow == "mean" else run.attention.rollout(layer)
        return found.cpu().numpy()

    def slope(self, layer: int, head: int, which: str = "edited") -> float:
        """The slope of a head, logits per token, as in the "edited" or the "clean" run.

        Raises:
            InputError: no such head, or one that was pruned.
        """
        self.edits.require(layer, head)
        attn = self.model.blocks[layer].attn
        own = attn.slopes[attn.index([head])]
        return float(own if which == "clean" else self.edits.slopes_of(layer, own, [head])[0])

    def next_of_two(
        self, first: Run, second: Run, k: int = 8
    ) -> tuple[list[str], list[float], list[float]]:
        """Labels of the likeliest next tokens of two runs, maybe of two models, and probabilities.

        See `matching.likeliest_of_two`.
        """
        return likeliest_of_two(first, second, k)

    def aligned(self, first: Run, second: Run) -> list[tuple[int, int]]:
        """Places of the tokens that two runs have in common, in order: edit-distance alignment."""
        return common_places(first.tokens, second.tokens)

    def next_tokens(self, k: int = 10, position: int = -1) -> dict[str, Any]:
        """The next token before and after the edits; see `readings.next_difference`."""
        return next_difference(self.run("clean"), self.run("edited"), k, position)

    def importance(self) -> Float[np.ndarray, "layer head"]:
        """What the intact model's next-token prediction loses without each head; NaN if pruned.

        KL of the clean prediction from the one without the head, in nats, whatever is edited now.
        Kept until the prompt changes.
        """
        ids, heads = self.run("clean").ids, self._heads()
        if self._importance is None:
            model = self._swept()
            found = ablate_heads(model, ids, "kl", heads=heads, positions=-1, progress=False)
            self._importance = found.matrix.float().numpy()
        return self._importance.copy()

    def least_harm(self, limit: float, *, progress: bool = True) -> list[tuple[int, int]]:
        """Heads that greedy search removes, the least harmful first, while KL stays within a limit.

        KL of the intact model's next-token prediction from the pruned one's, in nats. Shows a bar
        while it takes long, if `progress`.
        """
        ids = self.run("clean").ids
        order = prune_order(
            self._swept(), ids, search="iterative", metric="kl", positions=-1, progress=progress
        )
        sizes = np.asarray(order.metrics)
        within = np.flatnonzero(sizes <= limit)
        removed = order.heads[: int(within.max()) + 1] if len(within) else ()
        there = set(self._heads())
        return [head for head in removed if head in there]

    def lens(self, positions: Any, *, which: str = "edited", k: int = 5, chosen: Any = ()) -> Any:
        """Logit lens at some positions; see `readings.read_lens`."""
        return read_lens(self.run(which), positions, k=k, chosen=chosen)

    def stream(self, which: str = "edited") -> Stream:
        """Norms, cosines and principal components of the residual stream."""
        return read_stream(self.run(which))

    def contributions(
        self, position: int = -1, *, which: str = "edited", answer: Any = None
    ) -> Any:
        """What each component adds to a logit; see `readings.read_contributions`."""
        return read_contributions(self.run(which), position, answer)

    def _heads(self) -> list[tuple[int, int]]:
        return [
            (layer, head) for layer in range(len(self.edits.scale)) for head in self.kept(layer)
        ]

    def _swept(self) -> Any:
        """The model with all heads, pruned ones zero: sweeps need a whole one."""
        return self.model if self.model.config.kept_heads is None else whole(self.model)
