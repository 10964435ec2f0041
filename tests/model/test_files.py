"""Checkpoint files: mapped when read, replaced whole when written, refused whole when damaged."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import bloomlab as bl
from bloomlab.errors import CheckpointError
from tests.folders import IDS, INDEX, SINGLE, assert_same_weights, contents, refused
from tests.tiny import make_hf

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, which only Linux has")


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def mapped_from(folder, model):
    """Which of a model's parameters lie in pages that map a file of this folder."""
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [
        tuple(int(end, 16) for end in line[0].split("-"))
        for line in lines
        if len(line) == 6 and line[5].startswith(str(folder))
    ]
    return {
        name: any(a <= value.data_ptr() and value.data_ptr() + value.nbytes <= b for a, b in spans)
        for name, value in model.named_parameters()
    }


def copied_from(folder):
    """Bytes of the pages mapping files of this folder that this process has copied."""
    copied, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = str(folder) in line
        elif inside and line.startswith("Anonymous:"):
            copied += int(line.split()[1]) * 1024
    return copied


@linux
@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_a_loaded_model_maps_its_files(layout, request):
    folder = request.getfixturevalue(layout)
    assert all(mapped_from(folder, bl.BloomForCausalLM.from_pretrained(folder)).values())
    cast = bl.BloomForCausalLM.from_pretrained(folder, dtype="bfloat16")
    assert not any(mapped_from(folder, cast).values())  # the proof can fail


@linux
def test_loading_and_running_copy_no_page(tmp_path):
    config = bl.BloomConfig(vocab_size=20_000, hidden_size=256, n_layer=2, n_head=8)
    bl.BloomForCausalLM(config).save_pretrained(tmp_path)
    loaded = bl.BloomForCausalLM.from_pretrained(tmp_path)
    logits(loaded)
    assert copied_from(tmp_path) == 0
    with torch.no_grad():
        loaded.embed.weight.add_(1)
    assert copied_from(tmp_path) >= loaded.embed.weight.nbytes  # the proof can fail


def test_editing_a_loaded_model_does_not_change_its_files(single):
    before = contents(single)
    ours = bl.BloomForCausalLM.from_pretrained(single)
    with torch.no_grad():
        for value in ours.parameters():
            value.fill_(7)
    assert contents(single) == before


@pytest.mark.parametrize("max_shard_size", ["5GB", "50KB"])
@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_saving_into_the_folder_a_model_is_mapped_from_is_safe(
    layout, max_shard_size, request, theirs
):
    folder = request.getfixturevalue(layout)
    others = {f.name for f in folder.iterdir() if not f.name.startswith("model")}
    mine = {"README.md", "model-ema.safetensors", "model.safetensors.backup"}
    for name in mine:
        (folder / name).write_text("mine")
    ours = bl.BloomForCausalLM.from_pretrained(folder)
    expected = logits(ours).clone()
    ours.save_pretrained(folder, max_shard_size=max_shard_size)
    assert_same_weights(ours, theirs)
    assert torch.equal(logits(ours), expected)
    assert torch.equal(logits(bl.BloomForCausalLM.from_pretrained(folder)), expected)
    assert_same_weights(ours, transformers.BloomForCausalLM.from_pretrained(folder))
    weights = {SINGLE}
    if max_shard_size == "50KB":
        weights = {INDEX, *json.loads((folder / INDEX).read_text())["weight_map"].values()}
    assert {f.name for f in folder.iterdir()} == others | mine | weights
    assert {(folder / name).read_text() for name in mine} == {"mine"}


class FullDisk:
    """A tokenizer that cannot be written."""

    def save_pretrained(self, folder):
        (Path(folder) / "tokenizer.json").write_text("half of")
        raise OSError("no space left on device")


@pytest.mark.parametrize("how", ["tokenizer", "shard size", "weights"])
def test_a_failing_save_leaves_the_old_checkpoint_as_it_was(how, sharded):
    before = contents(sharded)
    model = bl.BloomForCausalLM.from_hf(make_hf(seed=9))
    size = "5GB"
    if how == "tokenizer":
        model.tokenizer = FullDisk()
    elif how == "weights":
        model.blocks[1].to_empty(device="meta")
    else:
        size = "much"
    with pytest.raises((OSError, ValueError, NotImplementedError, RuntimeError)):
        model.save_pretrained(sharded, max_shard_size=size)
    assert contents(sharded) == before
    assert not [f for f in sharded.iterdir() if f.is_dir()]


def test_saving_to_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match=r"it is a file, expected a folder"):
        bl.BloomForCausalLM.from_hf(make_hf()).save_pretrained(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -100, -1])
@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_a_truncated_file_is_refused(layout, keep, request):
    folder = request.getfixturevalue(layout)
    file = sorted(folder.glob("*.safetensors"))[-1]
    file.write_bytes(file.read_bytes()[:keep])
    refused(folder, rf"{file.name} is truncated or no safetensors file .* Get it again")


def test_a_git_lfs_pointer_is_refused(single):
    (single / SINGLE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(single, "git-lfs")


def test_a_folder_with_no_weights_is_refused(single):
    (single / SINGLE).unlink()
    refused(single, r"no weights in .* expected model.safetensors")
    refused(single, r"no weights in .* or pytorch_model.bin", allow_pickle=True)


def test_a_folder_without_a_configuration_is_refused(single):
    (single / "config.json").unlink()
    refused(single, r"no config.json in .* Expected a folder")


def test_a_missing_shard_is_named(sharded):
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    refused(sharded, rf"{gone.name} is missing; the index lists it")


def test_a_shard_without_a_tensor_the_index_promises_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[1]
    tensors = load_file(shard)
    lost = sorted(tensors)[0]
    save_file({name: t.clone() for name, t in tensors.items() if name != lost}, shard)
    refused(sharded, rf"{shard.name} lacks 1 tensors .* such as '{lost}'")


@pytest.mark.parametrize(
    "shard", ["../evil.safetensors", "/evil.safetensors", "sub/evil.safetensors", "..", ".",
              "", "..\\evil.safetensors", 7, None, ["model.safetensors"], {}]
)  # fmt: skip
@pytest.mark.parametrize("kind", ["safetensors", "pickle"])
def test_a_shard_name_that_leaves_the_folder_is_refused(kind, shard, sharded):
    (sharded.parent / "evil.safetensors").write_bytes(b"")  # reading it would give another error
    (sharded / "sub").mkdir()
    index = json.loads((sharded / INDEX).read_text())
    index["weight_map"]["transformer.ln_f.bias"] = shard
    (sharded / INDEX).unlink()
    name = INDEX if kind == "safetensors" else "pytorch_model.bin.index.json"
    (sharded / name).write_text(json.dumps(index))
    refused(sharded, r"names the shard .* expected a plain file name", allow_pickle=True)


@pytest.mark.parametrize("index", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_an_index_that_lists_nothing_is_refused(index, sharded):
    (sharded / INDEX).write_text(index)
    refused(sharded, r"no readable JSON|expected a JSON object|has no weight_map")


@pytest.mark.parametrize("name", ["config.json", SINGLE])
def test_a_folder_where_a_file_should_be_is_refused(name, single):
    (single / name).unlink()
    (single / name).mkdir()
    refused(single, name)
