"""Counterfactual branches: one generation that goes on in several ways from a step on.

The part before is run once; every branch goes on from a fork of its cache and, when sampling, with
the same random numbers (those of the generation that does not branch), so that branches differ by
their interventions alone. With draws by exponential races this is the Gumbel coupling (Oberst and
Sontag, 2019, arXiv:1905.05824).
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import LogitsProcessorList

from bloomlab.analysis.lens import log_probabilities
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.branch_results import Branches
from bloomlab.experiments.branch_runs import BranchRun, Padding, Shifted
from bloomlab.experiments.readings import gathered
from bloomlab.model.cache import KVCache
from bloomlab.model.instrument import check_interventions
from bloomlab.model.options import GenerationOptions, takes_options
from bloomlab.model.plan import Plan, make_plan
from bloomlab.model.prompt import Prompt, read_prompt
from bloomlab.model.spelling import Spelling

REFUSED = ("num_beams", "num_return_sequences", "generator", "use_cache")


@takes_options
@torch.no_grad()
def compare_branches(
    model: Any,
    prompt: Any,
    branches: Mapping[str, Any],
    *,
    from_step: int,
    attention_mask: Any = None,
    reference: str | None = None,
    readouts: Any = (),
    **options: Any,
) -> Branches:
    """A generation that goes on under other interventions in each branch, from a step on.

    Each branch equals a whole generation of its own with its interventions in force from that step
    on (tested), and one without interventions the plain generation. Steps are those of the whole
    generation: step 0 reads the prompt, step t > 0 the token generated at step t - 1.

    Args:
        model: a BLOOM with a language-model head.
        prompt: ids [batch pos], padded on the left, or text.
        branches: the interventions of each branch by its name, as `stream` takes them; [] none.
        from_step: first step at which branches differ; they have this many tokens in common.
        attention_mask: [batch pos], 0 for padding; as in `generate`.
        reference: the branch that others are compared with; None: the first.
        readouts: one or several, taken at every token of each branch; see `read_generation`.
        **options: GenerationOptions.

    Returns:
        `Branches`: tokens, texts, first differing step, divergence at every step, read-outs.

    Raises:
        InputError: no branches, a step that is not reached, beams, several sequences a prompt or a
            shared generator.
        UnknownNameError: a reference that is no branch, a hook or site that the model lacks.
        NumericalError: logits that are NaN or infinite.
    """
    chosen = _options(options)
    if not branches:
        raise InputError("no branches. Give a name and interventions for each, [] for none.")
    first = next(iter(branches)) if reference is None else reference
    if first not in branches:
        raise UnknownNameError("branch", first, branches)
    edits = {name: check_interventions(model, some) for name, some in branches.items()}
    given = read_prompt(
        model,
        prompt,
        attention_mask=attention_mask,
        pad_token_id=chosen.pad_token_id,
        past=None,
        use_cache=True,
    )
    plan = make_plan(model, given, chosen, copies=1)
    n_new = plan.text.shape[1] - plan.start
    if isinstance(from_step, bool) or not 0 <= from_step < n_new:
        raise InputError(
            f"from_step is {from_step!r}, expected 0 to {n_new - 1}: there are {n_new} steps."
        )
    trunk = BranchRun(model, given, plan, (), readouts, until=plan.start + from_step)
    for _, _ in zip(range(from_step), trunk, strict=False):
        pass
    if len(trunk.grown) < from_step or (from_step and bool(trunk.finished.all())):
        raise InputError(
            f"all rows ended after {len(trunk.grown)} tokens: there is no step {from_step}."
        )
    forked, goes_on = _from(trunk, given, plan, from_step)
    runs = {
        name: BranchRun(
            model,
            _forked(forked),
            replace(goes_on, text=plan.text.clone(), draws=copy.deepcopy(plan.draws)),
            [Shifted(one, from_step) for one in some],
            readouts,
            until=plan.until,
            finished=trunk.finished,
        )
        for name, some in edits.items()
    }
    kl = _side_by_side(runs, first)
    return _results(runs, trunk, given, plan, kl=kl, reference=first, cache=forked.cache)


def _options(options: Mapping[str, Any]) -> GenerationOptions:
    chosen = GenerationOptions.of(compare_branches, options, None)
    for name in REFUSED:
        usual = GenerationOptions.__dataclass_fields__[name].default
        if getattr(chosen, name) != usual:
            raise InputError(f"{name}={getattr(chosen, name)!r}: branches go on row by row alone.")
    if chosen.do_sample and chosen.seed is None:  # the same draws in all branches
        return replace(chosen, seed=int(torch.randint(2**31, ())))
    return chosen


def _from(trunk: BranchRun, given: Prompt, plan: Plan, step: int) -> tuple[Prompt, Plan]:
    """The text so far as a prompt, and the plan to go on with."""
    if not step:
        return given, plan
    start = plan.start + step
    mask = F.pad(given.mask, (0, step), value=1)
    text = plan.text[:, :start]
    prompt = Prompt(
        ids=text, mask=mask, seen=mask, skip=start - 1, cache=trunk.decoder.decoder.cache
    )
    rules = plan.processors
    if bool(trunk.finished.any()):
        rules = LogitsProcessorList([*rules, Padding(trunk.finished, plan.pad)])
    return prompt, replace(plan, start=start, skip=start - 1, processors=rules)


def _forked(prompt: Prompt) -> Prompt:
    cache = prompt.cache
    return replace(prompt, cache=cache.fork() if cache is not None and len(cache) else KVCache())


def _side_by_side(runs: Mapping[str, BranchRun], reference: str) -> list[dict[str, Tensor]]:
    """Make all steps of all runs; the divergence of each from the reference, in nats."""
    steps, found = {name: iter(run) for name, run in runs.items()}, []
    ended = next(iter(runs.values())).finished
    while True:
        before = {name: run.finished for name, run in runs.items()}
        logits = {name: step.logits for name, one in steps.items() if (step := next(one, None))}
        if not logits:
            return found
        blank = ended.new_full(ended.shape, torch.nan, dtype=torch.float32)
        found.append(dict.fromkeys(runs, blank))
        if reference not in logits:
            continue
        p = log_probabilities(logits[reference])
        for name, some in logits.items():
            q = log_probabilities(some)
            kl = (p.exp() * (p - q)).nan_to_num(0.0).sum(-1).clamp(min=0)
            found[-1][name] = kl.masked_fill(before[name] | before[reference], torch.nan)


def _results(
    runs: Mapping[str, BranchRun],
    trunk: BranchRun,
    given: Prompt,
    plan: Plan,
    *,
    kl: list[dict[str, Tensor]],
    reference: str,
    cache: KVCache | None,
) -> Branches:
    tokens, counts, readings, n_step = [], [], {}, len(kl)
    for name, run in runs.items():
        said = torch.stack([*trunk.grown, *run.grown], 1)
        alive = ~torch.stack([*trunk.ended, *run.ended], 1)
        if run.reader.points:
            readings[name] = gathered(
                run.reader,
                [*trunk.taken, *run.taken],
                tokens=torch.cat([given.ids, said], 1),
                counts=torch.cat([given.mask.bool(), alive], 1),
                n_prompt=plan.start,
            )
        missing = (0, n_step - len(run.grown))
        tokens.append(F.pad(said, missing, value=plan.pad))
        counts.append(F.pad(alive, missing, value=False))
    return Branches(
        names=tuple(runs),
        reference=reference,
        prompt=given.ids,
        attention_mask=given.mask.bool(),
        from_step=len(trunk.grown),
        tokens=torch.stack(tokens),
        counts=torch.stack(counts),
        texts={
            name: [_spelled(trunk.decoder.decoder.model, *row) for row in zip(*some, strict=True)]
            for name, *some in zip(runs, tokens, counts, strict=True)
        },
        kl=torch.stack([torch.stack([step[name] for step in kl], 1) for name in runs]),
        readings=readings,
        cache=cache if trunk.grown else None,
    )


def _spelled(model: Any, ids: Int[Tensor, " new"], counts: Bool[Tensor, " new"]) -> str:
    return Spelling(model.tokenizer).add(ids[counts].tolist(), last=True)
