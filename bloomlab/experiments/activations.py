"""Activations of many texts at many sites, from one pass, in memory or in a folder."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.dataset import Dataset, dataset
from bloomlab.experiments.results import Results, opened
from bloomlab.experiments.sites import Point, find_points, last_layer
from bloomlab.experiments.spans import Pooling, Spans
from bloomlab.experiments.sweep import rows_that_fit

KEY = ("first",)
EXAMPLES = "examples"  # in a shard: numbers of the examples it holds


@dataclass(frozen=True, kw_only=True)
class Activations:
    """What `collect` saw.

    Attributes:
        points: where.
        spans: of which tokens.
        shards: the parts, each a file or a dict by name of the hook; both hold `EXAMPLES` too.
    """

    points: list[Point]
    spans: Spans
    shards: list[Any]

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.spans)

    def __getitem__(self, name: str) -> Float[Tensor, " example *features"]:
        """The vectors at a hook: [example d], or [example head d_head]; read when asked for.

        Raises:
            UnknownNameError: no such hook was collected.
        """
        if name not in (known := [point.name for point in self.points]):
            raise UnknownNameError("collected hook", name, known)
        found: Tensor | None = None
        for shard in self.shards:
            examples, values = _read(shard, EXAMPLES), _read(shard, name)
            if found is None:
                found = values.new_empty(len(self), *values.shape[1:])
            found[examples] = values
        assert found is not None
        return found

    def layers(self, site: str) -> Float[Tensor, "layer example *features"]:
        """The vectors of a site in all layers; layers of a pruned model may differ in width.

        Raises:
            UnknownNameError: no such site was collected.
            InputError: layers that differ in width.
        """
        names = [point.name for point in self.points if point.site == site]
        if not names:
            raise UnknownNameError("collected site", site, {point.site for point in self.points})
        values = [self[name] for name in names]
        if len({value.shape for value in values}) > 1:
            raise InputError(f"layers differ in width at {site!r}. Take them one by one: [name].")
        return torch.stack(values)


@torch.no_grad()
def collect(
    model: Any,
    tokens: Any,
    sites: Any = "resid_post",
    attention_mask: Any = None,
    *,
    spans: Any = None,
    pool: str = "last",
    folder: str | Path | None = None,
    rows: int | None = None,
    progress: bool = True,
) -> Activations:
    """Vectors of tokens, words or texts at sites of all layers, in float32 at least, on the CPU.

    One pass; texts of like length go together, and no further than the deepest site. A text gives
    the same vectors alone and in any padded batch.

    Args:
        model: a BLOOM of any class, whole or pruned.
        tokens: texts, ids [batch pos] or a dict with `attention_mask`.
        sites: names of sites or hooks; see `find_points`.
        attention_mask: [batch pos], 0 for padding.
        spans: what is wanted, in the order of the result; None: every attended token. Whole texts
            are `Spans.of_texts(attended)`.
        pool: what a span's vector is: of its "last" or "first" token, or the "mean".
        folder: where shards (safetensors) are kept, so that what does not fit into memory is
            read hook by hook. A killed pass goes on: whole shards are not computed again.
        rows: texts in a forward and in a shard; None: by free memory.
        progress: show a bar while it takes long.

    Raises:
        InputError: no data, no spans, spans that are not in the texts, rows below 1.
        UnknownNameError: a site that the model lacks, or no such pooling.
        ResultsError: the folder holds activations of another model, data, sites or spans.
    """
    data = dataset(model, tokens, attention_mask)
    points = find_points(model, sites)
    wanted = Spans.of_tokens(data.attended) if spans is None else spans
    if not isinstance(wanted, Spans):
        raise InputError(
            f"spans is {wanted!r:.60}, expected Spans, such as `label_examples(...).spans`."
        )
    wanted.check(data)
    if rows is not None and rows < 1:
        raise InputError(f"rows is {rows}, expected 1 or more.")
    ends = torch.stack([wanted.text, wanted.first, wanted.last], 1)
    parts = {"texts": data, "spans": Dataset(tokens=ends, mask=None)}
    arguments = {"sites": [point.name for point in points], "pool": pool, "rows": rows}
    order = _by_length(data)
    order = order[torch.isin(order, wanted.text)]
    shards: list[Any] = []
    with opened(folder, model=model, data=parts, arguments=arguments, key=KEY) as store:
        size = rows or rows_that_fit(model, data)
        if store is not None:
            size = store.settled("rows", size)
        with tqdm(total=len(order), unit="text", delay=2, disable=not progress) as bar:
            for first in range(0, len(order), size):
                some = order[first : first + size]

                def compute(some: Tensor = some) -> dict[str, Tensor]:
                    return _forward(model, data, points, wanted, pool, some)

                made = compute() if store is None else _stored(store, first, points, compute)
                shards.append(made)
                bar.update(len(some))
    return Activations(points=points, spans=wanted, shards=shards)


def _by_length(data: Dataset) -> Int[Tensor, " batch"]:
    whole = Spans.of_texts(data.attended)
    return (whole.last - whole.first).argsort(descending=True, stable=True)


def _forward(
    model: Any, data: Dataset, points: Sequence[Point], spans: Spans, pool: str, rows: Tensor
) -> dict[str, Tensor]:
    """The vectors of the examples of some texts, by name of the hook."""
    some = rows.to(data.tokens.device)
    tokens, attended = data.tokens[some], data.attended[some]
    used = attended.any(0).nonzero()[:, 0]
    start, stop = int(used[0]), int(used[-1]) + 1
    tokens, attended = tokens[:, start:stop], attended[:, start:stop]
    examples, here = spans.of_rows(rows)
    here = Spans(text=here.text, first=here.first - start, last=here.last - start)
    pooling = Pooling.of(here, attended, pool)
    seen = {EXAMPLES: examples}
    mask = None if bool(attended.all()) else attended.long()
    hooks = [(point.name, _keep(seen, pooling)) for point in points]
    with model.hooks(fwd_hooks=hooks):
        deepest = last_layer(model, points)
        model.backbone(tokens, attention_mask=mask, use_cache=False, stop_at_layer=deepest)
    return seen


def _keep(seen: dict[str, Tensor], pooling: Pooling) -> Callable[..., None]:
    def keep(value: Tensor, hook: Any) -> None:
        seen[hook.name] = pooling(value)

    keep.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
    return keep


def _stored(
    store: Results, first: int, points: Sequence[Point], compute: Callable[[], dict[str, Tensor]]
) -> Path:
    """The file of a shard, written if it is not there whole."""
    file = store.folder / f"shard-{first:08d}.safetensors"
    if not (store.done(first) and _whole(file, points)):
        scratch = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        save_file({name: value.contiguous() for name, value in compute().items()}, scratch)
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        os.replace(scratch, file)
        if not store.done(first):
            store.append({"first": first, "file": file.name})
    return file


def _whole(file: Path, points: Sequence[Point]) -> bool:
    try:
        with safe_open(file, framework="pt") as shard:
            return {point.name for point in points} | {EXAMPLES} == set(shard.keys())
    except (OSError, SafetensorError):
        return False


def _read(shard: Any, name: str) -> Tensor:
    if isinstance(shard, dict):
        return shard[name]
    with safe_open(shard, framework="pt") as file:
        return file.get_tensor(name)
