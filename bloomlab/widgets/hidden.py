"""HiddenStates: the residual stream through the layers."""

from typing import Any

import numpy as np
import pandas as pd

from bloomlab.widgets.pack import floats, trouble
from bloomlab.widgets.stills import matrix
from bloomlab.widgets.view import Answer, View

SHOWN = 24  # components in bars


class HiddenStates(View):
    """Norms, turning (cosines), paths in a plane, and who speaks for the next token.

    `value` is a table of norms and cosines.

    Args:
        session: what is looked through.
        prompt: a new prompt of the session; None leaves it.
        **controls: sight "norms", "cosines", "paths", "parts".
    """

    name = "hidden"

    def defaults(self) -> dict[str, Any]:
        """Norms."""
        return {"sight": "norms"}

    @property
    def value(self) -> pd.DataFrame:
        """One row a state and token: state (0 = embedding), pos, token, norm, cosine."""
        found = self.session.stream(self.place["run"])
        tokens = self.session.run("clean").tokens
        state, pos = (axis.reshape(-1) for axis in np.indices(found.norms.shape))
        first = np.full((1, len(tokens)), np.nan)
        cosines = np.concatenate([first, found.cosines])
        return pd.DataFrame(
            {
                "state": state,
                "pos": pos,
                "token": [tokens[i] for i in pos],
                "norm": found.norms.reshape(-1),
                "cosine": cosines.reshape(-1),
            }
        )

    def answer_stream(self, run: str) -> Answer:
        """Norms, cosines and paths."""
        found = self.session.stream(run)
        facts = {
            "massive": found.massive,
            "explained": found.explained.tolist(),
            "trouble": trouble(found.norms, "the stream"),
        }
        return facts, [floats(found.norms), floats(found.cosines), floats(found.points)]

    def answer_parts(self, position: int, run: str) -> Answer:
        """The largest contributions to the likeliest token's logit; the rest in one."""
        found = self.session.contributions(position, which=run)
        frame = found.frame.sort_values("contribution", key=np.abs, ascending=False)
        top, rest = frame.head(SHOWN), frame["contribution"].iloc[SHOWN:]
        answer = self.session.run(run).labels(found.answers[:, 0].tolist())[0]
        said = trouble(frame["contribution"].to_numpy(dtype=float), "the sum of components")
        return {
            "answer": answer,
            "position": position,
            "logit": float(found.logits[0]),
            "trouble": said,
            "names": [*top["component"], *(["rest"] if len(rest) else [])],
            "values": [*top["contribution"].tolist(), *([float(rest.sum())] if len(rest) else [])],
        }, []

    def exported(self) -> list[dict[str, Any]]:
        """Both kinds of picture."""
        run = self.session.selection.run
        return [
            {"op": "stream", "run": run},
            {"op": "parts", "position": self._query(), "run": run},
        ]

    def still(self) -> bytes:
        """Norms, on a logarithmic scale."""
        norms = np.log(np.maximum(self.session.stream(self.place["run"]).norms, 1e-6))
        finite = norms[np.isfinite(norms)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
        return matrix((norms - low)[::-1] / ((high - low) or 1.0), title="norms, layers up")
