"""Pruned models on disk: the same bits here, the same outputs in stock transformers."""

import json

import pytest
import torch
import transformers

import bloomlab as bl
from bloomlab.errors import CheckpointError, ConfigError, UnsupportedError
from bloomlab.model.alibi import alibi_slopes
from bloomlab.model.inflate import whole
from bloomlab.model.prune import prune_heads
from bloomlab.model.prune_parts import prune_layers, prune_neurons
from tests.experiments.naive import z_edited, zeroed
from tests.folders import PREFIX, class_of, out, refused, rewrite
from tests.tiny import CLASSES, distance_in_eps, pair, tokens

IDS = tokens(3, 9)
GONE = {0: [1, 4], 1: range(6), 2: [0]}
SLOPES = PREFIX + "h.{}.self_attention.alibi_slopes"


@pytest.fixture
def pruned():
    _, ours = pair(n_layer=3)
    return prune_heads(ours, GONE)


@pytest.fixture
def folder(pruned, tmp_path):
    pruned.save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("max_shard_size", ["5GB", "30KB"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_it_has_the_same_bits(dtype, max_shard_size, tmp_path):
    theirs, ours = pair(n_layer=3, dtype=dtype)
    pruned = prune_neurons(prune_heads(ours, GONE), {0: range(192), 1: [0, 7]})
    pruned.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    loaded = bl.BloomForCausalLM.from_pretrained(tmp_path)
    assert loaded.kept_heads == pruned.kept_heads == {0: [0, 2, 3, 5], 1: [], 2: [1, 2, 3, 4, 5]}
    assert loaded.dtype == dtype
    assert torch.equal(out(loaded), out(pruned))
    found = dict(loaded.named_parameters())
    assert all(torch.equal(found[n], value) for n, value in pruned.named_parameters())
    for ours_, theirs_ in zip(loaded.blocks, pruned.blocks, strict=True):
        assert torch.equal(ours_.attn.slopes, theirs_.attn.slopes)
    loaded.save_pretrained(tmp_path)  # over the files that it maps
    assert torch.equal(out(bl.BloomForCausalLM.from_pretrained(tmp_path)), out(pruned))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gone", [GONE, dict.fromkeys(range(3), range(6))])
def test_inflated_it_runs_in_stock_transformers(gone, dtype, tmp_path):
    theirs, ours = pair(n_layer=3, dtype=dtype)
    pruned = prune_heads(ours, gone)
    pruned.to_hf().save_pretrained(tmp_path / "hf")
    whole(pruned).save_pretrained(tmp_path / "ours")
    options = {"max_new_tokens": 10, "do_sample": False}
    heads = [(layer, head) for layer, some in gone.items() for head in some]
    with z_edited(theirs, zeroed(heads)), torch.no_grad():
        expected, said = theirs(IDS).logits, theirs.generate(IDS, **options)
    limit = 12 if dtype == torch.bfloat16 else 200
    for name in ("hf", "ours"):
        stock, report = transformers.BloomForCausalLM.from_pretrained(
            tmp_path / name, output_loading_info=True, dtype=dtype
        )
        assert not any(report.values())
        assert "kept_heads" not in json.loads((tmp_path / name / "config.json").read_text())
        with torch.no_grad():
            assert distance_in_eps(stock(IDS).logits, expected) < limit
            assert distance_in_eps(stock(IDS).logits, pruned(IDS).logits) < limit
        assert torch.equal(stock.generate(IDS, **options), said)
    assert torch.equal(pruned.generate(IDS, **options), said)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_goes_to_transformers(kind):
    _, ours = pair(kind)
    pruned = prune_neurons(prune_heads(ours, {0: range(6), 1: [2]}), {1: range(100)})
    theirs = pruned.train().to_hf()
    assert type(theirs) is class_of(kind)[1]
    assert theirs.training
    assert distance_in_eps(out(pruned.eval()), out(theirs.eval())) < 200
    assert theirs.config.n_head == 6


def test_a_model_that_was_never_pruned_inflates_to_a_copy():
    _, ours = pair()
    copy = whole(ours)
    assert torch.equal(out(copy), out(ours))
    assert copy.embed.weight is not ours.embed.weight


def test_edited_slopes_of_a_pruned_model_are_kept(pruned, tmp_path):
    pruned.blocks[2].attn.slopes[3] = 0.7
    pruned.save_pretrained(tmp_path)
    loaded = bl.BloomForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.blocks[2].attn.slopes, pruned.blocks[2].attn.slopes)
    assert torch.equal(out(loaded), out(pruned))
    again = prune_heads(loaded, {2: [3]})
    assert again.blocks[2].attn.slopes[2] == torch.tensor(0.7)  # of head 4, entry 3 before
    deeper = prune_layers(again, 0)
    deeper.save_pretrained(tmp_path)  # its last layer is now another number
    assert torch.equal(out(bl.BloomForCausalLM.from_pretrained(tmp_path)), out(deeper))
    with pytest.raises(UnsupportedError, match="ALiBi slopes"):
        loaded.to_hf()
    prune_heads(loaded, {2: [4]}).to_hf()  # without that head it can go


def test_trained_slopes_follow_too(tmp_path):
    _, ours = pair()
    attn = ours.blocks[1].attn
    attn.slopes = torch.nn.Parameter(attn.slopes * 1.5)
    pruned = prune_heads(ours, {1: [0, 3]})
    new = pruned.blocks[1].attn.slopes
    assert isinstance(new, torch.nn.Parameter)
    assert torch.equal(new, attn.slopes[[1, 2, 4, 5]])
    pruned.save_pretrained(tmp_path)
    loaded = bl.BloomForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded.blocks[1].attn.slopes, new)


