"""Train a small BLOOM from plain text: `python -m bloomlab.demo.train --corpus DIR --out DIR`.

The folder's `<language>.txt` files hold documents separated by two blank lines. A run that was
killed goes on where it last saved when the same command is given again; on one machine, with one
seed, the result is the same either way. On Linux, MALLOC_MMAP_THRESHOLD_=1000000000 and
MALLOC_TRIM_THRESHOLD_=8000000000 in the environment make a CPU run about a tenth faster.
"""

import contextlib
import copy
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from bloomlab.demo import recipe as recipes
from bloomlab.demo.corpus import BETWEEN, prepare
from bloomlab.demo.measures import copying, text_loss
from bloomlab.demo.muon import Muon
from bloomlab.demo.recipe import Recipe
from bloomlab.demo.rows import Rows
from bloomlab.errors import CheckpointError, InputError
from bloomlab.model.config import BloomConfig, as_device
from bloomlab.model.heads import BloomForCausalLM

WATCHED = ("en", "fr", "es", "zh", "hi", "code_python")  # held-out languages in the log
WATCHED_TOKENS = 4097
RUNS = {"demo": recipes.DEMO, "phases": recipes.PHASES}


def new_model(recipe: Recipe, tokenizer: Any, *, seed: int) -> BloomForCausalLM:
    """A model with weights drawn so that it learns fast at this size.

    Matrices of the blocks have a standard deviation of 1/sqrt(width), those that write to the
    stream less, the deeper the model; 0.02 at a width of 256 would stay on the plateau for long.
    """
    config = BloomConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        n_layer=recipe.n_layer,
        n_head=recipe.n_head,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        seq_length=max(stage.length for stage in recipe.stages),
    )
    torch.manual_seed(seed)
    model = BloomForCausalLM(config)
    wide, deep = recipe.hidden_size**-0.5, (2 * recipe.n_layer) ** -0.5
    for block in model.blocks:
        nn.init.normal_(block.attn.qkv.weight, std=wide)
        nn.init.normal_(block.attn.o.weight, std=wide * deep)
        nn.init.normal_(block.mlp.fc_in.weight, std=wide)
        nn.init.normal_(block.mlp.fc_out.weight, std=wide * deep / 2)
    model.tokenizer = tokenizer
    return model


