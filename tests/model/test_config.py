import json

import pytest
import transformers

from bloomlab.errors import BloomlabError, CheckpointError, ConfigError, UnknownArgumentError
from bloomlab.model.config import BloomConfig, read_config

# The BloomConfig page of the transformers 4.56.2 documentation, and what the class inherits.
DOCUMENTED = {
    "vocab_size": 250880,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "layer_norm_epsilon": 1e-5,
    "initializer_range": 0.02,
    "use_cache": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "apply_residual_connection_post_layernorm": False,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "pretraining_tp": 1,
    "slow_but_exact": False,
    "pad_token_id": None,
    "tie_word_embeddings": True,
    "output_attentions": False,
    "output_hidden_states": False,
    "return_dict": True,
    "num_labels": 2,
    "problem_type": None,
}
OTHER = {
    "vocab_size": 97,
    "hidden_size": 48,
    "n_layer": 3,
    "n_head": 6,
    "layer_norm_epsilon": 1e-6,
    "initializer_range": 0.5,
    "use_cache": False,
    "bos_token_id": 5,
    "eos_token_id": 6,
    "apply_residual_connection_post_layernorm": True,
    "hidden_dropout": 0.25,
    "attention_dropout": 0.75,
    "pretraining_tp": 4,
    "slow_but_exact": True,
    "pad_token_id": 3,
    "tie_word_embeddings": False,
    "output_attentions": True,
    "output_hidden_states": True,
    "return_dict": False,
    "num_labels": 5,
    "problem_type": "regression",
}
# The entries of bigscience's config.json files that no code reads, as they stand there.
LEFTOVERS = {
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "masked_softmax_fusion": True,
    "n_inner": None,
    "offset_alibi": 100,
    "seq_length": 2048,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "unk_token_id": 0,
}
REAL = {
    "apply_residual_connection_post_layernorm": False,
    "architectures": ["BloomForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "bloom",
    "n_embed": 1024,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "pad_token_id": 3,
    "pretraining_tp": 1,
    "slow_but_exact": False,
    "torch_dtype": "float16",
    "transformers_version": "4.20.0",
    "use_cache": True,
    "vocab_size": 250880,
    **LEFTOVERS,
}


def written(folder, fields):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


def test_defaults_are_those_of_the_documentation():
    ours, theirs = BloomConfig(), transformers.BloomConfig()
    for name, value in DOCUMENTED.items():
        assert getattr(ours, name) == getattr(theirs, name) == value, name
    assert ours.alibi == "hf"


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_documented_field_reaches_transformers_and_comes_back(name, tmp_path):
    assert OTHER[name] != DOCUMENTED[name]
    config = BloomConfig(**OTHER)
    config.save_pretrained(tmp_path)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(theirs) is transformers.BloomConfig
    back = transformers.BloomConfig(**OTHER)
    back.save_pretrained(tmp_path / "theirs")
    for view in (config, theirs, read_config(tmp_path), read_config(tmp_path / "theirs")):
        assert getattr(view, name) == OTHER[name]


def test_labels_and_classifier_dropout_survive(tmp_path):
    names = {0: "no", 1: "yes", 2: "perhaps"}
    fields = {"id2label": names, "label2id": {v: k for k, v in names.items()}}
    BloomConfig(**fields, classifier_dropout=0.3).save_pretrained(tmp_path)
    for view in (read_config(tmp_path), transformers.AutoConfig.from_pretrained(tmp_path)):
        assert view.id2label == names
        assert view.num_labels == 3
        assert view.classifier_dropout == 0.3


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("n_embed", "hidden_size"),
        ("num_attention_heads", "n_head"),
        ("num_hidden_layers", "n_layer"),
    ],
)
def test_an_alias_is_the_field(alias, name, tmp_path):
    size = {"n_embed": 128, "num_attention_heads": 4, "num_hidden_layers": 7}[alias]
    folder = written(tmp_path, {"model_type": "bloom", alias: size})
    theirs = transformers.AutoConfig.from_pretrained(folder)
    for config in (BloomConfig(**{alias: size}), read_config(folder), theirs):
        assert getattr(config, name) == size
    read_config(folder).save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())[name] == size


def test_a_real_config_file_loses_nothing_when_saved(tmp_path):
    unknown = {"my_lab": {"run": 7, "rates": [0.1, None]}, "something_new": "x"}
    config = read_config(written(tmp_path, REAL | unknown))
    assert (config.hidden_size, config.n_head, config.n_layer, config.d_head) == (1024, 16, 24, 64)
    assert (config.offset_alibi, config.seq_length, config.my_lab) == (100, 2048, unknown["my_lab"])
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    renamed = {"n_embed", "num_attention_heads", "num_hidden_layers", "torch_dtype"}
    same = (REAL | unknown).keys() - renamed - {"transformers_version"}
    assert {n: saved[n] for n in same} == {n: (REAL | unknown)[n] for n in same}
    assert (saved["dtype"], saved["n_layer"]) == ("float16", 24)
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert {n: getattr(theirs, n) for n in LEFTOVERS} == LEFTOVERS


def test_leftovers_are_taken_by_the_constructor():
    config = BloomConfig(**LEFTOVERS)
    assert {n: getattr(config, n) for n in LEFTOVERS} == LEFTOVERS


