"""The tuned lens: an affine map a layer, trained so that the stream predicts what the model will.

Belrose et al. (2023, arXiv:2303.08112).
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.analysis.lens import divergence, log_probabilities
from bloomlab.errors import CheckpointError, InputError, UnknownNameError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.identity import model_identity
from bloomlab.experiments.residual_stream import (
    LOGITS_AT_ONCE,
    Place,
    Streams,
    places,
    require_unembedding,
    streams,
)

FORMAT = "bloomlab tuned lens 1"


@dataclass(frozen=True, kw_only=True)
class TunedLens:
    """h + A h + b for the stream h at every trained place; made by `train_tuned_lens`.

    Attributes:
        places: layer and site. The stream after the last layer is none: it is the prediction.
        A: maps, zero before training.
        b: biases.
        losses: KL(final || lens) of each training step, in nats per token.
        model: hash of the weights that it belongs to.
    """

    places: tuple[Place, ...]
    A: Float[Tensor, "place d_model d_model"]
    b: Float[Tensor, "place d_model"]
    losses: Float[Tensor, "step place"]
    model: str

    @property
    def frame(self) -> pd.DataFrame:
        """The course of training. Columns: step, layer, site, kl (nats per token)."""
        rows = [
            {"step": step, "layer": layer, "site": site, "kl": kl}
            for step, losses in enumerate(self.losses.tolist())
            for (layer, site), kl in zip(self.places, losses, strict=True)
        ]
        return pd.DataFrame(rows, columns=["step", "layer", "site", "kl"])

    def check(self, model: Any) -> None:
        """Raise unless the lens was trained on this very model.

        Raises:
            InputError: other weights, another number format or another configuration.
        """
        found = model_identity(model)["sha256"]
        if found != self.model:
            raise InputError(
                f"the tuned lens belongs to the model {self.model[:12]}, this is {found[:12]}: "
                "other weights, number format or configuration. Train a lens on this model."
            )

    def translator(self, layer: int, site: str, *, device: Any) -> Callable[[Tensor], Tensor]:
        """The map [row d_model] -> [row d_model] of a place, in float32 at least.

        Raises:
            UnknownNameError: the lens was not trained there.
        """
        if (layer, site) not in self.places:
            final = 1 + max((at for at, kind in self.places if kind == "post"), default=-1)
            if site == "post" and layer == final:
                return lambda stream: stream
            known = [f"{kind} of layer {at}" for at, kind in self.places]
            raise UnknownNameError("place of the lens", f"{site} of layer {layer}", known)
        at = self.places.index((layer, site))
        A, b = self.A[at].to(device), self.b[at].to(device)
        return lambda stream: _translated(stream, A, b)

    def save(self, file: str | Path) -> None:
        """Write the lens to a safetensors file; whole or not at all."""
        path = Path(file).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        about = {"format": FORMAT, "model": self.model, "places": json.dumps(self.places)}
        tensors = {name: getattr(self, name).contiguous() for name in ("A", "b", "losses")}
        save_file(tensors, scratch, metadata=about)
        os.replace(scratch, path)

    @classmethod
    def load(cls, file: str | Path) -> "TunedLens":
        """Read a saved lens, onto the CPU.

        Raises:
            CheckpointError: no such file, or no tuned lens in it.
        """
        try:
            with safe_open(Path(file).expanduser(), framework="pt") as stored:
                about = stored.metadata() or {}
                if about.get("format") != FORMAT:
                    raise CheckpointError(f"{file} is no tuned lens; see TunedLens.save.")
                tensors = {name: stored.get_tensor(name) for name in ("A", "b", "losses")}
        except (OSError, SafetensorError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{file} cannot be read as a tuned lens: {error}") from error
        found = tuple((layer, site) for layer, site in json.loads(about["places"]))
        return cls(places=found, model=about["model"], **tensors)


def train_tuned_lens(
    model: Any,
    tokens: Any,
    attention_mask: Any = None,
    *,
    sites: Any = "post",
    steps: int = 250,
    batch: int = 8,
    limit: int = 256,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> TunedLens:
    """An affine map for each layer that brings its prediction near the model's own.

    Each step draws texts, and of their tokens some, and lowers KL(final || lens) by Adam; the
    learning rate falls linearly to 0. The model stays as it is.

    Args:
        model: a BLOOM with an unembedding, whole or pruned.
        tokens: texts, ids [batch pos] or a dict with `attention_mask`. Judge the lens on others.
        attention_mask: [batch pos], 0 for padding.
        sites: "post" (after the MLP), "mid" (after attention), "pre" (before the layer).
        steps: of training.
        batch: texts in a step.
        limit: tokens in a step, at most.
        learning_rate: at the first step.
        seed: of the draws.
        progress: show a bar while it takes long.

    Raises:
        UnsupportedError: a model without unembedding.
        UnknownNameError: no such site.
        InputError: no data; steps, batch, limit or learning rate not above 0; nothing to train.
    """
    require_unembedding(model)
    if min(steps, batch, limit) < 1 or not learning_rate > 0:
        raise InputError(
            f"steps={steps}, batch={batch}, limit={limit}, learning_rate={learning_rate}: expected "
            "numbers above 0."
        )
    data, final = dataset(model, tokens, attention_mask), (len(model.blocks) - 1, "post")
    wanted = [place for place in places(model, sites) if place != final]
    if not wanted:
        raise InputError("a model of one layer has no stream to train on but the final one.")
    wide = torch.promote_types(model.dtype, torch.float32)
    n, width = len(wanted), model.config.hidden_size
    A = torch.zeros(n, width, width, dtype=wide, device=model.device)
    b = torch.zeros(n, width, dtype=wide, device=model.device)
    optimizer = torch.optim.Adam([A, b], lr=learning_rate)
    losses = torch.zeros(steps, n, dtype=wide)
    draws = _draws(data, batch, torch.Generator().manual_seed(seed))
    for step in tqdm(range(steps), unit="step", delay=2, disable=not progress):
        texts, source = next(draws)
        mask = None if data.mask is None else data.mask[texts]
        seen = streams(model, Dataset(tokens=data.tokens[texts], mask=mask), wanted)
        rows = torch.randperm(len(seen.text), generator=source)[:limit].to(model.device)
        A.grad, b.grad = torch.zeros_like(A), torch.zeros_like(b)
        for at, place in enumerate(wanted):
            loss, A.grad[at], b.grad[at] = _gradients(model, seen, place, rows, A[at], b[at])
            losses[step, at] = loss
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1 - step / steps)
        optimizer.step()
    return TunedLens(
        places=tuple(wanted),
        A=A.cpu(),
        b=b.cpu(),
        losses=losses,
        model=model_identity(model)["sha256"],
    )


def _draws(
    data: Dataset, batch: int, source: torch.Generator
) -> Iterator[tuple[Tensor, torch.Generator]]:
    """Numbers of some texts, each text once before any comes again."""
    while True:
        for some in torch.randperm(len(data), generator=source).split(batch):
            yield some.to(data.tokens.device), source


def _gradients(
    model: Any, seen: Streams, place: Place, rows: Tensor, A: Tensor, b: Tensor
) -> tuple[float, Tensor, Tensor]:
    """Mean KL of some rows, and its gradients; logits are made for a few rows at a time."""
    total, to_A, to_b = 0.0, torch.zeros_like(A), torch.zeros_like(b)
    for some in rows.split(max(1, LOGITS_AT_ONCE // model.config.vocab_size)):
        with torch.no_grad():
            after = log_probabilities(model.unembed(seen.last[some]))
        with torch.enable_grad():
            own = A.detach().requires_grad_(), b.detach().requires_grad_()
            stream = seen.values[place][some]
            translated = _translated(stream, *own).to(stream.dtype)
            read = log_probabilities(model.unembed(model.ln_final.plain(translated)))
            loss = divergence(after, read).sum() / len(rows)
            parts = torch.autograd.grad(loss, own)
        total, to_A, to_b = total + float(loss.detach()), to_A + parts[0], to_b + parts[1]
    return total, to_A, to_b


def _translated(stream: Tensor, A: Tensor, b: Tensor) -> Tensor:
    wide = stream.to(A.dtype)
    return wide + wide @ A.mT + b
