"""GenScrubber: a generation step by step, and branches from any of its steps."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from bloomlab.errors import InputError, UnknownNameError
from bloomlab.widgets.pack import floats, quantised
from bloomlab.widgets.stills import words
from bloomlab.widgets.view import Answer, Number, View

MAIN = "main"
LABELLED = 40  # candidates of a step that get a label


class GenScrubber(View):
    """Scrub through a generation: what each token looked at, what else might have come.

    Temperature, top-k and top-p act in the browser on the 512 likeliest tokens of each step. Click
    a candidate and the generation branches there, with what the cache holds of the steps before; or
    branch with other heads masked. `value` is a table of the steps.

    Args:
        session: what is looked through.
        prompt: a new prompt of the session; None leaves it.
        readouts: probes or directions read at every step, see `experiments.probe_readout`.
        **controls: max_new_tokens from 1; do_sample, mean True, False; temperature 0.1 to 2; top_k
            0 (all) to 512; top_p 0.05 to 1; k (candidates shown) 1 to 512.
    """

    name = "scrub"

    def __init__(
        self, session: Any, prompt: str | None = None, *, readouts: Any = (), **controls: Any
    ) -> None:
        self._readouts = readouts
        self._shown = MAIN
        super().__init__(session, prompt, **controls)

    def defaults(self) -> dict[str, Any]:
        """Greedy, 24 tokens."""
        return {
            "max_new_tokens": 24,
            "do_sample": False,
            "temperature": 1.0,
            "top_k": 50,
            "top_p": 1.0,
            "k": 10,
            "mean": False,
        }

    @property
    def value(self) -> pd.DataFrame:
        """One row a step of the branch on screen: token, label, probability, entropy, seconds."""
        made = self._branch(self._shown)
        names = ("token", "label", "probability", "entropy", "seconds")
        return pd.DataFrame([{n: getattr(step, n) for n in names} for step in made.steps])

    def answer_generate(
        self, max_new_tokens: int, do_sample: bool, temperature: Number, top_k: int, top_p: Number
    ) -> Answer:
        """Another generation from the prompt, under the edits; those that are there stay."""
        names = (MAIN, *(f"{MAIN} {i}" for i in range(2, len(self.session.generations) + 2)))
        name = next(name for name in names if name not in self.session.generations)
        options = self._options(do_sample, temperature, top_k, top_p)
        made = self.session.generate(name, max_new_tokens=max_new_tokens, **options)
        return self._shown_answer(made)

    def answer_open(self, **options: Any) -> Answer:
        """What is there already, else a first generation."""
        made = self.session.generations
        name = self._shown if self._shown in made else next(reversed(made), "")
        return self._shown_answer(made[name]) if name else self.answer_generate(**options)

    def _options(
        self, do_sample: bool, temperature: Number, top_k: int, top_p: Number
    ) -> dict[str, Any]:
        options: dict[str, Any] = {"readouts": self._readouts}
        if do_sample:
            options |= {"do_sample": True, "temperature": float(temperature)}
            options |= {"top_k": top_k, "top_p": float(top_p)}
        return options

    def answer_branch(
        self,
        parent: str,
        step: int,
        token: int | None,
        max_new_tokens: int,
        do_sample: bool = False,
        temperature: Number = 1.0,
        top_k: int = 50,
        top_p: Number = 1.0,
    ) -> Answer:
        """Go on from a step with another token, or with the edits as they are."""
        options = self._options(do_sample, temperature, top_k, top_p)
        made = self.session.branch(parent, step, token, max_new_tokens=max_new_tokens, **options)
        return self._shown_answer(made)

    def answer_branch_of(self, name: str) -> Answer:
        """A branch that was made before."""
        return self._shown_answer(self._branch(name))

    def answer_rows(self, name: str, layer: int, head: int) -> Answer:
        """Attention of one head at all steps, one after the other, a byte a weight.

        Head -1: the mean of all heads.
        """
        steps = self._branch(name).steps
        if head < 0:
            rows = [step.rows.mean((0, 1)) for step in steps]
        elif 0 <= layer < self.session.n_layer and head in self.session.kept(layer):
            rows = [step.rows[layer, head] for step in steps]
        else:
            raise InputError(f"no head L{layer}H{head}.")
        return {"first": len(rows[0])}, [quantised(np.concatenate(rows)).tobytes()]

    def exported(self) -> Iterator[dict[str, Any]]:
        """The generation and the attention of its steps."""
        names = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p")
        yield {"op": "open"} | {name: self.controls[name] for name in names}
        layer = self.session.selection.layer
        if self._shown in self.session.generations:  # it was answered by now
            for head in self.session.kept(layer):
                yield {"op": "rows", "name": self._shown, "layer": layer, "head": head}
            yield {"op": "rows", "name": self._shown, "layer": 0, "head": -1}

    def given(self) -> list[str]:
        """The read-outs."""
        return ["readouts=readouts"] if self._readouts else []

    def still(self) -> bytes:
        """The text; new tokens coloured by their probability."""
        prompt = self.session.run("clean").tokens
        made = self.session.generations.get(self._shown)
        new = [] if made is None else made.steps
        weights = [*np.zeros(len(prompt)), *(step.probability for step in new)]
        return words([*prompt, *(step.label for step in new)], np.array(weights))

    def _branch(self, name: str) -> Any:
        made = self.session.generations
        if name not in made:
            raise UnknownNameError("branch", name, made, where="Generate first.")
        return made[name]

    def _shown_answer(self, made: Any) -> Answer:
        self._shown = made.name
        run, steps = self.session.run("clean"), []
        for step in made.steps:
            labels = run.labels(step.ids[:LABELLED])
            names = ("token", "label", "entropy", "probability", "scale", "readings")
            facts = {name: getattr(step, name) for name in names}
            steps.append({**facts, "labels": labels, "ms": 1e3 * step.seconds})
        facts = {
            "name": made.name,
            "names": list(self.session.generations),
            "parent": made.parent,
            "since": made.since,
            "prompt": run.tokens,
            "n_prompt": len(run),
            "steps": steps,
        }
        ids = np.stack([step.ids for step in made.steps]).astype(np.int32)
        return facts, [floats(np.stack([step.logits for step in made.steps])), ids.tobytes()]
