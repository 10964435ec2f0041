"""From a folder to a model."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers

from bloomlab.bench.models import Pair, no_progress_bars
from bloomlab.bench.plan import Plan, timed
from bloomlab.bench.timing import Row
from bloomlab.model.heads import BloomForCausalLM
from bloomlab.model.load import load

FIRST = 16  # tokens of the forward after loading


def loading(pair: Pair, plan: Plan) -> Iterator[Row]:
    """From a folder to a model, and on to the first logits; the files are in the page cache."""
    with tempfile.TemporaryDirectory() as place:
        folder = pair.folder or Path(place)
        if pair.folder is None:
            pair.ours.save_pretrained(folder)
        has_tokenizer = (folder / "tokenizer.json").exists()
        wanted: dict[str, Any] = {"dtype": pair.ours.dtype}
        device = pair.ours.device

        def ours() -> Any:
            read = load if has_tokenizer else BloomForCausalLM.from_pretrained
            return read(folder, device=device, **wanted)

        def theirs() -> Any:
            if has_tokenizer:
                transformers.AutoTokenizer.from_pretrained(folder)
            return transformers.BloomForCausalLM.from_pretrained(folder, **wanted).to(device)

        ids, last = pair.ids(1, FIRST), {"logits_to_keep": 1}
        both = [lambda: ours()(ids, **last), lambda: theirs()(ids, **last)]
        with no_progress_bars():
            for case, calls in (("load", [ours, theirs]), ("load and first logits", both)):
                mine, other = timed(calls, plan)
                yield Row(case=case, peer="transformers", ours=mine, theirs=other)
