"""A generation under the cache, step by step, and branches that go on from one of its steps."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.experiments.readings import read_stream
from bloomlab.model.cache import KVCache
from bloomlab.printable import checked_ids, printable_tokens
from bloomlab.session.edits import Edits

KEPT = 512  # likeliest tokens of each step
OWN = {"past_key_values", "interventions", "num_return_sequences"}  # no options here


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GeneratedStep:
    """One token, and how it came about.

    Attributes:
        token: its id.
        label: printable.
        ids: the likeliest next tokens, at most 512.
        logits: theirs, before temperature and truncation.
        scale: log of the sum of exp(logit) over the whole vocabulary.
        entropy: of the whole distribution, in nats.
        probability: of the token.
        seconds: time of the step; of a step taken over from another branch, that step's.
        rows: attention of the query that made the token, before the head mask.
        readings: values of read-outs at that query, by read-out and hook.
    """

    token: int
    label: str
    ids: Int[np.ndarray, " top"]
    logits: Float[np.ndarray, " top"]
    scale: float
    entropy: float
    probability: float
    seconds: float
    rows: Float[np.ndarray, "layer head key"]
    readings: dict[str, list[float]]

    def __repr__(self) -> str:
        return f"GeneratedStep({self.label!r}, probability {self.probability:.3g})"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Generated:
    """A prompt and what followed.

    Attributes:
        name: of the branch.
        prompt: its ids.
        steps: one a token.
        cache: keys and values of everything but the last token.
        parent: name of the branch that it left; "" for the first.
        since: step from which it goes its own way.
        edits: in force from there on.
    """

    name: str
    prompt: Int[Tensor, "1 pos"]
    steps: list[GeneratedStep]
    cache: KVCache
    parent: str
    since: int
    edits: Edits

    def __repr__(self) -> str:
        said = "".join(step.label for step in self.steps)
        left = f", left {self.parent!r} at step {self.since}" if self.parent else ""
        return f"Generated({self.name!r}{left}, {len(self.steps)} steps: {said!r})"

    @property
    def ids(self) -> list[int]:
        """Prompt and generated tokens."""
        return [*self.prompt[0].tolist(), *(step.token for step in self.steps)]


class _Rows:
    """Keeps the attention of the query that makes each token; an intervention that edits nothing.

    Of a prompt it is given: scores of all its queries would be needed for the last one's.
    """

    enters_cache = True
    counts = False

    def __init__(self, first: Callable[[], Tensor], kept: Sequence[Sequence[int]]) -> None:
        self.first, self.kept = first, kept
        self.found: dict[int, Tensor] = {}

    def rows(self, n_head: int) -> Float[Tensor, "layer head key"]:
        """Those of the last forward."""
        if not self.found:
            return self.first()
        rows = torch.zeros(len(self.kept), n_head, self.found[0].shape[-1])
        for layer, found in self.found.items():
            rows[layer, list(self.kept[layer])] = found
        return rows

    def hooks(self, start: int = 0, step: int = 0) -> list[tuple[str, Any]]:
        """One reading hook for each layer."""
        if start == 0:
            return []

        def keep(pattern: Tensor, hook: Any) -> None:
            self.found[int(hook.name.split(".")[1])] = pattern[0, :, -1].float().cpu()

        keep.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
        return [(f"blocks.{layer}.attn.hook_pattern", keep) for layer in range(len(self.kept))]


def generate(
    model: Any,
    prompt: Int[Tensor, "1 pos"],
    *,
    name: str,
    edits: Edits,
    means: list[Float[Tensor, "_ d_head"]],
    first: Callable[[], Tensor],
    parent: Generated | None = None,
    since: int = 0,
    token: int | None = None,
    readouts: Any = (),
    max_new_tokens: int = 32,
    **options: Any,
) -> Generated:
    """Generate, or go on from a step of another generation with what its cache holds.

    Args:
        model: a BLOOM with a language-model head and a tokenizer.
        prompt: ids.
        name: of the branch.
        edits: in force while tokens are made (those of a parent's steps are the parent's).
        means: of every head's output in the clean run of the prompt.
        first: gives attention [layer head key] of the prompt's last query under `edits`.
        parent: whose steps before `since` are taken over.
        since: step of the parent that is taken otherwise.
        token: id taken at that step; None: what the model says under `edits`.
        readouts: see `experiments.read_stream`.
        max_new_tokens: in all, steps of the parent counted.
        **options: of `model.stream`: do_sample, temperature, top_k, top_p, generator ...

    Raises:
        InputError: no such step, a token outside the vocabulary, no room for new tokens, an option
            that a session decides.
    """
    if given := sorted(OWN.intersection(options)):
        raise InputError(
            f"{given[0]}: a session generates one row, with a cache and edits of its own."
        )
    if parent is not None and (
        isinstance(since, bool)
        or not hasattr(since, "__index__")
        or not 0 <= since < len(parent.steps)
    ):
        raise InputError(
            f"no step {since}: {parent.name!r} has steps 0 to {len(parent.steps) - 1}."
        )
    taken = [] if parent is None else parent.steps[:since]
    if token is not None and checked_ids([token])[0] >= model.config.vocab_size:
        raise InputError(f"token {token}: ids run from 0 to {model.config.vocab_size - 1}.")
    if max_new_tokens <= since:
        raise InputError(f"max_new_tokens is {max_new_tokens}, expected more than {since}.")
    fed = torch.tensor([[step.token for step in taken]], dtype=torch.long, device=prompt.device)
    text = torch.cat([prompt, fed], 1)
    past = KVCache() if parent is None else parent.cache.fork(1).crop(text.shape[1] - 1)
    kept = [block.attn.heads for block in model.blocks]
    rows = _Rows(first, kept)
    forced = None if token is None else torch.tensor([token], device=prompt.device)
    steps, begun = list(taken), time.perf_counter()
    options = {"past_key_values": past, "forced": forced, **options}
    options["max_new_tokens"] = max_new_tokens - since
    found = read_stream(
        model, text, readouts, interventions=[*edits.interventions(kept, means), rows], **options
    )
    for step, values in found:
        seconds = time.perf_counter() - begun
        steps.append(_step(model, step, rows.rows(model.config.n_head).numpy(), values, seconds))
        begun = time.perf_counter()
    return Generated(
        name=name,
        prompt=prompt,
        steps=steps,
        cache=past,
        parent="" if parent is None else parent.name,
        since=since,
        edits=edits,
    )


def _step(model: Any, step: Any, rows: Any, values: Any, seconds: float) -> GeneratedStep:
    logits, token = step.logits[0].float(), int(step.token[0])
    logprob = logits.log_softmax(-1)
    best = logits.topk(min(KEPT, len(logits)))
    return GeneratedStep(
        token=token,
        label=printable_tokens(model.tokenizer, [token])[0],
        ids=best.indices.cpu().numpy(),
        logits=best.values.cpu().numpy(),
        scale=float(logits.logsumexp(-1)),
        entropy=float(-(logprob.exp() * logprob).sum()),
        probability=float(logprob[token].exp()),
        seconds=seconds,
        rows=rows,
        readings={
            f"{readout} at {hook}": value[0, -1].flatten().tolist()
            for (readout, hook), value in values.items()
        },
    )
