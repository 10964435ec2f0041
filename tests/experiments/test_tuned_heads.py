"""What training did to heads: weight changes by hand, ablations against a loop over items."""

import pytest
import torch
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding

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
    before = [
        getattr(demo.blocks[2].attn, name)[3].double() for name in ("W_Q", "W_K", "W_V", "W_O")
    ]
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
    assert all(bool(one.any()) for one in before)


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
            text_examples(tokenizer, words.texts[:3], ["x", "y", "x"], ["x", "y"]),
            DataCollatorWithPadding(tokenizer),
        ),
        "classifier": (
            with_task_head(demo, bl.BloomForTokenClassification, classes),
            word_examples(demo, words, classes)[:3],
            DataCollatorForTokenClassification(tokenizer),
        ),
        "qa": (
            with_task_head(demo, bl.BloomForQuestionAnswering),
            answer_examples(tokenizer, question_answering("en", sentences=True))[:2],
            DataCollatorWithPadding(right),
        ),
    }


@pytest.mark.parametrize("name", ["score", "classifier", "qa"])
def test_each_head_is_silenced_as_by_hand(demo, name):
    model, examples, collate = cases(demo)[name]
    found = ablate_task_heads(model, examples, collate, rows=1)

    def loss(heads):
        mask = torch.ones(6, 8)
        for head in heads:
            mask[head] = 0
        total, n = 0.0, 0
        for example in examples:
            batch = collate([example])
            labels = batch.get("labels", batch.get("start_positions"))
            count = int((labels != -100).sum())
            total += model(**batch, head_mask=mask).loss.item() * count
            n += count
        return total / n

    for head in [(0, 0), (1, 0), (5, 7)]:
        assert found[head].item() == pytest.approx(loss([head]) - loss([]), abs=1e-6)
    assert found.shape == (6, 8)
    if name != "qa":  # where padding has logits too
        together = ablate_task_heads(model.train(), examples, collate)
        assert torch.allclose(found, together, atol=1e-5)
        assert model.training


def test_nothing_to_measure_is_refused(demo):
    model, examples, collate = cases(demo)["classifier"]
    with pytest.raises(InputError, match="no examples"):
        ablate_task_heads(model, [], collate)
    empty = [{**examples[0], "labels": [-100] * len(examples[0]["labels"])}]
    with pytest.raises(InputError, match="no label"):
        ablate_task_heads(model, empty, collate)
