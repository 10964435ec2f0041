"""LensTable: what each layer would predict at each token."""

from typing import Any

import numpy as np
import pandas as pd

from bloomlab.errors import InputError
from bloomlab.widgets.pack import floats, trouble
from bloomlab.widgets.stills import table
from bloomlab.widgets.view import Answer, View

STILL = 12  # columns of the still


class LensTable(View):
    """The logit lens as a table, layers up and tokens across, computed for the columns in sight.

    Click a cell: the ranks of its token, and of the final one, through the layers. Cells that the
    edits change are marked. `value` is a table of everything.

    Args:
        session: what is looked through.
        prompt: a new prompt of the session; None leaves it.
        **controls: compare True, False.
    """

    name = "lens"

    def defaults(self) -> dict[str, Any]:
        """No comparison."""
        return {"compare": False}

    @property
    def value(self) -> pd.DataFrame:
        """One row a layer and token: layer, pos, token, predicted, probability."""
        run = self.session.run(self.place["run"])
        labels, _, probability = self._read(range(len(run)), self.place["run"])
        rows = [
            (layer, pos, run.tokens[pos], labels[layer][pos], probability[layer, pos])
            for layer in range(len(labels))
            for pos in range(len(run))
        ]
        return pd.DataFrame(rows, columns=["layer", "pos", "token", "predicted", "probability"])

    def answer_lens(self, positions: Any, run: str) -> Answer:
        """The likeliest token of each layer at some positions."""
        labels, ids, probability = self._read(positions, run)
        facts = {"labels": labels, "ids": ids, "trouble": trouble(probability, "the lens")}
        return facts, [floats(probability)]

    def answer_ranks(self, position: int, ids: Any, run: str) -> Answer:
        """Rank of some tokens in each layer at one position; 0 is the likeliest."""
        self._require([position], run)
        found = self.session.lens([position], which=run, k=1, chosen=ids)
        labels = self.session.run(run).labels(ids)
        return {"labels": labels}, [floats(found.chosen_rank[:, 0].float().numpy())]

    def exported(self) -> list[dict[str, Any]]:
        """All columns at once."""
        runs = [self.place["run"], *(["clean"] if self.controls["compare"] else [])]
        every = list(range(len(self.facts["tokens"])))
        return [{"op": "lens", "positions": every, "run": run} for run in dict.fromkeys(runs)]

    def still(self) -> bytes:
        """The first columns."""
        tokens = self.session.run("clean").tokens[:STILL]
        labels, _, probability = self._read(range(len(tokens)), self.place["run"])
        return table(labels[::-1], probability[::-1], tokens)

    def _read(
        self, positions: Any, run: str
    ) -> tuple[list[list[str]], list[list[int]], np.ndarray]:
        self._require(positions, run)
        found = self.session.lens(positions, which=run, k=1)
        ids = found.top[..., 0].tolist()
        name = self.session.run(run).labels
        return [name(row) for row in ids], ids, found.top_logprob[..., 0].exp().numpy()

    def _require(self, positions: Any, run: str) -> None:
        n = len(self.session.run(run))
        if not len(positions) or not all(0 <= pos < n for pos in positions):
            raise InputError(f"columns {list(positions)}, expected some of 0 to {n - 1}.")
