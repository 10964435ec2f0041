"""Read-outs of a generation, taken while it runs: one pass, with the cache.

The value at a token is that of the forward which read it: step 0 reads the prompt, step t > 0 the
token generated at step t - 1. The last generated token is never read. Values equal those of one
forward over the whole text with the same interventions (tested).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from bloomlab.errors import UnsupportedError
from bloomlab.experiments.framed import Framed
from bloomlab.experiments.readouts import Key, Reader
from bloomlab.experiments.sites import Point
from bloomlab.model.generate import Step
from bloomlab.model.instrument import check_interventions
from bloomlab.model.prompt import read_prompt


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Readings(Framed):
    """Values of read-outs at the tokens of a text; made by `read_generation`.

    Attributes:
        tokens: the whole text, prompt and generated tokens.
        counts: which tokens were read and are neither padding nor after a row's end.
        n_prompt: length of the prompt, padding counted.
        start: first column that was read; not 0 after a cache.
        values: [batch read *head k] by read-out and hook, of columns start ... start + read - 1.
        points: the hook points by name.
        outputs: names of the k numbers of each read-out; None: 0, 1, ...
        heads: numbers of the heads at each hook that has some.
    """

    tokens: Int[Tensor, "batch pos"]
    counts: Bool[Tensor, "batch pos"]
    n_prompt: int
    start: int
    values: dict[Key, Tensor]
    points: dict[str, Point]
    outputs: dict[str, tuple[Any, ...] | None]
    heads: dict[str, tuple[int, ...]]

    @property
    def frame(self) -> pd.DataFrame:
        """One row a value: step, row, column, token, site, layer, head, readout, output, value."""
        parts = [self._frame(key, value) for key, value in self.values.items()]
        columns = ["step", "row", "column", "token", "site", "layer", "head", "readout", "output"]
        if not parts:
            return pd.DataFrame(columns=[*columns, "value"])
        whole = pd.concat(parts, ignore_index=True)
        return whole.sort_values(by=["row", "column"], kind="stable", ignore_index=True)

    def at(self, readout: str, hook: str) -> Tensor:
        """Values [batch read *head k] of a read-out at a hook; padding included."""
        return self.values[readout, hook]

    def _frame(self, key: Key, value: Tensor) -> pd.DataFrame:
        point, names = self.points[key[1]], self.outputs[key[0]]
        wide = value.to(torch.promote_types(value.dtype, torch.float32)).cpu()
        wide = wide[:, :, None] if wide.ndim == 3 else wide  # batch read head k
        read = slice(self.start, self.start + wide.shape[1])
        shown = self.counts[:, read].cpu().numpy()
        row, place, head, output = (
            axis[shown].reshape(-1) for axis in np.indices(tuple(wide.shape), dtype=np.int64)
        )
        column = place + self.start
        labels = np.array(range(wide.shape[-1]) if names is None else names, dtype=object)
        numbers = np.array(self.heads[key[1]])[head] if point.by_head else [None] * len(row)
        return pd.DataFrame(
            {
                "step": np.maximum(column - self.n_prompt + 1, 0),
                "row": row,
                "column": column,
                "token": self.tokens.cpu().numpy()[row, column],
                "site": point.site,
                "layer": pd.array([point.layer] * len(row), dtype="Int64"),
                "head": pd.array(numbers, dtype="Int64"),
                "readout": key[0],
                "output": labels[output],
                "value": wide.numpy()[shown].reshape(-1),
            }
        )


def read_stream(
    model: Any,
    prompt: Any,
    readouts: Any,
    *,
    interventions: Any = (),
    **options: Any,
) -> Iterator[tuple[Step, dict[Key, Tensor]]]:
    """The steps of `model.stream`, each with the values [batch new *head k] of what it read.

    Step 0 has those of all prompt columns, padding included; later ones of one token. Values are
    keyed by read-out and hook, and what interventions do is in them.

    Args:
        model: a BLOOM with a language-model head.
        prompt: ids [batch pos], padded on the left, or text.
        readouts: one or several.
        interventions: as in `stream`.
        **options: other arguments of `stream`.

    Raises:
        InputError: read-outs of one name, or one that writes to what it reads.
        UnknownNameError: a site that the model lacks.
        ShapeError: at its step: a function whose result has other axes.
    """
    reader = Reader(model, readouts)
    edits = [*check_interventions(model, interventions), reader]
    return _watched(model.stream(prompt, interventions=edits, **options), reader)


def _watched(steps: Iterator[Step], reader: Reader) -> Iterator[tuple[Step, dict[Key, Tensor]]]:
    for step in steps:
        yield step, reader.taken()


def read_generation(
    model: Any,
    prompt: Any,
    readouts: Any,
    *,
    attention_mask: Any = None,
    interventions: Any = (),
    **options: Any,
) -> Readings:
    """Read-outs at every token of a prompt and of what follows, from the one run that makes it.

    Args:
        model: a BLOOM with a language-model head.
        prompt: ids [batch pos], padded on the left, or text.
        readouts: one or several; see `linear_readout` and `probe_readout`.
        attention_mask: [batch pos], 0 for padding; as in `generate`.
        interventions: as in `stream`.
        **options: other arguments of `stream`, such as max_new_tokens, do_sample, seed or forced.

    Raises:
        InputError, UnknownNameError, ShapeError: as `read_stream`.
        UnsupportedError: a cache that has dropped tokens or does so.
    """
    past = options.get("past_key_values")
    if past is not None and (getattr(past, "policy", None) or getattr(past, "_evicted", False)):
        raise UnsupportedError(
            "read_generation counts the columns of a whole text, but past_key_values drops some. "
            "read_stream gives the values of each step."
        )
    given = read_prompt(
        model,
        prompt,
        attention_mask=attention_mask,
        pad_token_id=options.get("pad_token_id"),
        past=None,
        use_cache=True,
    ).repeated(options.get("num_return_sequences") or 1)
    reader = Reader(model, readouts)
    edits = [*check_interventions(model, interventions), reader]
    steps = model.stream(prompt, attention_mask=attention_mask, interventions=edits, **options)
    new, alive, taken = [], [], []
    going = torch.ones(len(given.ids), dtype=torch.bool, device=given.ids.device)
    for step in steps:
        new.append(step.token)
        alive.append(going)
        taken.append(reader.taken())
        going = ~step.finished
    generated = torch.stack(new, 1)
    counts = torch.cat([given.mask.bool(), torch.stack(alive, 1)], 1)
    text = torch.cat([given.ids, generated], 1)
    return gathered(reader, taken, tokens=text, counts=counts, n_prompt=given.ids.shape[1])


def gathered(
    reader: Reader,
    taken: Sequence[dict[Key, Tensor]],
    *,
    tokens: Int[Tensor, "batch pos"],
    counts: Bool[Tensor, "batch pos"],
    n_prompt: int,
) -> Readings:
    """What a reader took at the steps of a generation, in one piece."""
    values = {key: torch.cat([some[key] for some in taken], 1) for key in (taken[0] or ())}
    n_read = next((value.shape[1] for value in values.values()), tokens.shape[1] - 1)
    end = tokens.shape[1] - 1  # the last token is never read
    counts = counts.clone()
    counts[:, end:] = False
    return Readings(
        tokens=tokens,
        counts=counts,
        n_prompt=n_prompt,
        start=end - n_read,
        values=values,
        points=reader.points,
        outputs=reader.outputs,
        heads=reader.heads,
    )