def test_missing_slopes_are_refused(folder):
    rewrite(folder, without=[SLOPES.format(1)])
    refused(folder, "lacks ALiBi slopes of 1 layers, such as 'h.1.self")


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_slopes_of_other_heads_are_refused(layer, pruned, folder):
    n = len(pruned.kept_heads[layer])
    recomputed = alibi_slopes(n) if n else torch.zeros(1)
    rewrite(folder, **{SLOPES.format(layer): recomputed})
    if n:
        refused(folder, rf"slopes of layer {layer} are .* but its heads \[.*\] have")
    else:
        refused(folder, r"has shape \(1,\), the configuration expects \(0,\)")


def test_slopes_that_are_no_numbers_are_refused(pruned, folder):
    edit_config(folder, edited_slopes=[2])
    rewrite(folder, **{SLOPES.format(2): torch.full((5,), torch.nan)})
    refused(folder, "slopes of layer 2 are .*nan")


def edit_config(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_other_kept_heads_than_were_saved_are_refused(folder):
    edit_config(folder, kept_heads=[[0, 1, 2, 3], [], [1, 2, 3, 4, 5]])
    refused(folder, "its kept_heads were changed")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"kept_heads": [[0], []]}, "a list for each of 3 layers"),
        ({"kept_heads": 4}, "a list for each of 3 layers"),
        ({"kept_heads": [[0, 6], [], [0]]}, "layer 0 is .* expected some of 0 to 5, sorted"),
        ({"kept_heads": [[2, 1], [], [0]]}, "sorted"),
        ({"kept_heads": [[0, 0], [], [0]]}, "sorted"),
        ({"kept_heads": [[True], [], [0]]}, "sorted"),
        ({"kept_heads": [["0"], [], [0]]}, "sorted"),
        ({"kept_heads": [None, [], [0]]}, "sorted"),
        ({"kept_neurons": [[0], [192], []]}, "kept_neurons of layer 1 .* 0 to 191"),
        ({"kept_layers": [0, 1]}, "expected 3 numbers of layers"),
        ({"kept_layers": [1, 0, 2]}, "kept_layers"),
        ({"edited_slopes": "all"}, "edited_slopes"),
        ({"edited_slopes": 0}, "edited_slopes"),
    ],
)
def test_damaged_configurations_are_refused(fields, says, folder):
    edit_config(folder, **fields)
    with pytest.raises(ConfigError, match=says):
        bl.BloomForCausalLM.from_pretrained(folder)


def test_a_pruned_model_without_its_list_of_heads_is_refused(folder):
    edit_config(folder, kept_heads=None)
    with pytest.raises(CheckpointError, match="expects"):
        bl.BloomForCausalLM.from_pretrained(folder)
    with pytest.raises(RuntimeError, match="size mismatch|mismatched"):
        transformers.BloomForCausalLM.from_pretrained(folder)  # nor does stock take it for whole
