"""A trace in a file comes back the same, and bad files and arguments are refused in words."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import bloomlab as bl
from bloomlab.errors import (
    CheckpointError,
    InputError,
    UnknownArgumentError,
    UnknownNameError,
)
from bloomlab.trace import Recorder
from tests.test_trace import ALL, HEADS, LAYERS, N, padding
from tests.test_trace_edits import EDITS
from tests.test_trace_generation import advance, in_steps
from tests.tiny import pair, tokens


def generated(ours):
    """A trace with everything in it: padding, an edit, a masked past, rows that repeat."""
    ids, mask = tokens(2, N), padding("left")
    recorder, past = Recorder(ours), bl.KVCache()
    advance(ours, recorder, ids[:, :7], past, mask[:, :7])
    advance(ours, recorder, ids[:, 7:8], past, mask[:, :8], hooks=EDITS["scores"])
    recorder.gather([1, 0, 1])
    past, ids, mask = past.gather([1, 0, 1]), ids[[1, 0, 1]], mask[[1, 0, 1]].clone()
    mask[0, 2] = 0
    for column in range(8, N):
        advance(ours, recorder, ids[:, column : column + 1], past, mask[:, : column + 1])
    return recorder.trace


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [generated, lambda ours: in_steps(ours, tokens(1, N), [7, 5])])
def test_a_loaded_trace_is_the_saved_one(tmp_path, make, dtype):
    _, ours = pair(dtype=dtype)
    trace = make(ours)
    trace.save(tmp_path / "run.safetensors")
    loaded = bl.Trace.load(tmp_path / "run.safetensors")
    for name in ("tokens", "attention_mask", "positions"):
        assert torch.equal(getattr(loaded, name), getattr(trace, name))
    for layer, head in ALL:
        for name in ("pattern", "scores", "content", "alibi", "value_weighted"):
            got, expected = getattr(loaded, name)(layer, head), getattr(trace, name)(layer, head)
            assert torch.equal(got, expected)
            assert got.dtype == expected.dtype
    for layer in range(LAYERS + 1):
        assert torch.equal(loaded.resid(layer), trace.resid(layer))
    assert torch.equal(loaded.thumbnails(4), trace.thumbnails(4))
    assert loaded.crop(5).pattern(0, 0).shape[1:] == (5, 5)
    assert [f.name for f in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_file_holds_no_more_than_its_trace(tmp_path):
    _, ours = pair()
    trace = ours.trace(tokens(1, 200))
    trace.crop(50).save(tmp_path / "run.safetensors")
    assert (tmp_path / "run.safetensors").stat().st_size < 0.3 * trace.nbytes


def test_an_edited_run_on_smaller_numbers_stays_finite(tmp_path):
    _, ours = pair()
    mask = padding("left")
    trace = ours.trace(tokens(2, N), attention_mask=mask, fwd_hooks=EDITS["scores"])
    trace.to(torch.float16).save(tmp_path / "run.safetensors")
    loaded = bl.Trace.load(tmp_path / "run.safetensors")
    assert torch.allclose(loaded.pattern(1, 3), trace.pattern(1, 3), atol=0.05)
    assert loaded.pattern(1, 3).isfinite().all()


def damage(path, kind):
    if kind == "missing":
        return path.with_name("other.safetensors")
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "text":
        path.write_text("not a trace at all, only words")
    elif kind == "foreign":
        save_file({"x": torch.ones(2)}, path)
    else:
        tensors = load_file(path)
        names = [name for name in tensors if name.startswith("0/")]
        rules = {
            "mode": "hf",
            "rounded": False,
            "dtype": "float32",
            "names": [name.removeprefix("0/") for name in names],
        }
        header = {"version": 1, "n_layer": LAYERS, "parts": [rules]}
        if kind == "newer":
            header["version"] = 2
        if kind == "mode":
            rules["mode"] = "other"
        if kind == "dtype":
            rules["dtype"] = "load"
        if kind == "tensor":
            del tensors["0/q.0"]
        if kind == "listing":
            rules["names"].remove("valid")
        if kind == "shape":
            tensors["0/k.1"] = tensors["0/k.1"][:, :3].clone()
        if kind == "empty":
            header["parts"] = []
        text = "{" if kind == "json" else json.dumps(header)
        save_file(tensors, path, {"format": "bloomlab trace", "trace": text})
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("truncated", "truncated or no safetensors file"),
        ("text", "truncated or no safetensors file"),
        ("foreign", "is no trace; expected a file that trace.save"),
        ("json", "header is damaged"),
        ("newer", "version 2.*reads version 1"),
        ("mode", "rules this bloomlab does not know"),
        ("dtype", "header is damaged"),
        ("empty", "rules this bloomlab does not know"),
        ("tensor", "lacks '0/q.0'"),
        ("listing", "does not list 'valid'"),
        ("shape", r"k.1 does not fit its tokens \[1, 12\]"),
    ],
)
def test_bad_files_are_refused(tmp_path, kind, message):
    _, ours = pair()
    ours.trace(tokens(1, N)).save(tmp_path / "run.safetensors")
    path = damage(tmp_path / "run.safetensors", kind)
    with pytest.raises(CheckpointError, match=message):
        bl.Trace.load(path)


def test_a_trace_cannot_be_saved_where_there_is_no_folder(tmp_path):
    _, ours = pair()
    with pytest.raises(CheckpointError, match="cannot save the trace"):
        ours.trace(tokens(1, N)).save(tmp_path / "nowhere" / "run.safetensors")


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda t: t.pattern(0, HEADS), UnknownNameError, "head of layer 0.* 0 to 5, or from -6"),
        (lambda t: t.pattern(0, -HEADS - 1), UnknownNameError, "no head"),
        (lambda t: t.pattern(0, "1"), UnknownNameError, "no head"),
        (lambda t: t.pattern(LAYERS, 0), UnknownNameError, "no layer 2.* 0 to 1, or from -2"),
        (lambda t: t.q(True), UnknownNameError, "no layer True"),
        (lambda t: t.resid(LAYERS + 1), UnknownNameError, "no layer 3"),
        (lambda t: t.scores(0, 0, N), InputError, "columns run from 0 to 11"),
        (lambda t: t.scores(0, 0, [0.5]), InputError, "whole numbers"),
        (lambda t: t.scores(0, 0, "last"), InputError, "whole numbers"),
        (lambda t: t.scores(0, 0, torch.ones(N).bool()), InputError, "whole numbers"),
        (lambda t: t.scores(0, 0, []), InputError, "none of the 12 columns"),
        (lambda t: t.thumbnails(0), InputError, "size is 0"),
        (lambda t: t.crop(0), InputError, "expected 1 to 12"),
        (lambda t: t.crop(N + 1), InputError, "expected 1 to 12"),
        (lambda t: t.gather([2]), InputError, "rows run from 0 to 1"),
        (lambda t: t.gather([]), InputError, "at least one"),
        (lambda t: t.gather(torch.ones(2).bool()), InputError, "for a mask"),
        (lambda t: t.gather("all"), InputError, "numbers of rows"),
        (lambda t: t.to(dtype=torch.int8), InputError, "dtype is torch.int8, expected"),
    ],
)
def test_impossible_questions_are_refused(ask, error, message):
    _, ours = pair()
    trace = ours.trace(tokens(2, N))
    with pytest.raises(error, match=message):
        ask(trace)


def test_what_was_not_kept_is_asked_for_in_vain_and_says_how_to_keep_it():
    _, ours = pair()
    trace = ours.trace(tokens(2, N), keep=("k", "q"), layers=1)
    assert trace.pattern(1, 0).shape == (2, N, N)
    with pytest.raises(InputError, match=r"v was not kept, only q, k.*keep=\('q', 'k', 'v'\)"):
        trace.value_weighted(1, 0)
    with pytest.raises(InputError, match="resid was not kept"):
        trace.resid(LAYERS)
    with pytest.raises(InputError, match=r"layer 0 was not kept, only 1.*layers=\[0"):
        trace.pattern(0, 0)
    with pytest.raises(InputError, match="layer 1 was not kept, only 0"):
        ours.trace(tokens(2, N), layers=[0]).resid(LAYERS)
    with pytest.raises(InputError, match="q was not kept"):
        ours.trace(tokens(2, N), keep="resid").thumbnails()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"keep": "z"}, UnknownNameError, "no thing to keep 'z'.*q, k, v, resid"),
        ({"keep": ["resids"]}, UnknownNameError, "mean 'resid'"),
        ({"keep": []}, InputError, "keep is empty"),
        ({"keep": 3}, UnknownNameError, "no thing to keep 3"),
        ({"layers": [LAYERS]}, UnknownNameError, "no layer 2"),
        ({"layers": []}, InputError, "layers is empty"),
        ({"dtype": torch.int64}, InputError, "dtype is torch.int64"),
        ({"dtype": "float61"}, InputError, "dtype is 'float61'"),
        ({"atention_mask": None}, UnknownArgumentError, "mean 'attention_mask'"),
        ({"past_key_values": None}, UnknownArgumentError, "unknown argument 'past_key_values'"),
        ({"fwd_hooks": [("blocks.0.hook_x", print)]}, UnknownNameError, "blocks.0.hook_x"),
        ({"attention_mask": torch.ones(2, 3)}, InputError, "attention_mask has shape"),
    ],
)
def test_bad_arguments_are_refused(options, error, message):
    _, ours = pair()
    with pytest.raises(error, match=message):
        ours.trace(tokens(2, N), **options)
    assert not any(point._forward_hooks for point in ours.hook_dict.values())
