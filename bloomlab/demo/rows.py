"""Training rows: text, text with a span pasted in again, repeated random tokens.

The rows of a step depend on seed and step alone: a run that goes on after a kill sees what it would
have seen.
"""

from typing import Any

import numpy as np
from jaxtyping import Float, Int

from bloomlab.demo.corpus import Corpus, shares
from bloomlab.demo.recipe import Recipe, Stage

N_SPECIAL = 4  # ids that random rows leave out: <unk>, <s>, </s>, <pad>
STUTTER = (1, 7)  # tokens that are said over and over


class Rows:
    """Draws the training rows of every step.

    Args:
        corpus: where text comes from.
        recipe: what is mixed how.
        seed: another seed, other rows.
    """

    def __init__(self, corpus: Corpus, recipe: Recipe, *, seed: int) -> None:
        self.corpus, self.recipe, self.seed = corpus, recipe, seed
        longest = max(stage.length for stage in recipe.stages) + 1
        sizes = {name: end - start for name, (start, end) in corpus.spans.items()}
        sizes = {name: size for name, size in sizes.items() if size > longest}
        chances = shares(sizes, recipe)
        self.spans = [corpus.spans[name] for name in sizes]
        self.chances = np.array([chances[name] for name in sizes])
        self.n_vocab = len(corpus.tokenizer)
        self.bos: Any = corpus.tokenizer.bos_token_id

    def batch(
        self, step: int
    ) -> tuple[Int[np.ndarray, "batch pos1"], Float[np.ndarray, "batch pos"]]:
        """Ids of a step, one more than the model reads, and the weight of each predicted token.

        The rows come in the order text, pasted, repeated.
        """
        stage, _ = self.recipe.at(step)
        draw = np.random.default_rng([self.seed, step])
        # the fractions of rows come out right over many steps
        n_repeated = int(stage.rows * stage.mix.get("repeated", 0) + draw.random())
        n_pasted = int(stage.rows * stage.mix.get("pasted", 0) + draw.random())
        makers = [self._text] * max(stage.rows - n_repeated - n_pasted, 0)
        makers += [self._pasted] * n_pasted + [self._repeated] * n_repeated
        ids, weights = zip(*(make(draw, stage) for make in makers[: stage.rows]), strict=True)
        return np.stack(ids), np.stack(weights)

    def _text(self, draw: np.random.Generator, stage: Stage) -> tuple[np.ndarray, np.ndarray]:
        ids, weights = self._natural(draw, stage.length), np.ones(stage.length, np.float32)
        if draw.random() < stage.stutter:
            _stutter(ids, weights, draw)
        return ids, weights

    def _natural(self, draw: np.random.Generator, length: int) -> np.ndarray:
        start, end = self.spans[draw.choice(len(self.spans), p=self.chances)]
        at = int(draw.integers(start, end - length))
        ids = self.corpus.tokens[at : at + length + 1].astype(np.int64)
        if draw.random() < 0.5:
            ids[0] = self.bos
        return ids

    def _pasted(self, draw: np.random.Generator, stage: Stage) -> tuple[np.ndarray, np.ndarray]:
        length = stage.length
        ids = self._natural(draw, length)
        span = int(draw.integers(12, length // 3))
        source = int(draw.integers(1, length // 2 - span // 2))
        target = int(draw.integers(source + span, length - 8))
        span = min(span, length + 1 - target)
        ids[target : target + span] = ids[source : source + span].copy()
        return ids, np.ones(length, np.float32)

    def _repeated(self, draw: np.random.Generator, stage: Stage) -> tuple[np.ndarray, np.ndarray]:
        # groups of a random sequence and one or two copies of it; then another
        length = stage.length
        first = self.bos if draw.random() < 0.6 else self._random(draw, stage, 1)[0]
        ids, predictable = [np.array([first])], [np.zeros(1, bool)]
        if draw.random() < 0.5:
            n = int(draw.integers(1, 9))
            ids.append(self._random(draw, stage, n))
            predictable.append(np.zeros(n, bool))
        while sum(map(len, ids)) < length + 1:
            n = int(draw.integers(stage.period[0], stage.period[1] + 1))
            n_copy = int(draw.integers(1, 3))
            ids.append(np.tile(self._random(draw, stage, n), 1 + n_copy))
            copied = np.ones(n * (1 + n_copy), bool)
            copied[: n + 1] = False  # nor does anything tell that the first copy ends
            predictable.append(copied)
        told = np.concatenate(predictable)[1 : length + 1]
        weights = np.where(told, 1.0, stage.first_copy).astype(np.float32)
        return np.concatenate(ids)[: length + 1], weights

    def _random(self, draw: np.random.Generator, stage: Stage, n: int) -> np.ndarray:
        if draw.random() < stage.uniform:
            return draw.integers(N_SPECIAL, self.n_vocab, n)
        places = draw.integers(0, len(self.corpus.tokens), n)
        return self.corpus.tokens[places].astype(np.int64)


def _stutter(ids: np.ndarray, weights: np.ndarray, draw: np.random.Generator) -> None:
    """Say a few tokens over and over, unscored, in place; what follows must be the text again."""
    span = int(draw.integers(STUTTER[0], STUTTER[1] + 1))
    n = span * int(draw.integers(2, 2 + max(1, 24 // span)))
    n = min(n, len(weights) // 3 // span * span)
    at = int(draw.integers(span + 1, len(ids) - n))
    said = np.tile(ids[at - span : at], n // span)
    ids[at:] = np.concatenate([said, ids[at:-n]])
    weights[at - 1 : at - 1 + n] = 0
