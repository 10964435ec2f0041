"""Collected activations are those of a forward, padded or not, kept or not, killed or not."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from bloomlab.errors import InputError, ResultsError, UnknownNameError
from bloomlab.experiments import activations
from bloomlab.experiments.activations import collect
from bloomlab.experiments.sites import find_points, last_layer
from bloomlab.experiments.spans import Spans
from bloomlab.model.prune import prune_heads
from tests.tiny import pair, tokens

SITES = ["resid_pre", "resid_mid", "resid_post", "z", "mlp_post", "mlp_out", "embed"]
CHILD = """
import os, sys
import torch
from bloomlab.experiments import activations
from tests.experiments.test_activations import BATCH, MASK
from tests.tiny import pair

torch.set_num_threads(1)
forward = activations._forward
count = 0

def slow(*arguments):
    global count
    count += 1
    if count == 3:
        print("ready", flush=True)
        sys.stdin.read()
    return forward(*arguments)

activations._forward = slow
model = pair(dtype=torch.float64)[1]
activations.collect(model, BATCH, ["resid_post", "z"], MASK, folder=sys.argv[1], rows=1)
"""
LENGTHS = (5, 9, 3, 7)
BATCH = tokens(4, 9)
MASK = (torch.arange(9) < torch.tensor(LENGTHS)[:, None]).long()


@pytest.fixture(scope="module")
def model():
    return pair(dtype=torch.float64)[1]


def left(batch, mask):
    """The same texts, padded on the left."""
    rows = [row[seen > 0] for row, seen in zip(batch, mask, strict=True)]
    ids = [torch.cat([torch.full((batch.shape[1] - len(row),), 3), row]) for row in rows]
    return torch.stack(ids), mask.flip(1)


def same(one, other):
    for point in one.points:
        torch.testing.assert_close(one[point.name], other[point.name], rtol=0, atol=1e-10)


def test_activations_are_those_of_the_cache_text_by_text(model):
    found = collect(model, BATCH, SITES, MASK, rows=3)
    assert len(found) == sum(LENGTHS)
    assert len(found.points) == 13
    start = 0
    for row, length in enumerate(LENGTHS):
        _, cache = model.run_with_cache(BATCH[row : row + 1, :length])
        for point in found.points:
            ours = found[point.name][start : start + length]
            torch.testing.assert_close(ours, cache[point.name][0], rtol=0, atol=1e-10)
        start += length


@pytest.mark.parametrize("pool", ["last", "first", "mean"])
def test_padding_changes_nothing(model, pool):
    ids, mask = left(BATCH, MASK)
    right = collect(model, BATCH, SITES, MASK, pool=pool, spans=Spans.of_texts(MASK > 0))
    same(right, collect(model, ids, SITES, mask, pool=pool, spans=Spans.of_texts(mask > 0)))
    for row, length in enumerate(LENGTHS):
        alone = BATCH[row : row + 1, :length]
        one = Spans.of_texts(torch.ones_like(alone) > 0)
        values = collect(model, alone, "z", pool=pool, spans=one)["blocks.1.attn.hook_z"]
        kept = right["blocks.1.attn.hook_z"][row]
        torch.testing.assert_close(values[0], kept, rtol=0, atol=1e-10)


def test_spans_are_pooled_by_hand(model):
    spans = Spans(
        text=torch.tensor([1, 1, 3]), first=torch.tensor([2, 0, 4]), last=torch.tensor([5, 8, 4])
    )
    _, cache = model.run_with_cache(BATCH, attention_mask=MASK)
    values = cache["resid_post", 0]
    hand = {
        "mean": [values[1, 2:6].mean(0), values[1].mean(0), values[3, 4]],
        "last": [values[1, 5], values[1, 8], values[3, 4]],
        "first": [values[1, 2], values[1, 0], values[3, 4]],
    }
    for pool, wanted in hand.items():
        found = collect(model, BATCH, "resid_post", MASK, spans=spans, pool=pool, rows=2)
        ours = found["blocks.0.hook_resid_post"]
        torch.testing.assert_close(ours, torch.stack(wanted), rtol=0, atol=1e-10)
    assert found.layers("resid_post").shape == (2, 3, 48)


def test_a_mean_leaves_out_holes_in_the_mask(model):
    mask = torch.ones_like(BATCH)
    mask[:, 4] = 0
    _, cache = model.run_with_cache(BATCH, attention_mask=mask)
    hand = cache["resid_post", 1][:, [0, 1, 2, 3, 5, 6, 7, 8]].mean(1)
    found = collect(model, BATCH, "resid_post", mask, spans=Spans.of_texts(mask > 0), pool="mean")
    torch.testing.assert_close(found["blocks.1.hook_resid_post"], hand, rtol=0, atol=1e-10)


def test_half_precision_is_averaged_in_float32():
    model = pair(dtype=torch.bfloat16)[1]
    _, cache = model.run_with_cache(BATCH)
    whole = Spans.of_texts(torch.ones_like(BATCH) > 0)
    found = collect(model, BATCH, "resid_post", spans=whole, pool="mean")
    ours = found["blocks.1.hook_resid_post"]
    assert ours.dtype == torch.float32
    hand = cache["resid_post", 1].float().mean(1)
    torch.testing.assert_close(ours, hand, rtol=0, atol=0.02 * hand.abs().max().item())


def test_layers_that_nobody_asks_for_are_not_run(model):
    assert last_layer(model, find_points(model, "embed")) == 0
    assert last_layer(model, find_points(model, "blocks.0.hook_resid_post")) == 1
    assert last_layer(model, find_points(model, "z")) is None
    assert last_layer(model, find_points(model, ["embed", "ln_final.hook_normalized"])) is None
    ran = []
    with model.hooks(fwd_hooks=[("blocks.1.hook_resid_pre", lambda value, hook: ran.append(1))]):
        collect(model, BATCH, "blocks.0.attn.hook_z")
        assert not ran
        collect(model, BATCH, "blocks.1.attn.hook_z")
        assert ran


def test_heads_of_a_pruned_model_are_collected(model):
    pruned = prune_heads(model, {0: [1, 4]})
    found = collect(pruned, BATCH, "z", MASK)
    assert found["blocks.0.attn.hook_z"].shape == (24, 4, 8)
    with pytest.raises(InputError, match="layers differ in width at 'z'"):
        found.layers("z")


def test_a_folder_holds_the_same_and_is_not_computed_twice(model, tmp_path, monkeypatch):
    plain = collect(model, BATCH, SITES, MASK)
    stored = collect(model, BATCH, SITES, MASK, folder=tmp_path, rows=3)
    same(plain, stored)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    monkeypatch.setattr(activations, "_forward", None)
    same(plain, collect(model, BATCH, SITES, MASK, folder=tmp_path, rows=3))


def test_a_shard_that_is_broken_or_lost_is_computed_again(model, tmp_path, monkeypatch):
    whole = collect(model, BATCH, "z", MASK, folder=tmp_path, rows=1)
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[1].write_bytes(shards[1].read_bytes()[:-40])
    shards[3].unlink()
    ran, forward = [], activations._forward

    def counted(*arguments):
        ran.append(arguments[-1].tolist())
        return forward(*arguments)

    monkeypatch.setattr(activations, "_forward", counted)
    same(whole, collect(model, BATCH, "z", MASK, folder=tmp_path, rows=1))
    assert ran == [[3], [2]]  # the texts in the order of their lengths: 1, 3, 0, 2


@pytest.mark.slow
def test_a_killed_pass_goes_on(model, tmp_path, monkeypatch):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
    ran, forward = [], activations._forward

    def counted(*arguments):
        ran.append(1)
        return forward(*arguments)

    monkeypatch.setattr(activations, "_forward", counted)
    found = collect(model, BATCH, ["resid_post", "z"], MASK, folder=tmp_path, rows=1)
    assert len(ran) == 2
    same(found, collect(model, BATCH, ["resid_post", "z"], MASK))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"tokens": tokens(4, 9, seed=3)}, "data.texts.sha256"),
        ({"sites": "resid_post"}, "arguments.sites"),
        ({"pool": "mean"}, "arguments.pool"),
        ({"spans": Spans.of_texts(MASK > 0)}, "data.spans"),
        ({"model": pair(seed=5, dtype=torch.float64)[1]}, "model.sha256"),
    ],
)
def test_a_folder_of_other_activations_is_refused(model, tmp_path, changed, said):
    options = {"model": model, "tokens": BATCH, "sites": "z", "attention_mask": MASK}
    collect(**options, folder=tmp_path)
    with pytest.raises(ResultsError, match=said):
        collect(**(options | changed), folder=tmp_path)


def spans(text, first, last):
    return Spans(text=torch.tensor(text), first=torch.tensor(first), last=torch.tensor(last))


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"sites": "resid_pots"}, UnknownNameError, "no site 'resid_pots'.*'resid_post'"),
        ({"sites": []}, InputError, "no site was named"),
        ({"sites": "pattern"}, InputError, "'pattern' has no vector"),
        ({"pool": "max"}, UnknownNameError, "no pooling 'max'"),
        ({"rows": 0}, InputError, "rows is 0"),
        ({"spans": spans([2], [1], [4])}, InputError, "span 0 of text 2 runs from column 1 to 4"),
        ({"spans": spans([1], [1], [9])}, InputError, "expected attended columns of 0 ... 8"),
        ({"spans": spans([4], [1], [2])}, InputError, "there are 4"),
        ({"spans": spans([1, 0], [1, 1], [2, 2])}, InputError, "not in the order of their texts"),
    ],
)
def test_bad_input_is_refused(model, asked, error, said):
    with pytest.raises(error, match=said):
        collect(model, BATCH, **({"attention_mask": MASK} | asked))
    with pytest.raises(UnknownNameError, match="no collected hook 'z'"):
        collect(model, BATCH, "z")["z"]
