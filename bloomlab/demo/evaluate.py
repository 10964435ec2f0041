"""Measure a small BLOOM: `python -m bloomlab.demo.evaluate MODEL --heldout DIR [--card FILE]`.

The results are printed as JSON; with `--card` they replace the tables of a model card.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.demo.card import filled
from bloomlab.demo.corpus import read_documents
from bloomlab.demo.measures import copying, text_loss
from bloomlab.demo.recipe import DEMO, Recipe
from bloomlab.demo.samples import greedy_samples
from bloomlab.model.files import find_folder, phases
from bloomlab.model.load import load

PERIODS = (32, 64)
CLEAR = 0.3  # a head that scores this is called by the name of the score
ABLATION_TOKENS = 8193


def measure(model: Any, heldout: Mapping[str, list[str]]) -> dict[str, Any]:
    """Everything the model card says in numbers.

    Args:
        model: a BloomForCausalLM with its tokenizer.
        heldout: language -> documents that were never trained on.
    """
    copied = {period: copying(model, period=period) for period in PERIODS}
    scores = {
        name: getattr(copied[PERIODS[0]], name) for name in ("induction", "previous", "duplicate")
    }
    english = text_loss(model, heldout["en"], limit=ABLATION_TOKENS).nats

    def text_effect(mask: Float[Tensor, "layer head"]) -> float:
        got = text_loss(model, heldout["en"], limit=ABLATION_TOKENS, head_mask=mask)
        return got.nats - english

    def copy_effect(mask: Float[Tensor, "layer head"]) -> float:
        return copying(model, head_mask=mask).second - copied[PERIODS[0]].second

    groups = {
        f"all {name} heads": (score >= CLEAR).nonzero().tolist()
        for name, score in scores.items()
        if bool((score >= CLEAR).any())
    }
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": model.config.vocab_size,
        "languages": {
            name: {key: getattr(got, key) for key in ("nats", "bits", "n_token", "n_byte")}
            for name, texts in tqdm(heldout.items(), desc="languages")
            if (got := text_loss(model, texts)).n_token
        },
        "copying": {
            period: {key: getattr(got, key) for key in ("first", "second", "accuracy")}
            for period, got in copied.items()
        },
        "scores": {name: score.tolist() for name, score in scores.items()},
        "english": english,
        "text_effect": _each_head(model, text_effect),
        "copy_effect": _each_head(model, copy_effect),
        "groups": {
            name: {
                "heads": [f"L{layer}H{head}" for layer, head in heads],
                "text": text_effect(mask := _without(model, heads)),
                "copy": copy_effect(mask),
            }
            for name, heads in groups.items()
        },
        "samples": [
            {key: getattr(one, key) for key in ("language", "prompt", "text", "loop")}
            for one in greedy_samples(model)
        ],
    }


def measure_phases(english: list[str]) -> dict[str, dict[str, float]]:
    """Copying, its best heads, and bits per byte of English, at every step of "demo-phases"."""
    found = {}
    for name in tqdm(phases(), desc="phases"):
        model = load("demo-phases", revision=name, device="cpu")
        got = copying(model)
        found[name] = {
            "first": got.first,
            "second": got.second,
            "induction": float(got.induction.max()),
            "previous": float(got.previous.max()),
            "en": text_loss(model, english, limit=ABLATION_TOKENS).bits,
        }
    return found


def file_hashes(folder: Path) -> dict[str, dict[str, Any]]:
    """Size in bytes and SHA-256 of every file in a folder."""
    return {
        file.name: {
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for file in sorted(folder.iterdir())
    }


def heldout_documents(folder: Path, recipe: Recipe = DEMO) -> dict[str, list[str]]:
    """Documents of the languages a recipe uses, without those it leaves out."""
    return read_documents(folder, recipe)


def _each_head(model: Any, effect: Callable[[Tensor], float]) -> list[list[float]]:
    layers, heads = range(model.config.n_layer), range(model.config.n_head)
    return [
        [effect(_without(model, [(layer, head)])) for head in heads]
        for layer in tqdm(layers, desc="layers")
    ]


def _without(model: Any, heads: Any) -> Float[Tensor, "layer head"]:
    mask = torch.ones(model.config.n_layer, model.config.n_head)
    for layer, head in heads:
        mask[layer, head] = 0
    return mask


def main(
    model: Annotated[str, typer.Argument(help="'demo', a folder or a hub id.")] = "demo",
    heldout: Annotated[Path, typer.Option(help="Folder of <language>.txt files.")] = ...,  # pyright: ignore[reportArgumentType]  # typer: required
    card: Annotated[Path | None, typer.Option(help="Model card whose tables to fill.")] = None,
    log: Annotated[Path | None, typer.Option(help="log.jsonl of the training run.")] = None,
) -> None:
    """Measure a small BLOOM on held-out text and on random tokens that are said twice."""
    documents = heldout_documents(heldout)
    found = measure(load(model, device="cpu"), documents)
    found["phases"] = measure_phases(documents["en"])
    found["files"] = file_hashes(find_folder(model))
    if log is not None:
        found["log"] = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    if card is None:
        typer.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        card.write_text(filled(card.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
