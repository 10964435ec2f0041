"""A small corpus on disk, and a recipe that trains on it in seconds."""

import random

from bloomlab.demo.recipe import Recipe, Stage

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "dog", "run", "green", "hills"]


def write_corpus(folder, *, documents=60):
    """Two languages, `en` and `xx`, of random sentences."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("en", "xx"):
        texts = []
        for _ in range(documents):
            words = [draw.choice(WORDS)[:: 1 if name == "en" else -1] for _ in range(60)]
            texts.append(" ".join(words) + ".")
        (folder / f"{name}.txt").write_text("\n\n\n".join(texts), encoding="utf-8")
    return folder


def tiny_recipe(**fields):
    """A model of one layer; twelve steps in two stages."""
    stages = (
        Stage(steps=4, rows=4, length=16, mix={"repeated": 1.0}, period=(3, 6), first_copy=0.1),
        Stage(
            steps=8,
            rows=4,
            length=48,
            mix={"text": 0.5, "pasted": 0.25, "repeated": 0.25},
            stutter=0.5,
            period=(4, 12),
        ),
    )
    sizes = {"n_layer": 1, "n_head": 2, "hidden_size": 16, "vocab_size": 300}
    return Recipe(**{"name": "tiny", "stages": stages, "warmup": 2, **sizes, **fields})
