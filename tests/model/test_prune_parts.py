"""Whole layers and neurons: transformers' model without them is the oracle."""

import contextlib

import pytest
import torch

import bloomlab as bl
from bloomlab.errors import InputError, ShapeError
from bloomlab.model.prune import prune_heads
from bloomlab.model.prune_parts import prune_layers, prune_neurons
from tests.folders import class_of, out
from tests.tiny import CLASSES, distance_in_eps, make_hf, pair, tokens

IDS = tokens(3, 9)
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1], [1] * 9])
LIMIT = {torch.float32: 200, torch.bfloat16: 12}
GONE = {0: [0, 5, 191], 1: range(192), 2: range(50, 150)}  # of 192 neurons


def logits(model):
    with torch.no_grad():
        return model(IDS, attention_mask=MASK).logits[MASK.bool()]


def without_layers(theirs, gone):
    """transformers' model of the other layers, its own modules."""
    base = theirs.transformer
    stay = [block for layer, block in enumerate(base.h) if layer not in gone]
    for layer, block in enumerate(stay):
        block.self_attention.layer_idx = layer
    base.h, theirs.config.n_layer = torch.nn.ModuleList(stay), len(stay)
    return theirs


@contextlib.contextmanager
def post_edited(theirs, gone, value):
    """Within, neurons of transformers' model are `value(layer, neurons)` after the GELU."""
    handles = []
    for layer, neurons in gone.items():

        def write(module, arguments, layer=layer, neurons=neurons):
            post = arguments[0].clone()
            post[..., list(neurons)] = value(layer, list(neurons))
            return (post, *arguments[1:])

        mlp = theirs.transformer.h[layer].mlp
        handles.append(mlp.dense_4h_to_h.register_forward_pre_hook(write))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("gone", [[1], [0, 3], range(1, 4), 2])
def test_layers_go_and_the_stream_skips_them(gone, dtype, tmp_path):
    theirs, ours = pair(n_layer=4, dtype=dtype)
    pruned = prune_layers(ours, gone)
    listed = [gone] if isinstance(gone, int) else list(gone)
    stay = [layer for layer in range(4) if layer not in listed]
    expected = without_layers(theirs, listed)
    assert distance_in_eps(logits(pruned), logits(expected)) < LIMIT[dtype]
    said = expected.generate(IDS, attention_mask=MASK, max_new_tokens=6, do_sample=False)
    assert torch.equal(pruned.generate(IDS, attention_mask=MASK, max_new_tokens=6), said)
    assert pruned.config.kept_layers == stay
    assert distance_in_eps(logits(pruned.to_hf()), logits(expected)) < LIMIT[dtype]
    pruned.save_pretrained(tmp_path)
    loaded = bl.BloomForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(pruned))
    assert loaded.config.kept_layers == stay


def test_layers_take_their_heads_and_neurons_along():
    _, ours = pair(n_layer=4)
    pruned = prune_neurons(prune_heads(ours, {1: [2], 3: range(6)}), {1: [7]})
    shallow = prune_layers(prune_layers(pruned, 0), [1])
    assert shallow.config.kept_layers == [1, 3]
    assert shallow.kept_heads == {0: [0, 1, 3, 4, 5], 1: []}
    assert [block.mlp.W_in.shape[1] for block in shallow.blocks] == [191, 192]
    other = prune_layers(ours, [0, 2])
    other = prune_neurons(prune_heads(other, {0: [2], 1: range(6)}), {0: [7]})
    assert torch.equal(logits(shallow), logits(other))
    assert (
        shallow.blocks[0].attn.slopes.tolist()
        == ours.blocks[1].attn.slopes[[0, 1, 3, 4, 5]].tolist()
    )


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("compensate", ["zero", "mean", "constant"])
def test_pruned_neurons_are_constant_ones(compensate, dtype, post_norm, tmp_path):
    fields = {"dtype": dtype, "apply_residual_connection_post_layernorm": post_norm}
    theirs, ours = pair(n_layer=3, **fields)
    data = {"input_ids": tokens(4, 9, seed=3), "attention_mask": MASK[[0, 1, 2, 0]]}
    sums = {}
    for layer in range(3):

        def note(module, arguments, layer=layer):
            sums[layer] = arguments[0][data["attention_mask"].bool()].double().mean(0)

        theirs.transformer.h[layer].mlp.dense_4h_to_h.register_forward_pre_hook(note)
    with torch.no_grad():
        theirs(**data)
    values = torch.stack([sums[layer] for layer in range(3)])
    given = {"mean": {"data": data}, "constant": {"values": 2 * values}}.get(compensate, {})
    scale = {"zero": 0, "mean": 1, "constant": 2}[compensate]
    pruned = prune_neurons(ours, GONE, compensate=compensate, **given)
    theirs = make_hf(n_layer=3, **fields)  # without the notes
    with post_edited(theirs, GONE, lambda layer, some: scale * values[layer, some].to(dtype)):
        expected = logits(theirs)
    assert distance_in_eps(logits(pruned), expected) < LIMIT[dtype]
    pruned.to_hf().save_pretrained(tmp_path)
    stock = class_of("BloomForCausalLM")[1].from_pretrained(tmp_path, dtype=dtype)
    assert distance_in_eps(logits(stock), expected) < LIMIT[dtype]
    assert pruned.config.kept_neurons[1] == []
    again = prune_neurons(pruned, [(0, 7), (2, 49)])
    assert again.config.kept_neurons[0] == [*range(1, 5), 6, *range(8, 191)]


def test_pruned_neurons_generate_as_silent_ones_do():
    theirs, ours = pair(n_layer=3)
    with post_edited(theirs, GONE, lambda layer, some: 0.0):
        expected = theirs.generate(IDS, attention_mask=MASK, max_new_tokens=8, do_sample=False)
    got = prune_neurons(ours, GONE).generate(IDS, attention_mask=MASK, max_new_tokens=8)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_loses_layers_and_neurons(kind):
    _, ours = pair(kind)
    pruned = prune_neurons(prune_layers(ours, 0), {0: range(10)})
    assert type(pruned) is type(ours)
    assert distance_in_eps(out(pruned), out(pruned.to_hf())) < 200


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        ([3], "no layer 3; they run from 0 to 2"),
        ([-1], "no layer -1"),
        ([0, 1, 2], "all 3 layers: .* leave one"),
        ([], "no layers to prune"),
        ("ab", "expected numbers of layers"),
        (0.5, "expected numbers of layers"),
    ],
)
def test_mistakes_with_layers_are_told(layers, says):
    with pytest.raises(InputError, match=says):
        prune_layers(pair(n_layer=3)[1], layers)


def test_mistakes_with_neurons_are_told():
    _, ours = pair()
    pruned = prune_neurons(ours, {0: [5]})
    with pytest.raises(InputError, match=r"no neuron 5 \(pruned.* it has 0 to 4, 6 to 191"):
        prune_neurons(pruned, {0: [5]})
    with pytest.raises(InputError, match="no neuron 192"):
        prune_neurons(ours, [(1, 192)])
    with pytest.raises(InputError, match="data is missing"):
        prune_neurons(ours, {0: [5]}, compensate="mean")
    with pytest.raises(ShapeError, match=r"expected \(2, 192\)"):
        prune_neurons(ours, {0: [5]}, compensate="constant", values=torch.zeros(192))
    values = torch.full((2, 192), torch.inf)
    with pytest.raises(InputError, match="NaN or infinite"):
        prune_neurons(ours, {0: [5]}, compensate="constant", values=values)