def optimizers(model: BloomForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embedding, norms and biases."""
    layers: list[Any] = list(model.blocks)
    matrices = [
        {"params": [b.attn.qkv.weight for b in layers], "n_head": recipe.n_head},
        {"params": [b.attn.o.weight for b in layers]},
        {"params": [b.mlp.fc_in.weight for b in layers]},
        {"params": [b.mlp.fc_out.weight for b in layers]},
    ]
    rest = [p for p in model.parameters() if p.ndim < 2]
    decay = recipe.weight_decay
    return [
        Muon(
            matrices,
            lr=recipe.matrix_rate,
            weight_decay=decay,
            precision=torch.bfloat16 if fast_bfloat16(model.device) else torch.float32,
        ),
        torch.optim.AdamW(
            [
                {"params": [model.embed.weight], "weight_decay": decay},
                {"params": rest, "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=(0.9, 0.98),
            fused=True,
        ),
    ]


def fast_bfloat16(device: torch.device) -> bool:
    """Whether products of bfloat16 matrices are faster than float32's here."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.12 and later can tell
    return device.type == "cpu" and bool(known.get("avx512_bf16"))


class Run:
    """One training run: model, optimizers, data, and the step it has come to.

    Args:
        recipe: what to make.
        corpus: folder of text files.
        out: where the run keeps its state, log, snapshots and result.
        seed: of weights and rows.
        device: None takes a GPU if there is one.
        heldout: folder of text files that are never trained on, for the log.

    Raises:
        CheckpointError: `out` holds the state of another run.
    """

    def __init__(
        self,
        recipe: Recipe,
        corpus: Path,
        out: Path,
        *,
        seed: int = 0,
        device: str | None = None,
        heldout: Path | None = None,
    ) -> None:
        self.recipe, self.out, self.step = recipe, out, 0
        data = prepare(corpus, recipe, out / "corpus")
        self.rows = Rows(data, recipe, seed=seed)
        self.model = new_model(recipe, data.tokenizer, seed=seed)
        self.model.to(as_device(device or ("cuda" if torch.cuda.is_available() else "cpu")))
        self.optimizers = optimizers(self.model, recipe)
        self.rates = [[group["lr"] for group in o.param_groups] for o in self.optimizers]
        self.same = {"recipe": repr(recipe), "seed": seed, "corpus": data.digest}
        self.heldout = _heldout(heldout)
        self.autocast = fast_bfloat16(self.model.device)
        self.loss: Any = self._loss
        if self.model.device.type == "cuda":  # on a CPU it costs minutes and gains nothing
            self.loss = torch.compile(self._loss)
        if (out / "state.pt").exists():
            self._resume()

    def train(self, *, log_every: int = 200, save_every: float = 120.0) -> Path:
        """Run to the end; the folder of the finished checkpoint.

        Args:
            log_every: steps between evaluations.
            save_every: seconds after which the state is saved, so that a kill loses no more.
        """
        saved = time.monotonic()
        if self.step == 0 and self.recipe.snapshots:
            self._snapshot()
        bar = tqdm(total=self.recipe.steps, initial=self.step, unit="step", smoothing=0.05)
        with bar, deterministic(self.model.device):
            while self.step < self.recipe.steps:
                loss = self._advance()
                bar.update()
                if self.step in self.recipe.snapshots:
                    self._snapshot()
                last = self.step == self.recipe.steps
                if last or self.step % log_every == 0:
                    bar.set_postfix_str(self._log(loss))
                if last or time.monotonic() - saved > save_every:
                    self._save()
                    saved = time.monotonic()
        return self._export(self.out / "checkpoint", torch.bfloat16)

    def _advance(self) -> float:
        place = self.model.device
        ids, weights = (torch.from_numpy(part).to(place) for part in self.rows.batch(self.step))
        self.model.train()
        loss = self.loss(ids, weights)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        factor = self.recipe.rate(self.step)
        for optimizer, rates in zip(self.optimizers, self.rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def _loss(self, ids: Tensor, weights: Tensor) -> Tensor:
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self.autocast):
            logits = self.model(ids[:, :-1], use_cache=False).logits
        target = ids[:, 1:].flatten()
        losses = F.cross_entropy(logits.flatten(0, 1).float(), target, reduction="none")
        return (losses * weights.flatten()).sum() / weights.sum()

    def _log(self, loss: float) -> str:
        self.model.eval()
        copied = copying(self.model)
        row: dict[str, Any] = {
            "step": self.step,
            "tokens": sum(
                stage.rows * stage.length
                for stage, _ in (self.recipe.at(i) for i in range(self.step))
            ),
            "rate": round(self.recipe.rate(self.step - 1), 4),
            "loss": round(loss, 4),
            "first": round(copied.first, 4),
            "second": round(copied.second, 4),
            "induction": round(float(copied.induction.max()), 4),
            "previous": round(float(copied.previous.max()), 4),
        }
        for name, texts in self.heldout.items():
            got = text_loss(self.model, texts, limit=WATCHED_TOKENS)
            row[name] = round(got.bits, 4)
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return " ".join(f"{key} {row[key]}" for key in ("loss", "induction", "en") if key in row)

    def _snapshot(self) -> None:
        self._export(self.out / f"step{self.step}", torch.float16)

    def _export(self, folder: Path, dtype: torch.dtype) -> Path:
        model = copy.deepcopy(self.model).to(dtype).eval()
        model.save_pretrained(folder, max_shard_size="8MB")
        return folder

    def _save(self) -> None:
        state = {
            **self.same,
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }
        torch.save(state, self.out / "state.pt.new")
        os.replace(self.out / "state.pt.new", self.out / "state.pt")

    def _resume(self) -> None:
        state = torch.load(self.out / "state.pt", map_location=self.model.device, weights_only=True)
        if other := [name for name, value in self.same.items() if state.get(name) != value]:
            raise CheckpointError(
                f"{self.out} holds a run with another {' and '.join(other)}. Give the same, or "
                "another folder."
            )
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        for optimizer, kept in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        log = self.out / "log.jsonl"
        if log.exists():  # rows that the run will write again
            rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
            kept = [json.dumps(row) + "\n" for row in rows if row["step"] <= self.step]
            log.write_text("".join(kept), encoding="utf-8")


@contextlib.contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Kernels that give the same bits every time (a CPU's do); the setting is put back."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(before or device.type == "cuda", warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _heldout(folder: Path | None) -> dict[str, list[str]]:
    if folder is None:
        return {}
    files = {name: folder / f"{name}.txt" for name in WATCHED}
    texts = {n: file.read_text(encoding="utf-8") for n, file in files.items() if file.exists()}
    if not texts:
        raise InputError(f"{folder} holds none of {', '.join(f'{name}.txt' for name in WATCHED)}.")
    return {name: text.split(BETWEEN) for name, text in texts.items()}


def main(
    corpus: Annotated[Path, typer.Option(help="Folder of <language>.txt files.")],
    out: Annotated[Path, typer.Option(help="Folder for the run; give it again to go on.")],
    recipe: Annotated[str, typer.Option(help=f"One of {', '.join(RUNS)}.")] = "demo",
    seed: Annotated[int, typer.Option(help="Of weights and rows.")] = 0,
    heldout: Annotated[Path | None, typer.Option(help="Folder of texts for the log.")] = None,
    device: Annotated[str | None, typer.Option(help="None takes a GPU if there is one.")] = None,
) -> None:
    """Train a small BLOOM from plain text files."""
    if recipe not in RUNS:
        raise typer.BadParameter(f"no recipe {recipe!r}; there are {', '.join(RUNS)}.")
    out.mkdir(parents=True, exist_ok=True)
    folder = Run(RUNS[recipe], corpus, out, seed=seed, device=device, heldout=heldout).train()
    typer.echo(f"{folder}: bl.load({str(folder)!r}) opens it.")


if __name__ == "__main__":
    typer.run(main)
