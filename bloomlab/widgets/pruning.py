"""PruningBoard: curves of rankings of heads; a point is a mask to look at."""

from typing import Any

import numpy as np
import pandas as pd

from bloomlab.errors import InputError
from bloomlab.plots.arrays import check_columns
from bloomlab.widgets.stills import curves
from bloomlab.widgets.view import Answer, View

COLUMNS = ("dataset", "ranking", "kept", "value")
BAND = (0.05, 0.95)
RANDOM = "random"


class PruningBoard(View):
    """A metric against the heads kept, a line a ranking, beside the band of random orders.

    Click a point and its mask is the session's: every view shows the pruned model. `value` is the
    curve's frame, `picked` the ranking and number of heads of the point.

    Args:
        session: what is looked through, of the model that was pruned.
        curve: what `experiments.prune_curve` gives: `.frame`, `.keep(ranking, k)`, `.metric`.
    """

    name = "pruning"

    def __init__(self, session: Any, curve: Any, **controls: Any) -> None:
        if not hasattr(curve, "frame") or not hasattr(curve, "keep"):
            raise InputError(
                f"curve is {type(curve).__name__}, expected what experiments.prune_curve gives."
            )
        check_columns(curve.frame, COLUMNS)
        self.curve = curve
        self.picked: dict[str, Any] | None = None
        self._mask: Any = None  # that `picked` switched
        super().__init__(session, None, **controls)

    @property
    def value(self) -> pd.DataFrame:
        """The frame of the curve."""
        return self.curve.frame

    def describe(self) -> dict[str, Any]:
        """Curves and bands."""
        if self.picked and not np.array_equal(self.session.edits.scale, self._mask):
            self.picked = None
        frame = self.curve.frame
        named, drawn = frame[frame["ranking"] != RANDOM], frame[frame["ranking"] == RANDOM]
        found = [
            {"dataset": str(dataset), "ranking": str(ranking), **_points(part)}
            for (dataset, ranking), part in named.groupby(["dataset", "ranking"], sort=False)
        ]
        bands = []
        for dataset, part in drawn.groupby("dataset", sort=False):
            by = part.groupby("kept")["value"]
            low, high = (by.quantile(q).tolist() for q in BAND)
            kept = [int(k) for k in by.groups]
            band = {"kept": kept, "mean": by.mean().tolist(), "low": low, "high": high}
            bands.append({"dataset": str(dataset), **band})
        metric = str(getattr(self.curve, "metric", "metric")).replace("_", " ")
        return {"curves": found, "bands": bands, "metric": metric, "picked": self.picked}

    def answer_load(self, ranking: str, kept: int) -> Answer:
        """Take the mask of a point."""
        mask = np.asarray(self.curve.keep(ranking, kept)).astype(np.float32)
        self.picked, self._mask = {"ranking": ranking, "kept": kept}, mask
        self.session.edits = self.session.edits.with_mask(mask)
        self.facts = dict(self.facts, picked=self.picked)  # the mask may have been this one before
        return {}, []

    def given(self) -> list[str]:
        """The curve."""
        return ["curve"]

    def still(self) -> bytes:
        """The curves of the first dataset, and the mean of its random orders."""
        facts = self.describe()
        lines = [(one["dataset"], one["value"]) for one in facts["curves"]]
        lines += [(one["dataset"], one["mean"]) for one in facts["bands"]]
        first = [values for dataset, values in lines if dataset == lines[0][0]]
        shortest = min(len(values) for values in first)
        title = f"{facts['metric']} against heads kept"
        return curves(np.array([values[-shortest:] for values in first]), title=title)


def _points(part: pd.DataFrame) -> dict[str, list[Any]]:
    ordered = part.sort_values("kept")
    return {"kept": ordered["kept"].astype(int).tolist(), "value": ordered["value"].tolist()}
