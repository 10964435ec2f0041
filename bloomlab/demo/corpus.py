"""A folder of plain text files, one a language, as one long row of token ids."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt
from tokenizers import AddedToken, pre_tokenizers, trainers
from tokenizers.models import BPE

from bloomlab.demo.recipe import Recipe
from bloomlab.errors import InputError
from bloomlab.tokens import BloomTokenizer, bloom_pipeline

BETWEEN = "\n\n\n"  # documents of a file
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>")
TOKENIZER_BYTES = 24_000_000  # of text the tokenizer is made from
FILES = ("tokens.npy", "corpus.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Token ids of all documents, each ended by </s>, language after language.

    Attributes:
        tokens: the ids.
        spans: language -> first and end index in `tokens`.
        tokenizer: what made them.
        digest: hash of the texts and of what was asked of them.
    """

    tokens: UInt[np.ndarray, " pos"]
    spans: Mapping[str, tuple[int, int]]
    tokenizer: BloomTokenizer
    digest: str

    def save(self, folder: Path) -> None:
        """Write tokens and tokenizer to a folder; `load` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        np.save(folder / FILES[0], self.tokens)
        facts = {"spans": self.spans, "digest": self.digest}
        (folder / FILES[1]).write_text(json.dumps(facts), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        """The corpus in a folder, its tokens memory-mapped."""
        facts = json.loads((folder / FILES[1]).read_text(encoding="utf-8"))
        return cls(
            tokens=np.load(folder / FILES[0], mmap_mode="r"),
            spans={name: (start, end) for name, (start, end) in facts["spans"].items()},
            tokenizer=BloomTokenizer.from_pretrained(folder),
            digest=facts["digest"],
        )


def prepare(folder: Path, recipe: Recipe, kept: Path) -> Corpus:
    """The tokenised corpus of a recipe; made once, then read from the folder `kept`.

    Raises:
        InputError: no text files, or languages in the recipe that have none.
    """
    documents = read_documents(folder, recipe)
    digest = _digest(documents, recipe)
    if (kept / FILES[1]).exists() and (found := Corpus.load(kept)).digest == digest:
        return found
    tokenizer = make_tokenizer(documents, recipe)
    corpus = encode(documents, tokenizer, digest=digest)
    corpus.save(kept)
    return corpus


def read_documents(folder: Path, recipe: Recipe) -> dict[str, list[str]]:
    """Documents of each `<language>.txt` in a folder that the recipe uses.

    Documents are separated by two blank lines.

    Raises:
        InputError: no text files, or languages in the recipe that have none.
    """
    files = {file.stem: file for file in sorted(folder.glob("*.txt"))}
    if missing := recipe.languages.keys() - files.keys() or not files:
        what = f"no {', '.join(sorted(missing))}" if isinstance(missing, set) else "none at all"
        raise InputError(
            f"{folder} should hold the corpus as <language>.txt files; there is {what}. Give the "
            "folder, or change the recipe's languages."
        )
    found = {}
    for name, file in files.items():
        texts = file.read_text(encoding="utf-8").split(BETWEEN)
        pattern = recipe.leave_out.get(name)
        kept = [text for text in texts if not (pattern and re.search(pattern, text))]
        if recipe.languages.get(name, 1) and any(kept):
            found[name] = [text for text in kept if text]
    return found


def shares(sizes: Mapping[str, int], recipe: Recipe) -> dict[str, float]:
    """Probability of drawing from each language: ~ weight x size^exponent."""
    weights = {
        name: recipe.languages.get(name, 1.0) * size**recipe.exponent
        for name, size in sizes.items()
    }
    total = sum(weights.values())
    return {name: weight / total for name, weight in weights.items()}


def make_tokenizer(documents: Mapping[str, list[str]], recipe: Recipe) -> BloomTokenizer:
    """A byte-level BPE with BLOOM's pipeline; a language counts as much as in training."""
    wanted = shares({name: _n_byte(texts) for name, texts in documents.items()}, recipe)

    def sample() -> Iterator[str]:
        for name, texts in documents.items():
            left = wanted[name] * TOKENIZER_BYTES
            for text in texts:
                if left <= 0:
                    break
                left -= len(text.encode())
                yield text

    backend = bloom_pipeline(BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(sample(), trainer)
    return BloomTokenizer(tokenizer_object=backend, padding_side="left")  # as transformers reads it


def encode(documents: Mapping[str, list[str]], tokenizer: BloomTokenizer, *, digest: str) -> Corpus:
    """The documents as token ids."""
    small = len(tokenizer) <= 2**16
    end = tokenizer.eos_token_id
    parts, spans, at = [], {}, 0
    for name, texts in documents.items():
        rows = tokenizer(texts, return_attention_mask=False)["input_ids"]
        ids = np.fromiter(
            (i for row in rows for i in (*row, end)), dtype=np.uint16 if small else np.uint32
        )
        parts.append(ids)
        spans[name] = (at, at := at + len(ids))
    return Corpus(tokens=np.concatenate(parts), spans=spans, tokenizer=tokenizer, digest=digest)


def _n_byte(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def _digest(documents: Mapping[str, list[str]], recipe: Recipe) -> str:
    asked = [recipe.vocab_size, recipe.exponent, sorted(recipe.languages.items())]
    digest = hashlib.sha256(json.dumps(asked).encode())
    for name, texts in documents.items():
        digest.update(f"{name}{BETWEEN}{BETWEEN.join(texts)}".encode())
    return digest.hexdigest()
