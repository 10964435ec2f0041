"""What training did to heads: weight changes by hand, ablations against a loop over items."""

import copy

import pytest
import torch
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
)

import bloomlab as bl
from bloomlab.errors import InputError
from bloomlab.experiments import (
    ablate_task_heads,
    answer_examples,
    head_changes,
    text_examples,
    with_task_head,
    word_examples,
)
from bloomlab.experiments.tasks import part_of_speech, question_answering


def test_changes_are_those_written_by_hand(demo):
    tuned = with_task_head(demo, bl.BloomForTokenClassification, ["a", "b"])
    assert not head_changes(demo, tuned).any()
    with torch.no_grad():
        for name in ("W_Q", "W_K", "W_V", "W_O"):
            getattr(tuned.blocks[2].attn, name)[3] *= 1.5
        tuned.blocks[1].attn.W_O[0, 0, 0] += 2.0
    found = head_changes(demo, tuned)
    assert found[2, 3].item() == pytest.approx(0.5, rel=1e-6)
    parts = [
        getattr(demo.blocks[1].attn, name)[0].double() for name in ("W_Q", "W_K", "W_V", "W_O")
    ]
    whole = sum(part.square().sum() for part in parts).sqrt()
    assert found[1, 0].item() == pytest.approx((2.0 / whole).item(), rel=1e-5)
    assert int((found > 0).sum()) == 2


def test_pruned_heads_have_no_change_and_other_shapes_are_refused(demo):
    small = bl.prune_heads(demo, [(0, 1)])
    tuned = with_task_head(small, bl.BloomForTokenClassification, ["a", "b"])
    found = head_changes(small, tuned)
    assert found.isnan().nonzero().tolist() == [[0, 1]]
    with pytest.raises(InputError, match=r"6 layers, 47 heads, width 256, expected .* 48 heads"):
        head_changes(demo, small)


def cases(demo):
    words = part_of_speech("en")
    classes = ["NOUN", "VERB", "ADP"]
    tokenizer = demo.tokenizer
    right = type(tokenizer).from_pretrained(tokenizer.name_or_path or "demo", padding_side="right")
    return {
        "score": (
            with_task_head(demo, bl.BloomForSequenceClassification, ["x", "y"]),
            text_examples(tokenizer, words.texts[:3], labels=["x", "y", "x"], classes=["x", "y"]),
            DataCollatorWithPadding(tokenizer),
        ),
        "classifier": (
            with_task_head(demo, bl.BloomForTokenClassification, classes),
            word_examples(demo, words, classes)[:3],
            DataCollatorForTokenClassification(tokenizer),
        ),
        "qa": (
            with_task_head(demo, bl.BloomForQuestionAnswering),
            answer_examples(right, question_answering("en", sentences=True))[:4],
            DataCollatorWithPadding(right),
        ),
        "unembed": (
            copy.deepcopy(demo),
            [{"input_ids": demo.tokenizer(text)["input_ids"]} for text in words.texts[:3]],
            DataCollatorForLanguageModeling(tokenizer, mlm=False),
        ),
    }


KINDS = ["score", "classifier", "qa", "unembed"]


@pytest.mark.parametrize("name", KINDS)
def test_each_head_is_silenced_as_by_hand(demo, name):
    model, examples, collate = cases(demo)[name]
    found = ablate_task_heads(model, examples, collate, rows=1)

    def losses(heads):
        mask = torch.ones(6, 8)
        for head in heads:
            mask[head] = 0
        batches = [collate([example]) for example in examples]
        return torch.tensor([model(**batch, head_mask=mask).loss.item() for batch in batches])

    clean = losses([])
    assert torch.allclose(found.clean, clean, atol=1e-5)
    for head in [(0, 0), (1, 0), (5, 7)]:
        effects = losses([head]) - clean
        assert found.matrix[head].item() == pytest.approx(effects.mean().item(), abs=5e-6)
        (stderr,) = found.frame.query("layer == @head[0] and head == @head[1]").stderr
        expected = effects.std().item() / len(examples) ** 0.5
        assert stderr == pytest.approx(expected, abs=5e-6)
    assert found.matrix.shape == (6, 8)


@pytest.mark.parametrize("name", KINDS)
def test_padding_counts_for_nothing(demo, name):
    model, examples, collate = cases(demo)[name]
    assert len({len(one["input_ids"]) for one in examples}) > 1
    alone = ablate_task_heads(model, examples, collate, rows=1)
    for rows in (None, 3):
        together = ablate_task_heads(model.train(), examples, collate, rows=rows)
        assert model.training
        assert torch.allclose(alone.effects, together.effects, atol=1e-5)
    single = ablate_task_heads(model.eval(), examples[:1], collate)
    assert torch.allclose(alone.effects[:, :1], single.effects, atol=1e-5)
    assert not model.training


def test_nothing_to_measure_is_refused(demo):
    model, examples, collate = cases(demo)["classifier"]
    with pytest.raises(InputError, match="no examples"):
        ablate_task_heads(model, [], collate)
    empty = [examples[0], {**examples[0], "labels": [-100] * len(examples[0]["labels"])}]
    with pytest.raises(InputError, match="example 1 has no label"):
        ablate_task_heads(model, empty, collate)
    far = [{**examples[0], "labels": [3] * len(examples[0]["labels"])}]
    with pytest.raises(InputError, match="labels run to 3, expected 0 to 2"):
        ablate_task_heads(model, far, collate)


def test_other_tasks_are_refused(demo):
    model, examples, collate = cases(demo)["qa"]
    left = DataCollatorWithPadding(demo.tokenizer)
    assert demo.tokenizer.padding_side == "left"
    with pytest.raises(InputError, match="padded on the left"):
        ablate_task_heads(model, examples, left)
    far = [{**examples[0], "end_positions": 999}]
    with pytest.raises(InputError, match="example 0 .*outside its tokens"):
        ablate_task_heads(model, far, collate)
    model, examples, collate = cases(demo)["score"]
    with pytest.raises(InputError, match="numbers of classes"):
        ablate_task_heads(model, [{**one, "labels": 0.5} for one in examples], collate)
    with pytest.raises(InputError, match="BloomModel has no task"):
        ablate_task_heads(bl.BloomModel(demo.config), examples, collate)
