"""Beam search, with transformers' rules for ranking and for when to stop."""

from dataclasses import dataclass, fields, replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from bloomlab.model.decode import Decoder
from bloomlab.model.growing import processed
from bloomlab.model.numerics import numerical_error
from bloomlab.model.plan import Plan

NEVER = -1e9  # score of what must not be chosen; finite, so that ties fall as in transformers


@dataclass(frozen=True, kw_only=True, slots=True)
class Beams:
    """Hypotheses of each prompt, the best first.

    Attributes:
        text: prompt and continuation, and room for more.
        score: log-probability in nats, or what it was ranked by.
        length: number of generated tokens.
        done: whether the hypothesis is complete.
        parent: row of the decoder it goes on from.
    """

    text: Int[Tensor, "batch beam pos"]
    score: Float[Tensor, "batch beam"]
    length: Int[Tensor, "batch beam"]
    done: Bool[Tensor, "batch beam"]
    parent: Int[Tensor, "batch beam"]

    def best(self, n: int) -> "Beams":
        """The n hypotheses of the highest score."""
        return self.taken(self.score.topk(n).indices)

    def taken(self, beams: Int[Tensor, "batch chosen"]) -> "Beams":
        """The hypotheses of the given numbers, in their order."""
        return Beams(
            text=self.text.take_along_dim(beams[:, :, None], 1),
            score=self.score.take_along_dim(beams, 1),
            length=self.length.take_along_dim(beams, 1),
            done=self.done.take_along_dim(beams, 1),
            parent=self.parent.take_along_dim(beams, 1),
        )

    def beside(self, other: "Beams") -> "Beams":
        """These and other hypotheses of the same prompts."""
        both = {f.name: (getattr(self, f.name), getattr(other, f.name)) for f in fields(Beams)}
        return Beams(**{name: torch.cat(pair, 1) for name, pair in both.items()})


class BeamSearch:
    """The search for the likeliest continuations of several prompts at once.

    Args:
        plan: with a row of text for each prompt and beam.
        decoder: reads one row per prompt, then as many as there are beams.
    """

    def __init__(self, plan: Plan, decoder: Decoder) -> None:
        self.plan, self.decoder, self.options = plan, decoder, plan.options
        self.start, self.total, self.n = plan.start, plan.text.shape[1], plan.copies
        # even if the best n all end there are n more to go on with
        self.n_candidates = max(2, 1 + plan.n_ends) * self.n
        text = rearrange(plan.text, "(batch beam) pos -> batch beam pos", beam=self.n)
        zeros = torch.zeros(text.shape[:2], device=text.device)
        score = zeros.clone()
        score[:, 1:] = NEVER  # all beams start alike: go on from the first alone
        shared = {"length": zeros.long(), "done": zeros.bool(), "parent": zeros.long()}
        self.running = Beams(text=text, score=score, **shared)
        self.complete = Beams(text=text, score=zeros + NEVER, **shared)
        self.hopeful = torch.ones(len(text), 1, dtype=torch.bool, device=text.device)

    def run(self) -> Int[Tensor, "row pos"]:
        """The best continuations, `num_return_sequences` rows for each prompt."""
        new = self.plan.text[:, self.plan.skip : self.start]
        logits = self.decoder.advance(new[:: self.n]).repeat_interleave(self.n, 0)
        self.decoder.repeat(self.n)
        for length in range(self.start, self.total):
            candidates = self._candidates(length, logits)
            if not bool(candidates.score[:, 0].isfinite().all()):
                self.decoder.rewind(self.decoder.length - new.shape[1])
                raise numerical_error(self.decoder, new, step=length - self.start)
            self._advance(length, candidates)
            if not self._goes_on(candidates):
                break
            self.decoder.reorder(self.running.parent.flatten(), since=self.start + self.plan.offset)
            new = self.running.text[:, :, length].reshape(-1, 1)
            logits = self.decoder.advance(new)
        best = slice(0, self.options.num_return_sequences)
        end = self.start + int(self.complete.length[:, best].max())
        return rearrange(self.complete.text[:, best, :end], "batch beam pos -> (batch beam) pos")

    def _candidates(self, length: int, logits: Float[Tensor, "row vocab"]) -> Beams:
        """The best ways to go on by a token, more than there are beams."""
        text = rearrange(self.running.text, "batch beam pos -> (batch beam) pos")
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scores = processed(self.plan.processors, text[:, :length], wide.log_softmax(-1))
        vocab = scores.shape[-1]
        scores = rearrange(scores, "(batch beam) vocab -> batch beam vocab", beam=self.n)
        scores = (scores + self.running.score[:, :, None]).flatten(1)
        ranks = scores if self.plan.draws is None else self.plan.draws.race(scores)
        choice = ranks.topk(self.n_candidates).indices
        if self.plan.draws is not None:  # which are drawn is chance, how they rank is not
            order = scores.take_along_dim(choice, 1).sort(-1, descending=True).indices
            choice = choice.take_along_dim(order, 1)
        beam = choice // vocab
        parents = self.running.taken(beam)
        parents.text[:, :, length] = choice % vocab
        n_prompts, device = len(beam), beam.device
        row = torch.arange(n_prompts, device=device)[:, None] * self.n + beam
        return Beams(
            text=parents.text,
            score=scores.take_along_dim(choice, 1),
            length=torch.full_like(beam, length + 1 - self.start),
            done=self._done(parents.text[:, :, : length + 1]),
            parent=row,
        )

    def _done(self, text: Int[Tensor, "batch beam pos"]) -> Bool[Tensor, "batch beam"]:
        rows = rearrange(text, "batch beam pos -> (batch beam) pos")
        full = rows.shape[1] == self.total
        done = torch.full((len(rows),), full, dtype=torch.bool, device=rows.device)
        if self.plan.stopping and not full:
            done = done | self.plan.stopping(rows, None)  # pyright: ignore[reportArgumentType]  # stubs
        return rearrange(done, "(batch beam) -> batch beam", beam=self.n_candidates)

    def _advance(self, length: int, candidates: Beams) -> None:
        """Go on from the best that are not complete, and keep the best complete ones."""
        open_score = candidates.score + candidates.done * NEVER
        self.running = replace(candidates, score=open_score).best(self.n)
        # a candidate beyond the first n is there to go on from, not to be returned
        among_best = torch.arange(self.n_candidates, device=candidates.score.device) < self.n
        ended = candidates.done & among_best
        tokens = length + 1 - self.start
        score = candidates.score / tokens**self.options.length_penalty
        if self.options.early_stopping is True:
            score = score + self.complete.done.all(-1, keepdim=True) * NEVER
        score = score + ~self.hopeful * NEVER + ~ended * NEVER
        new = replace(candidates, score=score, done=ended)
        self.complete = self.complete.beside(new).best(self.n)
        self.hopeful = self.hopeful & self._may_improve(tokens)

    def _may_improve(self, tokens: int) -> Bool[Tensor, "batch 1"]:
        """Whether the best running hypothesis may still beat the worst complete one."""
        penalty = self.options.length_penalty
        if self.options.early_stopping == "never" and penalty > 0:
            tokens = self.total - self.start  # a longer one may rank higher
        best = self.running.score[:, :1] / tokens**penalty
        worst = self.complete.score.amin(-1, keepdim=True)
        return (best > torch.where(self.complete.done, worst, NEVER)).any(-1, keepdim=True)

    def _goes_on(self, candidates: Beams) -> bool:
        full = self.complete.done.all() & (self.options.early_stopping is True)
        return bool(self.hopeful.any() & ~full & ~candidates.done.all())
