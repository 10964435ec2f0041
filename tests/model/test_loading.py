"""What loading makes of a dtype, a device, a new head, tensors that do not fit, edited slopes."""

import json
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import bloomlab as bl
from bloomlab.errors import (
    CheckpointError,
    ConfigError,
    InputError,
    UnknownArgumentError,
    UnsupportedError,
)
from bloomlab.model.alibi import alibi_slopes
from tests.folders import PREFIX, SINGLE, assert_equal, class_of, out, rewrite
from tests.tiny import CLASSES, distance_in_eps, make_hf, notices


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_dtype_none_keeps_the_files(stored, tmp_path):
    theirs = make_hf(dtype=stored)
    theirs.save_pretrained(tmp_path)
    ours = bl.BloomForCausalLM.from_pretrained(tmp_path)
    assert {value.dtype for value in ours.parameters()} == {stored} == {ours.config.dtype}
    found = dict(ours.hf_named_parameters())
    assert all(torch.equal(found[name], value) for name, value in theirs.named_parameters())


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("bfloat16", torch.bfloat16),
        ("torch.float16", torch.float16),
        (torch.float64, torch.float64),
        ("auto", torch.float32),
    ],
)
def test_a_dtype_asked_for_is_what_transformers_gives_too(dtype, expected, single):
    ours = bl.BloomForCausalLM.from_pretrained(single, dtype=dtype)
    theirs = transformers.BloomForCausalLM.from_pretrained(single, dtype=expected)
    found = dict(ours.hf_named_parameters())
    for name, value in theirs.named_parameters():
        assert found[name].dtype == expected
        assert torch.equal(found[name], value)
    ours.save_pretrained(single)
    assert json.loads((single / "config.json").read_text())["dtype"] == str(expected)[6:]


@pytest.mark.parametrize("dtype", ["float99", "int8", torch.int64, "float8_e4m3fn", "Tensor", ""])
def test_a_dtype_that_is_none_is_refused_before_anything_is_fetched(dtype):
    for load in (bl.load, bl.BloomForCausalLM.from_pretrained):
        with pytest.raises(InputError, match=r"dtype is .* expected 'float32', 'bfloat16'"):
            load("nobody/nothing", dtype=dtype)


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99"])
def test_a_device_that_is_not_here_is_refused_before_anything_is_fetched(device):
    for load in (bl.load, bl.BloomForCausalLM.from_pretrained):
        with pytest.raises(InputError, match=r"device is .*[eE]xpected"):
            load("nobody/nothing", device=device)


def test_building_draws_no_random_numbers_and_leaves_no_meta_tensor(single):
    state = torch.get_rng_state()
    ours = bl.BloomForCausalLM.from_pretrained(single)
    assert torch.equal(torch.get_rng_state(), state)  # initialising would have advanced it
    assert not any(t.is_meta for t in (*ours.parameters(), *ours.buffers()))
    assert not any(block.attn.slopes.is_meta for block in ours.blocks)
    assert all(value.requires_grad for value in ours.parameters())


@pytest.mark.parametrize("kind", CLASSES[2:])
def test_a_new_head_is_drawn_as_transformers_draws_it_with_a_warning(kind, theirs, single):
    with notices("newly drawn, train before use"):
        ours = class_of(kind)[0].from_pretrained(single, dtype="bfloat16", num_labels=2)
    assert not any(t.is_meta for t in ours.parameters())
    assert {t.dtype for t in ours.parameters()} == {torch.bfloat16}
    head = {n: v for n, v in ours.hf_named_parameters() if not n.startswith(PREFIX)}
    assert [v.shape for n, v in head.items() if n.endswith("weight")] == [(2, 48)]
    for name, value in head.items():  # as transformers draws: N(0, initializer_range), biases 0
        scale = value.float().std().item()
        assert scale == 0 if name.endswith("bias") else 0.01 < scale < 0.04
    body = {n: v for n, v in ours.hf_named_parameters() if n.startswith(PREFIX)}
    stored = dict(theirs.named_parameters())
    assert all(torch.equal(value, stored[name].bfloat16()) for name, value in body.items())
    with notices("newly drawn"):
        class_of(kind)[0].from_hf(theirs)


