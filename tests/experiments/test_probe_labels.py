"""Labels laid onto tokens: by hand and by the tokenizer's own offsets."""

import numpy as np
import pytest
import torch

from bloomlab.errors import InputError, TokenizerError
from bloomlab.experiments.probe_labels import label_examples, without_rare, word_spans
from tests.tiny import pair, tokens

TEXTS = ["Hello world, ça va?", "日本 中文字", "The unbelievable cat isn't here."]
WORDS = [
    ["Hello", "world", ",", "ça", "va", "?"],
    ["日本", "中文字"],
    ["The", "unbelievable", "cat", "is", "n't", "here", "."],
]
LABELS = [
    ["a", "b", "p", "a", "b", "p"],
    ["b", "b"],
    ["a", "b", "a", "b", "a", "b", "p"],
]


def test_words_lie_on_their_tokens(demo):
    found = label_examples(demo, TEXTS, LABELS, spans=WORDS)
    assert found.unit == "span"
    assert found.classes == ("a", "b", "p")
    rows = zip(found.spans.text, found.spans.first, found.spans.last, strict=True)
    flat = [word for words in WORDS for word in words]
    for (text, first, last), word in zip(rows, flat, strict=True):
        said = demo.tokenizer.decode(found.data.tokens[text, first : last + 1])
        assert word in said
        assert len(said.strip()) <= len(word) + 1  # "is" and "n't" may share a token
        assert found.data.attended[text, first]
    assert [found.classes[i] for i in found.labels] == [x for one in LABELS for x in one]


def test_padding_side_moves_spans_with_the_tokens(demo):
    together = label_examples(demo, TEXTS, LABELS, spans=WORDS)
    width = together.data.tokens.shape[1]
    labels = [["a", "a", "b", "b", "a", "b"], ["a", "a"], ["a", "b", "a", "b", "a", "b", "a"]]
    alone = label_examples(demo, TEXTS[:1], labels[:1], spans=WORDS[:1])
    shift = width - alone.data.tokens.shape[1]
    first = together.spans.first[together.spans.text == 0]
    assert torch.equal(alone.spans.first + shift, first)


def test_equal_words_have_equal_types_wherever_they_stand(demo):
    texts = ["the cat saw the dog", "a dog saw the cat"]
    spans = [text.split() for text in texts]
    found = label_examples(demo, texts, [[1, 2, 3, 1, 2], [1, 2, 3, 1, 2]], spans=spans)
    assert found.types.tolist() == [0, 1, 2, 0, 3, 4, 3, 2, 0, 1]


def test_a_label_of_none_is_left_out(demo):
    labels = [["a", None, "p", "a", "b", "p"], ["b", "b"], [None] * 7]
    found = label_examples(demo, TEXTS, labels, spans=WORDS)
    assert found.spans.text.tolist() == [0] * 5 + [1, 1]


def test_labels_of_tokens_are_those_of_attended_columns():
    model = pair()[1]
    ids, mask = tokens(2, 5), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    found = label_examples(model, ids, [[1, 2, 1], [2, 1, None, 2, 1]], attention_mask=mask)
    assert found.unit == "token"
    assert found.spans.text.tolist() == [0] * 3 + [1] * 4
    assert found.spans.first.tolist() == [2, 3, 4, 0, 1, 3, 4]
    assert torch.equal(found.types, ids[found.spans.text, found.spans.first])
    tensor = torch.tensor([[-100, 7, 1, 2, 1], [2, 1, -100, 2, 1]])
    other = label_examples(model, ids, tensor, attention_mask=mask)
    assert torch.equal(other.labels, found.labels)
    assert torch.equal(other.spans.first, found.spans.first)


def test_labels_of_texts_span_the_text():
    model = pair()[1]
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
    found = label_examples(model, tokens(4, 4), ["x", "y", "x", "y"], attention_mask=mask)
    assert found.unit == "text"
    assert found.spans.first.tolist() == [2, 0, 0, 0]
    assert found.spans.last.tolist() == [3, 2, 3, 3]