def test_generation_settings_in_an_old_file_are_dropped_as_transformers_drops_them(tmp_path):
    settings = {"max_length": 50, "do_sample": True, "temperature": 0.7}
    config = read_config(written(tmp_path, REAL | settings))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    config.save_pretrained(tmp_path)  # transformers refuses to write a config that has them
    assert not settings.keys() & json.loads((tmp_path / "config.json").read_text()).keys()
    assert not settings.keys() & vars(theirs).keys()


def test_an_entry_named_like_a_method_or_property_does_not_replace_it(tmp_path):
    clashing = {"check": 1, "to_dict": 2, "d_head": 3, "use_return_dict": True, "rope_scaling": {}}
    config = read_config(written(tmp_path, REAL | clashing))
    config.check()
    assert config.d_head == 64
    assert config.to_dict()["hidden_size"] == 1024


def test_alibi_mode_survives_and_does_not_disturb_transformers(tmp_path):
    BloomConfig(alibi="exact").save_pretrained(tmp_path)
    assert read_config(tmp_path).alibi == "exact"
    assert BloomConfig.from_pretrained(tmp_path).alibi == "exact"
    assert transformers.AutoConfig.from_pretrained(tmp_path).hidden_size == 64


@pytest.mark.parametrize("read", [BloomConfig.from_pretrained, BloomConfig.from_json_file])
def test_transformers_own_readers_keep_unknown_entries_too(read, tmp_path):
    folder = written(tmp_path, REAL | {"something_new": [1, 2]})
    path = folder / "config.json" if read == BloomConfig.from_json_file else folder
    assert read(path).something_new == [1, 2]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("n_heads", "n_head"), ("vocabsize", "vocab_size"), ("num_hidden_layer", "num_hidden_layers")],
)
def test_an_unknown_keyword_is_refused_with_the_nearest_name(wrong, meant, tmp_path):
    with pytest.raises(UnknownArgumentError, match=rf"{wrong}.*Did you mean '{meant}'"):
        BloomConfig(**{wrong: 4})
    with pytest.raises(UnknownArgumentError, match=rf"{wrong}.*Did you mean '{meant}'"):
        BloomConfig.from_pretrained(written(tmp_path, REAL), **{wrong: 4})


def test_from_pretrained_takes_overrides_and_checks_them(tmp_path):
    folder = written(tmp_path, REAL)
    config = BloomConfig.from_pretrained(folder, hidden_dropout=0.1, num_labels=4)
    assert (config.hidden_dropout, config.num_labels) == (0.1, 4)
    with pytest.raises(ConfigError, match="not divisible by n_head 7"):
        BloomConfig.from_pretrained(folder, n_head=7)
    config, unused = BloomConfig.from_pretrained(folder, else_where=1, return_unused_kwargs=True)
    assert (config.hidden_size, unused) == (1024, {"else_where": 1})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"hidden_size": 64, "n_head": 6}, "hidden_size 64 is not divisible by n_head 6"),
        ({"n_head": 0}, "n_head is 0, expected a positive"),
        ({"n_layer": -1}, "n_layer is -1"),
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"pretraining_tp": 0}, "pretraining_tp is 0"),
        ({"num_labels": 0}, "num_labels is 0"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"n_head": "8"}, "n_head"),
        ({"num_attention_heads": "8"}, "n_head is '8'"),
        ({"n_embed": "64"}, "hidden_size"),
        ({"hidden_dropout": 1.0}, r"hidden_dropout is 1.0, expected a probability in \[0, 1\)"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
        ({"hidden_dropout": float("nan")}, "hidden_dropout is nan"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon is 0.0"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"),
        ({"initializer_range": -1.0}, "initializer_range is -1.0"),
        ({"alibi": "exakt"}, "alibi is 'exakt', expected one of"),
        ({"problem_type": "ranking"}, "problem_type"),
        ({"torch_dtype": "float99"}, "float99"),
        ({"id2label": ["a", "b"]}, "not a BLOOM configuration"),
    ],
)
def test_values_that_describe_no_bloom_are_refused(fields, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        BloomConfig(**fields)
    with pytest.raises(ConfigError, match=says) as caught:
        read_config(written(tmp_path, {"model_type": "bloom", **fields}))
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says", "error"),
    [
        ("{", "no readable JSON", CheckpointError),
        ("[1]", "holds a list, expected a JSON object", CheckpointError),
        ("[" * 100_000, "no readable JSON", CheckpointError),
        (b"\xff\xfe{", "no readable JSON", CheckpointError),
        ('{"model_type": "gpt2", "n_embd": 8}', "'gpt2', expected 'bloom'", ConfigError),
        (None, "no config.json in .* Expected", CheckpointError),
    ],
)
def test_a_file_that_is_no_bloom_configuration_is_refused(content, says, error, tmp_path):
    if content is not None:
        (tmp_path / "config.json").write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    with pytest.raises(error, match=says) as caught:
        read_config(tmp_path)
    assert isinstance(caught.value, BloomlabError)
    assert str(tmp_path) in str(caught.value)


def test_another_architecture_is_refused_wherever_it_comes_from(tmp_path):
    transformers.GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="'gpt2', expected 'bloom'"):
        BloomConfig.from_pretrained(tmp_path)
