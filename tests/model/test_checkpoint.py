"""Weights go to transformers and come back unchanged, in every layout, for every class."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import bloomlab as bl
from bloomlab.errors import CheckpointError, ConfigError
from tests.folders import INDEX, PREFIX, SINGLE, assert_equal, class_of, out, rewrite
from tests.tiny import CLASSES, distance_in_eps, make_hf, pair


@pytest.mark.parametrize("max_shard_size", ["5GB", "30KB"])
@pytest.mark.parametrize("kind", CLASSES)
def test_what_we_save_loads_in_transformers(kind, max_shard_size, tmp_path):
    _, ours = pair(kind)
    ours.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert (tmp_path / INDEX).exists() == (max_shard_size == "30KB")
    theirs, report = class_of(kind)[1].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_equal(ours, theirs.eval())
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == [kind]


@pytest.mark.parametrize("max_shard_size", ["5GB", "30KB"])
@pytest.mark.parametrize("kind", CLASSES)
def test_what_transformers_saves_loads_here(kind, max_shard_size, tmp_path):
    theirs = make_hf(kind)
    theirs.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) > (max_shard_size == "30KB")
    ours = class_of(kind)[0].from_pretrained(tmp_path)
    assert_equal(ours, theirs)
    assert not ours.training


@pytest.mark.parametrize("kind", CLASSES)
def test_loading_what_we_saved_gives_the_same_bits(kind, tmp_path):
    _, ours = pair(kind, n_layer=1)
    ours.save_pretrained(tmp_path)
    assert torch.equal(out(type(ours).from_pretrained(tmp_path)), out(ours))


@pytest.mark.parametrize("loaded_by", ["ours", "theirs"])
def test_an_untied_unembedding_survives(loaded_by, tmp_path):
    theirs, ours = pair(tie_word_embeddings=False)
    assert not torch.equal(theirs.lm_head.weight, theirs.transformer.word_embeddings.weight)
    assert_equal(ours, theirs)
    if loaded_by == "ours":
        theirs.save_pretrained(tmp_path)
        assert_equal(bl.BloomForCausalLM.from_pretrained(tmp_path), theirs)
    else:
        ours.save_pretrained(tmp_path)
        assert_equal(ours, transformers.BloomForCausalLM.from_pretrained(tmp_path).eval())


@pytest.mark.parametrize("prefix", ["", PREFIX])
@pytest.mark.parametrize("kind", ["BloomModel", "BloomForCausalLM"])
def test_names_load_with_and_without_the_prefix(kind, prefix, tmp_path):
    theirs = make_hf(kind)
    theirs.save_pretrained(tmp_path)
    stored = load_file(tmp_path / SINGLE)
    named = {prefix + n.removeprefix(PREFIX): v.clone() for n, v in stored.items()}
    rewrite(tmp_path, without=stored, **named)
    assert_equal(class_of(kind)[0].from_pretrained(tmp_path), theirs)


def test_a_checkpoint_with_a_head_loads_as_a_model_without(theirs, single):
    assert_equal(bl.BloomModel.from_pretrained(single), theirs.transformer)


def test_shards_named_as_bigscience_names_them_load(theirs, single):
    stored = load_file(single / SINGLE)
    (single / SINGLE).unlink()
    places = {n: f"model_{i % 72 + 1:05d}-of-00072.safetensors" for i, n in enumerate(stored)}
    for shard in set(places.values()):
        save_file({n: stored[n] for n, place in places.items() if place == shard}, single / shard)
    (single / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    ours = bl.BloomForCausalLM.from_pretrained(single)
    assert_equal(ours, theirs)
    ours.save_pretrained(single)  # and are gone when something else is saved there
    assert sorted(f.name for f in single.glob("model*")) == [SINGLE]


def test_a_stored_copy_of_the_tied_unembedding_must_equal_the_embedding(theirs, single):
    embedding = theirs.transformer.word_embeddings.weight.detach()
    rewrite(single, **{"lm_head.weight": embedding.clone()})
    assert_equal(bl.BloomForCausalLM.from_pretrained(single), theirs)
    rewrite(single, **{"lm_head.weight": embedding + 1})
    with pytest.raises(CheckpointError, match=r"lm_head.weight differs .* tie_word_embeddings"):
        bl.BloomForCausalLM.from_pretrained(single)
    assert_equal(bl.BloomModel.from_pretrained(single), theirs.transformer)  # has no use for it


@pytest.mark.parametrize("kind", CLASSES)
def test_hf_named_parameters_are_our_parameters_under_transformers_names(kind):
    theirs, ours = pair(kind, tie_word_embeddings=kind == "BloomModel")
    named = dict(ours.hf_named_parameters())
    assert [*named] == [name for name, _ in theirs.named_parameters()]
    assert {id(v) for v in named.values()} == {id(v) for v in ours.parameters()}
    assert all(isinstance(value, torch.nn.Parameter) for value in named.values())
    fused = named[
        ("" if kind == "BloomModel" else PREFIX) + "h.1.self_attention.query_key_value.weight"
    ]
    assert fused is ours.blocks[1].attn.qkv.weight


@pytest.mark.parametrize("kind", CLASSES)
def test_from_hf_copies_unless_told_to_share(kind):
    theirs = make_hf(kind)
    before = {name: value.detach().clone() for name, value in theirs.named_parameters()}
    original = {name: value.data_ptr() for name, value in theirs.named_parameters()}
    copied = class_of(kind)[0].from_hf(theirs)
    shared = class_of(kind)[0].from_hf(theirs, share=True)
    at = {name: value.data_ptr() for name, value in copied.hf_named_parameters()}
    assert not set(at.values()) & set(original.values())
    assert {n: v.data_ptr() for n, v in shared.hf_named_parameters()} == original
    with torch.no_grad():
        for value in theirs.parameters():
            value.mul_(2)
    assert all(torch.equal(value, before[name]) for name, value in copied.hf_named_parameters())
    assert_equal(shared, theirs)
    assert not shared.training
    assert class_of(kind)[0].from_hf(theirs.train()).training


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", CLASSES)
def test_to_hf_gives_transformers_model_with_copies(kind, dtype):
    ours = pair(kind)[1].to(dtype)
    theirs = ours.to_hf()
    assert type(theirs) is class_of(kind)[1]
    assert not theirs.training
    ids, fresh = ({id(v) for v in m.parameters()} for m in (ours, theirs))
    assert not ids & fresh
    assert not {v.data_ptr() for v in ours.parameters()} & {
        v.data_ptr() for v in theirs.parameters()
    }
    found, expected = dict(ours.hf_named_parameters()), dict(theirs.named_parameters())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    limit = (
        10
        if dtype == torch.bfloat16
        else 200 * torch.finfo(torch.float32).eps / torch.finfo(dtype).eps
    )
    assert distance_in_eps(out(ours), out(theirs)) < limit  # transformers' softmax is float32


def test_to_hf_keeps_ties_training_mode_and_configuration():
    _, ours = pair(hidden_dropout=0.25, alibi="exact")
    theirs = ours.train().to_hf()
    assert theirs.training
    assert theirs.lm_head.weight is theirs.transformer.word_embeddings.weight
    assert (theirs.config.hidden_dropout, theirs.config.n_head) == (0.25, 6)
    assert bl.BloomForCausalLM.from_hf(theirs).alibi == "exact"


def test_from_hf_refuses_other_architectures_and_weights_that_are_not_there():
    gpt2 = transformers.GPT2Config(n_embd=8, n_head=2, n_layer=1, vocab_size=11)
    with pytest.raises(ConfigError, match="'gpt2', expected 'bloom'"):
        bl.BloomForCausalLM.from_hf(transformers.GPT2LMHeadModel(gpt2))
    with torch.device("meta"):
        offloaded = transformers.BloomForCausalLM(make_hf().config)
    with pytest.raises(CheckpointError, match="offloaded"):
        bl.BloomForCausalLM.from_hf(offloaded)
