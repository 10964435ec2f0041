"""Log-probabilities of continuations of many contexts, of a steered model too."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from bloomlab.errors import InputError
from bloomlab.model.cache import KVCache
from bloomlab.model.inputs import check_ids
from bloomlab.model.instrument import check_interventions

LOGITS = 2**24  # held at a time; BLOOM's vocabulary is 250,880


class Likelihood(NamedTuple):
    """Of one continuation.

    Attributes:
        log_prob: of the whole continuation after its context, in nats.
        greedy: whether each of its tokens is the likeliest one there.
    """

    log_prob: float
    greedy: bool


class _Job(NamedTuple):
    """One row of a forward: what is read, and what it should go on with at its end."""

    number: int
    read: list[int]
    targets: list[int]


@torch.no_grad()
def likelihoods(
    model: Any, pairs: Any, *, interventions: Any = (), batch_size: int = 16, progress: bool = False
) -> list[Likelihood]:
    """How likely each continuation is after its context, in the order given.

    Continuations of one context share it: it is read once. With interventions every text is read
    as a whole: they see it as one prompt, columns counted from 0 (so that `during("generation")`
    finds nothing to act on).

    Args:
        model: a BLOOM with a language-model head, whole or pruned.
        pairs: (ids of the context, ids of the continuation), neither empty.
        interventions: as for `model.stream`; not of some rows of a batch.
        batch_size: rows per forward.
        progress: show a bar.

    Raises:
        InputError: an empty context or continuation, ids out of range, interventions by row.
        UnknownNameError: an intervention at a hook point that the model lacks.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}, expected a whole number from 1.")
    edits = without_rows(model, interventions)
    groups: dict[tuple[int, ...], list[_Job]] = defaultdict(list)
    for number, (context, continuation) in enumerate(pairs):
        if not len(context) or not len(continuation):
            empty = "continuation" if len(context) else "context"
            raise InputError(f"the {empty} of pair {number} is empty, expected one token or more.")
        check_ids(torch.tensor([[*context, *continuation]]), model.config.vocab_size)
        targets = list(continuation)
        groups[tuple(context)].append(_Job(number, [context[-1], *targets[:-1]], targets))
    alone: list[_Job] = []
    found: dict[int, Likelihood] = {}
    with (
        model.hooks(fwd_hooks=edits),
        tqdm(total=sum(map(len, groups.values())), disable=not progress) as bar,
    ):
        for context, jobs in groups.items():
            before = list(context[:-1])
            if edits or not before or len(jobs) == 1:
                alone += [job._replace(read=before + job.read) for job in jobs]
                continue
            shared = KVCache()
            model.backbone(_row(model, before), past_key_values=shared, use_cache=True)
            for batch in _batches(jobs, batch_size):
                found |= _scored(model, batch, cache=shared)
                bar.update(len(batch))
        for batch in _batches(alone, batch_size):
            found |= _scored(model, batch)
            bar.update(len(batch))
    return [found[number] for number in range(len(found))]


def without_rows(model: Any, interventions: Any) -> list[Any]:
    """The interventions as a list, none of which asks for rows of a batch.

    Raises:
        InputError: one that does, or what is no intervention.
    """
    edits = check_interventions(model, interventions)
    for one in edits:
        if getattr(one, "rows", None) is not None:
            raise InputError(
                f"{one!r} acts on rows of a batch, but here rows are texts in no certain order; "
                "leave out on_rows."
            )
    return edits


def _batches(jobs: list[_Job], size: int) -> Iterator[list[_Job]]:
    """Jobs of about the same length together, the longest first."""
    jobs = sorted(jobs, key=lambda job: -len(job.read))
    yield from (jobs[start : start + size] for start in range(0, len(jobs), size))


def _row(model: Any, ids: list[int]) -> Int[Tensor, "1 pos"]:
    return torch.tensor([ids], device=model.device)


def _scored(
    model: Any, jobs: Sequence[_Job], cache: KVCache | None = None
) -> dict[int, Likelihood]:
    rows = [torch.tensor(job.read, device=model.device) for job in jobs]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    mask = (torch.arange(ids.shape[1], device=model.device) < lengths[:, None]).long()
    held = mask.new_ones(len(rows), 0 if cache is None else len(cache))
    last = model.backbone(
        ids,
        attention_mask=torch.cat([held, mask], -1),
        past_key_values=None if cache is None else cache.fork(len(rows)),
        use_cache=cache is not None,
    ).last
    ends = [
        last[row, len(job.read) - len(job.targets) : len(job.read)] for row, job in enumerate(jobs)
    ]
    targets = torch.tensor([token for job in jobs for token in job.targets], device=model.device)
    log_probs, greedy = _log_probs(model, torch.cat(ends), targets)
    counts = [len(job.targets) for job in jobs]
    return {
        job.number: Likelihood(float(some.double().sum()), bool(best.all()))
        for job, some, best in zip(jobs, log_probs.split(counts), greedy.split(counts), strict=True)
    }


def _log_probs(
    model: Any, stream: Float[Tensor, "pos d_model"], targets: Int[Tensor, " pos"]
) -> tuple[Tensor, Tensor]:
    """Log-probability in nats of each target, and whether it is the likeliest token; [pos] both."""
    n = max(1, LOGITS // model.config.vocab_size)
    log_probs, greedy = [], []
    for some, wanted in zip(stream.split(n), targets.split(n), strict=True):
        logits = model.unembed(some[None])[0]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        log_probs.append(-F.cross_entropy(logits, wanted, reduction="none"))
        greedy.append(logits.argmax(-1) == wanted)
    return torch.cat(log_probs), torch.cat(greedy)
