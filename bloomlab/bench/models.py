"""The two models of a benchmark: transformers' and ours, on the same weights."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor

import bloomlab
from bloomlab.errors import CheckpointError, UnknownNameError
from bloomlab.model.config import as_device, as_dtype
from bloomlab.model.files import find_folder
from bloomlab.model.heads import BloomForCausalLM
from bloomlab.sizes import PUBLISHED, Sizes, shape_line, sizes_of

SHAPES = {
    "tiny": Sizes(vocab_size=256, hidden_size=64, n_layer=2, n_head=4),
    "thin": Sizes(vocab_size=256, hidden_size=64, n_layer=24, n_head=16),
    "560m-blocks": Sizes(vocab_size=2048, hidden_size=1024, n_layer=24, n_head=16),
    **{name: PUBLISHED[name] for name in ("560m", "1b1", "1b7", "3b", "7b1")},
}
LARGE = 1e8  # parameters from which random weights are bfloat16 on a CPU too
SPECIAL = 4  # ids below are special tokens
DRAWN = 2**20 + 7  # random numbers drawn; a large matrix repeats them, shifted from row to row


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """transformers' model and ours, sharing their weights.

    Attributes:
        name: what was asked for.
        ours: a BloomForCausalLM of bloomlab.
        theirs: transformers' BloomForCausalLM.
        folder: where the weights came from; None: random.
    """

    name: str
    ours: Any
    theirs: Any
    folder: Path | None = None

    @property
    def sizes(self) -> Sizes:
        """The shape."""
        return sizes_of(self.ours.config)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights, a tied embedding counted once."""
        return sum(value.nbytes for value in self.ours.parameters())

    def ids(self, batch: int, pos: int) -> Int[Tensor, "batch pos"]:
        """Random token ids, the same at every call."""
        source = torch.Generator().manual_seed(0)
        ids = torch.randint(SPECIAL, self.sizes.vocab_size, (batch, pos), generator=source)
        return ids.to(self.ours.device)

    @torch.no_grad()
    def disagreement(self) -> float:
        """Largest difference of the two models' logits, as a part of the largest logit."""
        ids = self.ids(1, 32)
        ours, theirs = (m(ids).logits.double() for m in (self.ours, self.theirs))
        return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def make_pair(name: str, *, dtype: Any = None, device: Any = None) -> Pair:
    """The models for a benchmark.

    Args:
        name: one of SHAPES (random weights), "demo", a folder or a hub id.
        dtype: None takes float32 on a CPU (bfloat16 for a large shape), bfloat16 or what the files
            hold on a GPU.
        device: None takes a GPU if there is one.

    Raises:
        UnknownNameError: neither a shape nor a model that can be found.
    """
    place = as_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name in SHAPES:
        large = place.type != "cpu" or SHAPES[name].parameters >= LARGE
        theirs, folder = _random(SHAPES[name], as_dtype(dtype), place, large=large), None
    else:
        try:
            folder = find_folder(name)
        except CheckpointError as error:
            where = f"Shapes: {', '.join(SHAPES)}; or 'demo', a folder, a hub id. {error}"
            raise UnknownNameError("model", name, SHAPES, where=where) from error
        stored = "auto" if place.type != "cpu" else torch.float32
        with no_progress_bars():
            theirs = transformers.BloomForCausalLM.from_pretrained(
                folder, dtype=as_dtype(dtype) or stored
            )
        theirs = theirs.to(place)  # pyright: ignore[reportArgumentType]  # wrapped by transformers
    theirs.eval()
    ours = BloomForCausalLM.from_hf(theirs, share=True)
    theirs.generation_config = transformers.GenerationConfig(pad_token_id=SPECIAL - 1)
    ours.config.eos_token_id = None  # as theirs now: nothing ends a generation early
    return Pair(name=name, ours=ours, theirs=theirs, folder=folder)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without the bars that transformers shows while it loads."""
    settings = transformers.utils.logging
    shown = settings.is_progress_bar_enabled()
    settings.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            settings.enable_progress_bar()


def machine_line(pair: Pair) -> str:
    """Where and on what the rows were measured."""
    device = pair.ours.device
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    place = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{_processor()}, {cores} cores, {torch.get_num_threads()} threads"
    )
    if hasattr(os, "getloadavg"):
        place += f", load {os.getloadavg()[0]:.1f}"  # of other programs too: it shows in the spread
    dtype = str(pair.ours.dtype).removeprefix("torch.")
    return (
        f"{pair.name} {dtype} ({shape_line(pair.sizes)}); {place}; bloomlab "
        f"{bloomlab.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}; logits differ by {pair.disagreement():.1e} of the largest"
    )


@torch.no_grad()
def _random(sizes: Sizes, dtype: torch.dtype | None, device: torch.device, *, large: bool) -> Any:
    """A shape's model of transformers, N(0, 0.02) weights; built without drawing them all."""
    config = transformers.BloomConfig(
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        n_layer=sizes.n_layer,
        n_head=sizes.n_head,
    )
    with torch.device("meta"):
        model: Any = transformers.BloomForCausalLM(config)
    wanted = dtype or (torch.bfloat16 if large else torch.float32)
    model = model.to(wanted).to_empty(device=device)
    model.tie_weights()  # to_empty cut the tie
    source = torch.Generator().manual_seed(0)
    drawn = (torch.randn(DRAWN, generator=source) * 0.02).to(device, wanted)
    for name, value in model.named_parameters():
        _fill(value, drawn)
        if value.ndim == 1 and name.endswith("weight"):
            value.add_(1)
    return model


def _fill(value: Float[Tensor, "..."], drawn: Float[Tensor, " drawn"]) -> None:
    flat = value.view(-1)
    whole = len(flat) // len(drawn) * len(drawn)
    flat[:whole].view(-1, len(drawn)).copy_(drawn)
    flat[whole:].copy_(drawn[: len(flat) - whole])


def _processor(table: Path = Path("/proc/cpuinfo")) -> str:
    lines = table.read_text().splitlines() if table.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
