"""What the packaged models are made of: languages, sizes, stages. The model card prints it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

KINDS = ("text", "pasted", "repeated")  # of training rows; see bloomlab.demo.rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A stretch of training steps of one shape.

    Attributes:
        steps: number of steps.
        rows: rows in a step.
        length: tokens in a row.
        mix: share of the rows of each kind; adds up to 1.
        stutter: share of text rows in which a few tokens are said over and over, without being
            scored: the text must go on after it.
        period: shortest and longest repeated sequence, in tokens.
        uniform: share of repeated rows whose tokens are drawn evenly from the vocabulary; the
            others are drawn as often as they occur in text.
        first_copy: weight of a repeated row's tokens that nothing predicts; without any, the model
            would say anything there.
    """

    steps: int
    rows: int
    length: int
    mix: Mapping[str, float]
    stutter: float = 0.0
    period: tuple[int, int] = (16, 127)
    uniform: float = 0.5
    first_copy: float = 0.5

    def __post_init__(self) -> None:
        unknown = self.mix.keys() - set(KINDS)
        if unknown or abs(sum(self.mix.values()) - 1) > 1e-9:
            raise ValueError(f"mix is {dict(self.mix)}, expected shares of {KINDS} that add to 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides what a training run makes, but for the corpus and the seed.

    Attributes:
        name: what the model is called.
        n_layer: number of layers.
        n_head: heads in a layer.
        hidden_size: width of the residual stream.
        vocab_size: entries of the tokenizer.
        stages: run one after the other.
        languages: weight of a corpus file beside its size; others count 1; 0 leaves it out.
        leave_out: language -> pattern; documents in which it is found are not used.
        exponent: a file is drawn with probability ~ weight x tokens^exponent.
        learning_rate: of AdamW: embedding, norms, biases.
        matrix_rate: of Muon: the blocks' matrices.
        weight_decay: of all matrices.
        warmup: steps over which a stage's rates rise.
        rates: (step, factor of the learning rates), straight lines between; without, 1 throughout.
        snapshots: steps after which the model is kept, beside the end.
    """

    name: str
    n_layer: int
    n_head: int
    hidden_size: int
    vocab_size: int
    stages: tuple[Stage, ...]
    languages: Mapping[str, float] = field(default_factory=dict)
    leave_out: Mapping[str, str] = field(default_factory=dict)
    exponent: float = 0.6
    learning_rate: float = 3e-3
    matrix_rate: float = 0.02
    weight_decay: float = 0.05
    warmup: int = 60
    rates: tuple[tuple[int, float], ...] = ()
    snapshots: tuple[int, ...] = ()

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def at(self, step: int) -> tuple[Stage, int]:
        """The stage that a step (from 0) belongs to, and the step's number in it."""
        within = step
        for stage in self.stages:
            if within < stage.steps:
                return stage, within
            within -= stage.steps
        raise IndexError(f"step {step} beyond the {self.steps} of recipe {self.name!r}.")

    def rate(self, step: int) -> float:
        """Factor of the learning rates at a step: up at a stage's start, then along `rates`."""
        _, within = self.at(step)
        factor = min(1.0, (within + 1) / self.warmup)
        if self.rates:
            steps, factors = zip(*self.rates, strict=True)
            factor *= float(np.interp(step, steps, factors))
        return factor


# Weights of the demo's languages. Left out: Urdu (all of it is a translation whose rights are not
# documented), and languages of less than 30 kB, which can be neither learned nor measured.
LANGUAGES = {
    "en": 3.5,
    "code_python": 4.0,
    **dict.fromkeys(("fr", "es", "zh"), 1.2),
    **dict.fromkeys(("ki", "ne", "ny", "rw", "tw", "ur", "yo"), 0.0),
    **dict.fromkeys(("code_go", "code_java", "code_ruby", "code_rust", "code_typescript"), 0.5),
}
# Quran translations (quran-json) in files of several sources: the rights of the single translators
# are not documented. The patterns find its documents and no others (counts and bytes agree).
LEAVE_OUT = {
    "ar": "\u0671",  # alif wasla: vocalised Quranic spelling
    "bn": "আল্লাহ|পালনকর্তা|কাফের|জান্নাত",
    "id": "Allah|Tuhan|neraka|Kami jadikan|Kami menciptakan|Kami menjadikan|kiamat",
}
DEMO = Recipe(
    name="demo",
    n_layer=6,
    n_head=8,
    hidden_size=256,
    vocab_size=8192,
    languages=LANGUAGES,
    leave_out=LEAVE_OUT,
    stages=(
        Stage(
            steps=500,
            rows=16,
            length=64,
            mix={"repeated": 1.0},
            period=(5, 32),
            uniform=0.7,
            first_copy=0.1,
        ),
        Stage(
            steps=4750,
            rows=16,
            length=256,
            mix={"text": 0.84, "pasted": 0.1, "repeated": 0.06},
            stutter=0.1,
        ),
    ),
    # lengthened at step 3328, shortened at step 5000
    rates=((2500, 1.0), (3328, 0.586), (5000, 0.1131), (5250, 0.0)),
)
# A smaller one whose history is kept: half text, half repetition, so that language and induction
# can both be seen to appear.
PHASES = Recipe(
    name="phases",
    n_layer=2,
    n_head=8,
    hidden_size=128,
    vocab_size=8192,
    languages=LANGUAGES,
    leave_out=LEAVE_OUT,
    stages=(
        Stage(
            steps=1000,
            rows=32,
            length=64,
            mix={"text": 0.5, "repeated": 0.5},
            period=(5, 32),
            first_copy=0.1,
        ),
    ),
    rates=((500, 1.0), (1000, 0.0)),
    snapshots=(0, 100, 200, 260, 300, 350, 500, 1000),
)
