"""Fine-tuning's start: task models equal those of from_pretrained, labels lie on their tokens."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import (
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import bloomlab as bl
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments import label_scores, text_examples, with_task_head, word_examples
from bloomlab.experiments.tasks import language_identification, part_of_speech
from tests.tiny import notices, pair, tokens

KINDS = {
    bl.BloomForSequenceClassification: "score",
    bl.BloomForTokenClassification: "classifier",
    bl.BloomForQuestionAnswering: "qa_outputs",
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_model_is_that_of_saved_weights_but_for_its_head(demo, kind, tmp_path):
    labels = None if kind is bl.BloomForQuestionAnswering else ["a", "b", "c"]
    ours = with_task_head(demo, kind, labels)
    demo.save_pretrained(tmp_path)
    with notices(KINDS[kind]):
        stored = kind.from_pretrained(tmp_path)
    text = "The silver parrot met a green turtle."
    states = [m(text, output_hidden_states=True).hidden_states[-1] for m in (ours, stored)]
    assert torch.equal(*states)
    assert not ours.training
    head = getattr(ours, KINDS[kind]).weight
    assert torch.equal(head, getattr(with_task_head(demo, kind, labels), KINDS[kind]).weight)
    assert not torch.equal(
        head, getattr(with_task_head(demo, kind, labels, seed=1), KINDS[kind]).weight
    )
    assert head.std().item() == pytest.approx(demo.config.initializer_range, rel=0.2)
    if labels:
        assert (len(head), ours.config.id2label) == (3, {0: "a", 1: "b", 2: "c"})
        assert demo.config.num_labels != 3 or demo.config.id2label != ours.config.id2label
    ours.blocks[0].attn.qkv.weight.data.zero_()
    assert bool(demo.blocks[0].attn.qkv.weight.any())  # a copy


def test_a_pruned_model_keeps_its_heads_and_slopes(demo):
    small = bl.prune_heads(demo, [(0, 1), (2, 3)])
    ours = with_task_head(small, bl.BloomForTokenClassification, ["a", "b"])
    text = "The silver parrot met a green turtle."
    states = [m(text, output_hidden_states=True).hidden_states[-1] for m in (ours, small)]
    assert torch.equal(*states)
    assert ours.blocks[0].attn.heads == small.blocks[0].attn.heads


def test_edited_slopes_come_along_as_they_do_through_files(demo, tmp_path):
    edited = copy.deepcopy(demo)
    edited.blocks[1].attn.slopes[0] = 9.0
    ours = with_task_head(edited, bl.BloomForTokenClassification, ["a", "b"])
    edited.save_pretrained(tmp_path)
    with notices("classifier"):
        stored = bl.BloomForTokenClassification.from_pretrained(tmp_path)
    text = "The silver parrot met a green turtle."
    states = [m(text, output_hidden_states=True).hidden_states[-1] for m in (ours, stored)]
    assert torch.equal(*states)
    assert ours.blocks[1].attn.slopes[0] == 9
    ours.blocks[1].attn.slopes[0] = 1.0
    assert edited.blocks[1].attn.slopes[0] == 9  # a copy


@pytest.mark.parametrize("kind", KINDS)
def test_the_head_is_new_even_where_the_model_has_one(demo, kind):
    first = with_task_head(demo, kind)
    second = with_task_head(first, kind, seed=5)
    heads = [getattr(one, KINDS[kind]).weight for one in (first, second)]
    assert not torch.equal(*heads)
    assert torch.equal(heads[1], getattr(with_task_head(demo, kind, seed=5), KINDS[kind]).weight)
    if kind is not bl.BloomForQuestionAnswering:
        assert len(getattr(with_task_head(first, kind, list("abcde")), KINDS[kind]).weight) == 5
    assert torch.equal(first.W_E, second.W_E)


def test_an_unembedding_of_its_own_comes_along():
    model = pair(tie_word_embeddings=False)[1]
    task = with_task_head(model, bl.BloomForCausalLM)
    ids = tokens(1, 5)
    assert torch.equal(task(ids).logits, model(ids).logits)


def test_a_model_of_other_sizes_than_its_config_says_is_refused(demo):
    odd = copy.deepcopy(demo)
    odd.config.vocab_size += 8
    with pytest.raises(InputError, match=r"embed.weight is \(.*config"):
        with_task_head(odd, bl.BloomForTokenClassification, ["a", "b"])
    odd = copy.deepcopy(demo)
    odd.config.n_layer += 1
    with pytest.raises(InputError, match=r"lacks .*blocks.6.*config"):
        with_task_head(odd, bl.BloomForTokenClassification, ["a", "b"])


def test_labels_that_are_none_are_refused(demo):
    for labels in ([], ["a", "a"]):
        with pytest.raises(InputError, match="expected different names"):
            with_task_head(demo, bl.BloomForTokenClassification, labels)
    with pytest.raises(InputError, match="2 texts and 1 labels"):
        text_examples(demo.tokenizer, ["a", "b"], labels=["x"], classes=["x"])
    with pytest.raises(UnknownNameError, match="label 'y'"):
        text_examples(demo.tokenizer, ["a", "b"], labels=["x", "y"], classes=["x"])
    words = part_of_speech("en")
    with pytest.raises(UnknownNameError, match="piece of a word 'lat'"):
        word_examples(demo, words, ["NOUN"], piece="lat")
    with pytest.raises(InputError, match="no word has one of the labels"):
        word_examples(demo, words, ["noun"])
    nothing = SimpleNamespace(predictions=np.zeros((2, 3)), label_ids=np.full(2, -100))
    with pytest.raises(InputError, match="nothing to score"):
        label_scores(nothing)


@pytest.mark.parametrize("language", ["en", "hi"])
@pytest.mark.parametrize("piece", ["first", "last"])
def test_each_word_has_its_label_on_its_first_or_last_token(demo, language, piece):
    words = part_of_speech(language)
    classes = ["NOUN", "VERB", "ADJ"]
    examples = word_examples(demo, words, classes, piece=piece)
    offsets = demo.tokenizer(list(words.texts), return_offsets_mapping=True)
    for text, example in enumerate(examples):
        assert example["input_ids"] == offsets["input_ids"][text]
        expected = [-100] * len(example["input_ids"])
        for (start, stop), label in zip(words.spans[text], words.labels[text], strict=True):
            inside = [
                i
                for i, (a, b) in enumerate(offsets["offset_mapping"][text])
                if words.texts[text][max(a, start) : min(b, stop)].strip()
            ]
            if label in classes:
                expected[inside[0 if piece == "first" else -1]] = classes.index(label)
        assert example["labels"] == expected


def test_scores_are_those_counted_by_hand():
    logits = np.eye(3)[[0, 1, 2, 2]]
    found = label_scores(SimpleNamespace(predictions=logits, label_ids=np.array([0, 1, 1, 1])))
    assert (found["accuracy"], found["majority"]) == (0.5, 0.75)
    assert 0 <= found["low"] < 0.5 < found["high"] <= 1
    tokens = np.eye(3)[[[0, 1, 2], [2, 0, 1]]]
    found = label_scores(
        SimpleNamespace(predictions=tokens, label_ids=np.array([[0, -100, 1], [2, 0, -100]]))
    )
    assert (found["accuracy"], found["majority"]) == (0.75, 0.5)
    assert (found["low"], found["high"]) == (0.5, 1.0)  # texts: 1 of 2, 2 of 2


def trained(model, examples, collate, folder, **settings):
    arguments = TrainingArguments(
        output_dir=str(folder), report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
        logging_strategy="no", dataloader_pin_memory=False, learning_rate=1e-3,
        per_device_train_batch_size=8, **settings,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, data_collator=collate, compute_metrics=label_scores
    )
    trainer.train_dataset = examples
    trainer.train()
    return trainer


def test_languages_are_learned_under_trainer(demo, tmp_path):
    texts = language_identification(["en", "zh"])
    examples = text_examples(demo.tokenizer, texts.texts, labels=texts.labels, classes=["en", "zh"])
    model = with_task_head(demo, bl.BloomForSequenceClassification, ["en", "zh"])
    trainer = trained(
        model, examples[:20] + examples[50:70], DataCollatorWithPadding(demo.tokenizer), tmp_path,
        num_train_epochs=2,
    )  # fmt: skip
    scores = trainer.predict(examples[40:50] + examples[90:]).metrics
    assert scores["test_majority"] == 0.5
    assert scores["test_accuracy"] > 0.9


def test_parts_of_speech_are_learned_under_trainer(demo, tmp_path):
    words = part_of_speech("en")
    classes = sorted({name for some in words.labels for name in some if name})
    examples = word_examples(demo, words, classes)
    model = with_task_head(demo, bl.BloomForTokenClassification, classes)
    collate = DataCollatorForTokenClassification(demo.tokenizer)
    trainer = trained(model, examples[:40], collate, tmp_path, num_train_epochs=2)
    scores = trainer.predict(examples[40:]).metrics
    assert scores["test_accuracy"] > scores["test_majority"] + 0.1
