"""Training under transformers' Trainer, gradient checkpointing, return types, bad input."""

import inspect

import pytest
import torch
from transformers import Trainer, TrainingArguments

import bloomlab as bl
from bloomlab.errors import InputError, ShapeError, UnknownArgumentError
from bloomlab.model.outputs import PAST
from tests.tiny import CLASSES, distance_in_eps, make_hf, notices, pair, tokens


def example(kind, i):
    ids = tokens(8, seed=i)
    extra = {
        "BloomForCausalLM": {"labels": ids},
        "BloomForSequenceClassification": {"labels": i % 2},
        "BloomForTokenClassification": {"labels": ids % 2},
        "BloomForQuestionAnswering": {"start_positions": i % 8, "end_positions": (i + 1) % 8},
    }[kind]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "unused": 1, **extra}


@pytest.mark.parametrize("kind", CLASSES[1:])
def test_training_under_trainer_equals_training_transformers(kind, tmp_path):
    theirs, ours = pair(kind)
    data = [example(kind, i) for i in range(8)]
    ours.activation_checkpointing_enable(every_n_layers=2)
    losses = {}
    for name, model in (("theirs", theirs), ("ours", ours)):
        arguments = TrainingArguments(
            output_dir=str(tmp_path / name),
            per_device_train_batch_size=4,
            # elsewhere transformers' own classes forget to divide by it
            gradient_accumulation_steps=2 if kind == "BloomForCausalLM" else 1,
            num_train_epochs=3,
            learning_rate=1e-2,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            seed=0,
            save_strategy="epoch",
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=data)
        trainer.train()
        losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses["ours"][-1] < losses["ours"][0]
    assert losses["ours"] == pytest.approx(losses["theirs"], rel=1e-3)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_base_model_trains_by_hand(kind):
    model = getattr(bl, kind).from_hf(make_hf(kind)).train()
    before = model.blocks[0].attn.qkv.weight.clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(tokens(2, 8))[0].square().mean().backward()
    optimizer.step()
    assert not torch.equal(before, model.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("kind", CLASSES)
def test_every_documented_argument_is_in_the_signature(kind):
    documented = {
        "input_ids", "attention_mask", "head_mask", "inputs_embeds", "past_key_values", "cache",
        "use_cache", "output_attentions", "output_hidden_states", "return_dict", "return_type",
        "cache_position", "position_ids",
    }  # fmt: skip
    if kind != "BloomModel":
        labels = {"start_positions", "end_positions"} if "Question" in kind else {"labels"}
        documented |= labels
    if kind == "BloomForCausalLM":
        documented |= {"logits_to_keep", "num_items_in_batch"}
    assert documented <= set(inspect.signature(getattr(bl, kind).forward).parameters)


def test_bare_tensors_come_back_when_asked_for():
    _, ours = pair()
    ids = tokens(2, 9)
    out = ours(ids, labels=ids)
    assert torch.equal(ours(ids, return_type="logits"), out.logits)
    assert torch.equal(ours(ids, return_type="loss"), out.loss)
    logits, loss = ours(ids, return_type="both")
    assert torch.equal(logits, out.logits)
    assert torch.equal(loss, out.loss)
    assert torch.equal(out[0, -1], out.logits[0, -1])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    rows = [ids[:1, 3:], ids[1:]]
    alone = sum(ours(row, return_type="loss") * (row.shape[1] - 1) for row in rows) / (5 + 8)
    assert distance_in_eps(ours(ids, attention_mask=mask, return_type="loss"), alone) < 200
    with pytest.raises(InputError, match="'logits'"):
        ours(ids, return_type="logit")


def test_outputs_are_attributes_mapping_and_tuple():
    _, ours = pair()
    out = ours(tokens(2, 9), output_hidden_states=True)
    assert out.logits is out["logits"] is out[0]
    assert list(out.keys()) == ["logits", PAST, "hidden_states"]
    assert out.past_key_values is out["past_key_values"] is out[1]
    assert isinstance(out.past_key_values, bl.KVCache)


@pytest.mark.parametrize("kind", CLASSES)
def test_misspelt_arguments_are_refused_with_the_right_name(kind):
    model = getattr(bl, kind).from_hf(make_hf(kind))
    with pytest.raises(UnknownArgumentError, match="'output_attentions'"):
        model(tokens(1, 5), outputattentions=True)
    with pytest.raises(TypeError):  # also for those who do not know our errors
        model(tokens(1, 5), use_cach=False)


IDS = torch.ones(1, 3, dtype=torch.long)
BAD_INPUT = [
    ({}, InputError, "neither"),
    ({"input_ids": IDS, "inputs_embeds": torch.ones(1, 3, 48)}, InputError, "both"),
    ({"input_ids": torch.tensor([[5, 97]])}, InputError, "0 to 96"),
    ({"input_ids": torch.tensor([[-1, 5]])}, InputError, "0 to 96"),
    ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, InputError, "empty"),
    ({"input_ids": torch.zeros(3, dtype=torch.long)}, ShapeError, "batch axis"),
    ({"input_ids": torch.zeros(1, 3)}, InputError, "float32"),
    ({"input_ids": {"a": 1}}, InputError, "dict"),
    ({"inputs_embeds": torch.ones(1, 3, 47)}, ShapeError, "48"),
    ({"input_ids": IDS, "attention_mask": torch.ones(1, 4)}, ShapeError, "attention_mask"),
    ({"input_ids": IDS, "attention_mask": torch.tensor([[0, -1e9, 1]])}, InputError, "additive"),
    ({"input_ids": IDS, "labels": IDS[:, :2]}, ShapeError, "labels"),
    ({"input_ids": IDS, "labels": torch.full((1, 3), 97)}, InputError, "0 to 96"),
    ({"input_ids": IDS, "stop_at_layer": 5}, InputError, "stop_at_layer"),
    ({"input_ids": "text"}, bl.BloomlabError, "tokenizer"),
]


@pytest.mark.parametrize(("arguments", "error", "text"), BAD_INPUT)
def test_bad_input_is_refused(arguments, error, text):
    _, ours = pair()
    with pytest.raises(error, match=text):
        ours(**arguments)
    assert not any(point._forward_hooks for point in ours.hook_points())


def test_an_empty_prompt_is_refused(demo):
    for prompt in ("", ["text", ""], []):
        with pytest.raises(InputError):
            demo(prompt)


def test_position_ids_are_ignored_with_a_warning():
    _, ours = pair()
    ids = tokens(1, 5)
    with pytest.warns(FutureWarning, match="position_ids"):
        got = ours(ids, position_ids=torch.arange(5)[None]).logits
    assert torch.equal(got, ours(ids).logits)


def test_several_texts_without_a_padding_token_are_refused():
    model = bl.BloomForSequenceClassification.from_hf(
        make_hf("BloomForSequenceClassification", pad_token_id=None)
    )
    assert model(tokens(1, 5)).logits.shape == (1, 2)
    with pytest.raises(InputError, match="pad_token_id"):
        model(tokens(2, 5))


def test_padding_without_a_mask_is_pointed_out():
    _, ours = pair()
    ids = tokens(2, 5)
    ids[0, 0] = 3
    with notices("attention_mask"):
        ours(ids)


def test_labels_of_another_shape_are_refused():
    for kind, shape in (("Sequence", (3,)), ("Token", (2, 4))):
        name = f"BloomFor{kind}Classification"
        model = getattr(bl, name).from_hf(make_hf(name))
        with pytest.raises(ShapeError, match="labels"):
            model(tokens(2, 5), labels=torch.zeros(shape, dtype=torch.long))