def test_rare_labels_become_none():
    assert without_rare([["a", "b"], ["a", None, "c"]]) == [["a", None], ["a", None, None]]
    assert without_rare(["x", "y", "x"]) == ["x", None, "x"]
    assert without_rare(["x", "y", "x"], least=3) == [None, None, None]


def test_words_are_found_in_order():
    assert word_spans("a man, a plan", ["a", "man", ",", "a", "plan"])[3:] == [(7, 8), (9, 13)]
    with pytest.raises(InputError, match="the word 'man' is not in .* after character 13"):
        word_spans("a man, a plan", ["a", "plan", "man"])


def test_labels_that_do_not_match_name_the_text(demo):
    with pytest.raises(InputError, match=r"text 1 has 4 tokens and 2 labels"):
        label_examples(demo, TEXTS[:2], [list("aabbaabba"), ["a", "b"]])
    with pytest.raises(InputError, match=r"text 2 .* has 7 spans and 6 labels"):
        label_examples(demo, TEXTS, [*LABELS[:2], LABELS[2][:6]], spans=WORDS)
    with pytest.raises(InputError, match="there are 3 texts and 2 labels"):
        label_examples(demo, TEXTS, ["a", "b"])
    with pytest.raises(InputError, match="text 1 has labels of another form"):
        label_examples(demo, TEXTS, [["a"], "b", ["a"]])
    with pytest.raises(InputError, match="text 1: the word 'nothing' is not in"):
        label_examples(demo, TEXTS[:2], [["a"], ["a"]], spans=[["world"], ["nothing"]])
    with pytest.raises(InputError, match=r"text 0 .* has no token in the span \(5, 6\)"):
        label_examples(demo, TEXTS[:1], [["a"]], spans=[[(5, 6)]])
    with pytest.raises(InputError, match=r"no token in the span \(0, 99\)"):
        label_examples(demo, TEXTS[:1], [["a"]], spans=[[(0, 99)]])
    with pytest.raises(InputError, match="3 texts and 1 lists of spans"):
        label_examples(demo, TEXTS, LABELS, spans=WORDS[:1])


def test_classes_that_teach_nothing_are_named(demo):
    with pytest.raises(
        InputError, match=r"1 classes have one example: 'z' \(text 2\).*without_rare"
    ):
        label_examples(demo, TEXTS * 2, ["a", "b", "z", "a", "b", "a"])
    with pytest.raises(InputError, match=r"1 classes \['a'\], expected 2 or more"):
        label_examples(demo, TEXTS, ["a", "a", "a"])


def test_labels_of_another_kind_are_refused(demo):
    for labels in ([0.5, 1.5, 0.5], torch.tensor([0.5, 1.5, 0.5])):
        with pytest.raises(InputError, match="expected a name|expected names"):
            label_examples(demo, TEXTS, labels)
    with pytest.raises(InputError, match="some labels are names and some numbers"):
        label_examples(demo, TEXTS, ["a", 1, "a"])
    with pytest.raises(InputError, match=r"labels has shape \(3, 2\)"):
        label_examples(demo, TEXTS, torch.zeros(3, 2).long())
    with pytest.raises(InputError, match="give texts, not token ids"):
        label_examples(demo, tokens(1, 4), [["a"]], spans=[[(0, 1)]])


def test_spans_need_a_tokenizer():
    with pytest.raises(TokenizerError):
        label_examples(pair()[1], TEXTS, LABELS, spans=WORDS)


def test_numbers_of_numpy_are_numbers(demo):
    labels = list(np.arange(4) % 2)
    found = label_examples(demo, ["one", "two", "three", "four"], labels)
    assert found.classes == (0, 1)
    assert found.labels.tolist() == [0, 1, 0, 1]