def test_num_labels_sizes_a_new_head_and_must_fit_an_old_one(single, tmp_path):
    with notices("'score' head"):
        ours = bl.BloomForSequenceClassification.from_pretrained(single, num_labels=5)
    assert (ours.score.weight.shape, ours.config.num_labels) == ((5, 48), 5)
    ours.save_pretrained(tmp_path)
    assert transformers.AutoConfig.from_pretrained(tmp_path).num_labels == 5
    with pytest.raises(CheckpointError, match=r"score.weight has shape \(5, 48\).* \(3, 48\)"):
        bl.BloomForSequenceClassification.from_pretrained(tmp_path, num_labels=3)


def test_half_a_head_is_an_error_not_a_new_head(tmp_path):
    make_hf("BloomForTokenClassification").save_pretrained(tmp_path)
    rewrite(tmp_path, without=["classifier.bias"])
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, such as 'classifier.bias'"):
        bl.BloomForTokenClassification.from_pretrained(tmp_path)


def test_unknown_tensors_are_named_in_a_warning(theirs, single):
    rewrite(single, **{"h.0.lora_A": torch.ones(1), "extra": torch.ones(1)})
    with notices("does not use 2 of its tensors, such as 'extra'"):
        ours = bl.BloomForCausalLM.from_pretrained(single)
    assert_equal(ours, theirs)


def test_a_missing_tensor_is_named(single):
    rewrite(single, without=[PREFIX + "ln_f.bias"])
    with pytest.raises(CheckpointError, match=r"lacks 1 weights, such as 'ln_f.bias'") as caught:
        bl.BloomForCausalLM.from_pretrained(single)
    assert str(single) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("transformer.ln_f.bias", torch.ones(47), r"has shape \(47,\), .* expects \(48,\)"),
        ("transformer.ln_f.bias", torch.ones(48).to(torch.int8), "holds I8 numbers, expected"),
        ("transformer.ln_f.bias", torch.ones(48).to(torch.float8_e4m3fn), "holds F8_E4M3 numbers"),
        ("ln_f.bias", torch.ones(48), "has weights twice"),
        (
            "transformer.h.0.self_attention.alibi_slopes",
            torch.ones(7),
            r"has shape \(7,\), .* expects \(6,\)",
        ),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_with_the_reason(name, value, says, single):
    rewrite(single, **{name: value})
    with pytest.raises(CheckpointError, match=says) as caught:
        bl.BloomForCausalLM.from_pretrained(single)
    assert str(single) in str(caught.value)


def test_a_config_of_another_size_is_refused(single):
    config = json.loads((single / "config.json").read_text())
    (single / "config.json").write_text(json.dumps(config | {"hidden_size": 54}))
    with pytest.raises(CheckpointError, match=r"has shape \(97, 48\), .* expects \(97, 54\)"):
        bl.BloomForCausalLM.from_pretrained(single)


@pytest.mark.parametrize("edit", ["replaced", "in place", "trainable", "float64"])
def test_edited_slopes_survive_and_stock_ones_are_not_written(edit, theirs, single, tmp_path):
    ours = bl.BloomForCausalLM.from_pretrained(single)
    ours.save_pretrained(tmp_path)
    assert not any("slopes" in name for name in load_file(tmp_path / SINGLE))
    assert ours.to_hf()
    slopes = alibi_slopes(6) * 3
    if edit == "in place":
        ours.blocks[1].attn.slopes.mul_(3)
    elif edit == "trainable":
        ours.blocks[1].attn.slopes = torch.nn.Parameter(slopes)
    else:
        ours.blocks[1].attn.slopes = slopes.double() if edit == "float64" else slopes
    ours.save_pretrained(tmp_path)
    again = bl.BloomForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.blocks[1].attn.slopes, slopes)
    assert torch.equal(again.blocks[0].attn.slopes, alibi_slopes(6))
    assert torch.equal(out(again), out(ours))
    assert distance_in_eps(out(again), out(theirs)) > 1e4
    with pytest.raises(UnsupportedError, match="slopes"):
        again.to_hf()


