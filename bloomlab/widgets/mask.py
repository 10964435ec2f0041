"""HeadMaskLab: heads off, scaled or averaged, and what the next token makes of it."""

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from bloomlab.errors import UnknownNameError
from bloomlab.widgets.heads import heads_off, mask_without
from bloomlab.widgets.next_tokens import next_answer
from bloomlab.widgets.pack import plain
from bloomlab.widgets.stills import bars
from bloomlab.widgets.view import Answer, Number, View

CHANGES = ("edit", "mask", "preset", "prune", "restore")
PRESETS = ("layer", "head", "others", "invert")


class HeadMaskLab(View):
    """Switch heads off (click, Space), scale them (digits, slider), let them write their mean (a).

    The likeliest next tokens stand before and after, with the change of their logits and the KL of
    the intact prediction from the edited one. The model runs again from the first edited layer
    only. `head_mask` is the mask [layer head]; assign one to change it. `value` is the table.

    Args:
        session: what is looked through.
        prompt: a new prompt of the session; None leaves it.
        **controls: k (tokens shown) 1 to 512; limit (KL of greedy pruning, nats) from 0.
    """

    name = "mask"

    def defaults(self) -> dict[str, Any]:
        """Ten tokens."""
        return {"k": 10, "limit": 0.1}

    def describe(self) -> dict[str, Any]:
        """The heads that are off, as text."""
        return {"off": heads_off(self.session.edits.scale)}

    @property
    def head_mask(self) -> Float[np.ndarray, "layer head"]:
        """Factor of every head; assign another to change it."""
        return self.session.edits.scale

    @head_mask.setter
    def head_mask(self, mask: Any) -> None:
        self.session.edits = self.session.edits.with_mask(mask)

    @property
    def value(self) -> pd.DataFrame:
        """The likeliest next tokens, ordered by the larger probability.

        Columns: id, label, before and after (probabilities), logit_change.
        """
        found = self.session.next_tokens(self.controls["k"])
        columns = {"ids": "id", "labels": "label", "logits": "logit_change"}
        frame = pd.DataFrame({name: v for name, v in found.items() if name != "kl"})
        return frame.rename(columns=columns)

    def answer_next(self, k: int) -> Answer:
        """The next token."""
        return next_answer(self.session, k)

    def _answer(self, question: dict[str, Any]) -> Answer:
        changes = question.get("op") in CHANGES
        facts, buffers = super()._answer(question)
        if changes:  # the next token comes with the change: one question less
            facts = {**facts, **plain(next_answer(self.session, self.controls["k"])[0])}
        return facts, buffers

    def answer_mask(self, text: str) -> Answer:
        """Switch off the heads of a text, all others on."""
        self.head_mask = mask_without(text, *self.head_mask.shape)
        return {}, []

    def answer_preset(self, what: str, layer: int, head: int) -> Answer:
        """Switch a layer, a head number, all but one head of a layer, or everything over."""
        if what not in PRESETS:
            raise UnknownNameError("preset", what, PRESETS)
        n_layer, n_head = self.head_mask.shape
        if what == "invert":
            self.head_mask = (self.head_mask == 0).astype(np.float32)
            return {}, []
        self.session.edits.with_heads([(layer, head)])  # refuses a head that is not there
        row, column = [(layer, h) for h in range(n_head)], [(i, head) for i in range(n_layer)]
        others = [one for one in row if one[1] != head]
        return self.answer_edit({"layer": row, "head": column, "others": others}[what], scale=0)

    def answer_restore(self, scale: Any, mean: Any) -> Answer:
        """Earlier edits of heads; slopes stay."""
        edits = self.session.edits
        arrays = {"scale": np.array(scale, dtype=np.float32), "mean": np.array(mean, dtype=bool)}
        self.session.edits = type(edits)(**arrays, slopes=edits.slopes)
        return {}, []

    def answer_prune(self, limit: Number) -> Answer:
        """Switch off as many heads as greedy search can within a KL, in nats."""
        self.status = "searching heads …"
        mask = np.ones_like(self.head_mask)
        for layer, head in self.session.least_harm(float(limit), progress=False):
            mask[layer, head] = 0
        self.status = ""
        self.head_mask = mask
        return {}, []

    def exported(self) -> list[dict[str, Any]]:
        """The next tokens."""
        return [{"op": "next", "k": self.controls["k"]}]

    def still(self) -> bytes:
        """The next tokens before and after."""
        found = self.session.next_tokens(self.controls["k"])
        off = heads_off(self.head_mask) or "none"
        return bars(found["labels"], found["before"], found["after"], title=f"heads off: {off}")
