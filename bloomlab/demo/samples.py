"""What a model writes greedily after fixed prompts, and whether it runs into a loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PROMPTS = {
    "en": (
        "The old man looked at the sea and",
        "Once upon a time there was a little girl who",
        "To open a file, choose",
        "The king said to his people that",
    ),
    "fr": (
        "Il était une fois un roi qui",
        "Pour ouvrir un fichier, cliquez",
        "Le président de la République",
        "La fonction renvoie",
    ),
    "es": (
        "Había una vez una niña que",
        "Para abrir un archivo, elija",
        "La función devuelve",
        "El presidente del gobierno",
    ),
    "zh": ("从前有一个小女孩", "要打开文件,请选择", "这个函数返回", "在这个例子中"),
    "code": (
        "def read_file(path):\n",
        "import os\n\nclass Reader:\n    def __init__(self",
        "for i in range(",
        "func main() {\n",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A prompt, what the model wrote after it, and the period of the loop it ran into, if any."""

    language: str
    prompt: str
    text: str
    loop: int | None


def loop_period(ids: Sequence[int], *, below: int = 8, copies: int = 3) -> int | None:
    """Shortest period, under `below` tokens, with which a text ends; None if it is in no loop.

    The last `copies` periods must be equal, and be 8 tokens or more: "..." is no loop yet.
    """
    ids = list(ids)
    for period in range(1, below):
        n = max(copies * period, 8)
        tail = ids[-n:]
        if len(tail) == n and tail[period:] == tail[:-period]:
            return period
    return None


def greedy_samples(model: Any, *, n_token: int = 40) -> list[Sample]:
    """`n_token` likeliest tokens after each of the fixed prompts; </s> does not end them."""
    found = []
    for language, prompts in PROMPTS.items():
        for prompt in prompts:
            ids = model.to_tokens(prompt)
            written = model.generate(ids, max_new_tokens=n_token, eos_token_id=[], do_sample=False)
            new = written[0, ids.shape[1] :].tolist()
            found.append(
                Sample(
                    language=language,
                    prompt=prompt,
                    text=model.tokenizer.decode(new),
                    loop=loop_period(new),
                )
            )
    return found