def test_the_alibi_mode_survives_and_can_be_chosen_on_loading(single, tmp_path):
    ours = bl.BloomForCausalLM.from_pretrained(single, alibi="exact")
    ours.save_pretrained(tmp_path)
    assert bl.BloomForCausalLM.from_pretrained(tmp_path).alibi == "exact"
    assert bl.BloomForCausalLM.from_pretrained(tmp_path, alibi="hf").alibi == "hf"
    transformers.BloomForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="alibi is 'exakt'"):
        bl.BloomForCausalLM.from_pretrained(single, alibi="exakt")


def test_the_demo_equals_transformers_and_brings_its_tokenizer(tmp_path):
    ours = bl.load("demo", device="cpu")
    folder = Path(bl.__file__).parent / "demo" / "checkpoint"
    theirs = transformers.BloomForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = ours.tokenizer("The quick brown fox", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert distance_in_eps(ours(ids).logits, theirs(ids).logits) < 200
    assert ours.config.name_or_path == "demo"
    ours.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whatever transformers thinks of tokenizer classes
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer("The quick brown fox")["input_ids"] == ids[0].tolist()
    assert bl.load(tmp_path, device="cpu").to_str_tokens("a b") == ours.to_str_tokens("a b")


def test_load_needs_a_tokenizer(single):
    with pytest.raises(bl.BloomlabError, match="token"):
        bl.load(single)


def test_load_gives_float32_on_a_cpu_unless_told_otherwise():
    assert bl.load("demo", device="cpu").dtype == torch.float32
    assert bl.load("demo", device="cpu", dtype="auto").dtype == torch.bfloat16
    assert bl.load("demo", device="cpu", dtype=torch.float64).dtype == torch.float64


def test_labels_are_set_as_in_transformers_guides(single):
    names = {0: "en", 1: "fr", 2: "es"}
    with notices("score"):
        ours = bl.BloomForSequenceClassification.from_pretrained(
            single, id2label=names, label2id={name: i for i, name in names.items()}
        )
    assert ours.config.id2label == names
    assert ours.score.weight.shape[0] == 3
    assert ours(torch.tensor([[5, 6]])).logits.shape == (1, 3)
    with pytest.raises(UnknownArgumentError, match="'num_labels'"):
        bl.BloomForSequenceClassification.from_pretrained(single, num_label=3)


def test_a_classifier_read_as_a_language_model_says_what_it_leaves(tmp_path):
    make_hf("BloomForSequenceClassification").save_pretrained(tmp_path)
    with notices(r"score\.weight"):
        bl.BloomForCausalLM.from_pretrained(tmp_path)


def test_older_and_harmful_keywords(single):
    ours = bl.BloomForCausalLM.from_pretrained(single, torch_dtype=torch.float64)
    assert ours.dtype == torch.float64
    for wrong in ({"n_head": 3}, {"attn_implementation": "sdpa"}):
        with pytest.raises(UnknownArgumentError, match="from_pretrained"):
            bl.BloomForCausalLM.from_pretrained(single, **wrong)


def test_the_demo_has_its_tokenizer_by_name(demo):
    assert bl.BloomTokenizer.from_pretrained("demo")("text") == demo.tokenizer("text")


def test_misspelt_keywords_get_the_right_one(single):
    with pytest.raises(UnknownArgumentError, match="Did you mean 'dtype'"):
        bl.load("demo", dtpe="float32")
    with pytest.raises(UnknownArgumentError, match="Did you mean 'dtype'"):
        bl.BloomForCausalLM.from_pretrained(single, dtpe="float32")
