"""Answers as spans: columns counted by hand, scores against brute force, a model that knows all."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import bloomlab as bl
from bloomlab.errors import InputError
from bloomlab.experiments import answer_examples, with_task_head
from bloomlab.experiments.tasks import Questions, marked_answers, question_answering, score_answers


def made(*given):
    """Of (question, text, answer)."""
    spans = [(text.index(answer), text.index(answer) + len(answer)) for _, text, answer in given]
    questions, contexts, _ = zip(*given, strict=True)
    numbers = tuple(range(len(given)))
    return Questions(
        language="xx", ids=tuple(map(str, numbers)), paragraphs=numbers, questions=questions,
        contexts=contexts, spans=tuple(spans),
    )  # fmt: skip


class Oracle:
    """Marks given columns, whatever it reads; all others alike."""

    def __init__(self, tokenizer, columns):
        self.tokenizer, self.columns, self.seen = tokenizer, list(columns), 0
        self.config, self.device = SimpleNamespace(pad_token_id=3), torch.device("cpu")

    def __call__(self, ids, attention_mask, use_cache):
        start, end = torch.zeros(ids.shape), torch.zeros(ids.shape)
        for row in range(len(ids)):
            first, last = self.columns[self.seen]
            start[row, first], end[row, last] = 5.0, 5.0
            start[row, 0] = end[row, 0] = 9.0  # in the question: not to be marked
            self.seen += 1
        return SimpleNamespace(start_logits=start, end_logits=end)


@pytest.mark.parametrize("language", ["en", "es", "zh"])
def test_columns_spell_the_answer(demo, language):
    questions = question_answering(language, sentences=True)
    examples = answer_examples(demo.tokenizer, questions)
    assert len(examples) == len(questions)
    given = zip(examples, questions.questions, questions.contexts, questions.answers, strict=True)
    for example, question, text, answer in given:
        ids = example["input_ids"]
        assert demo.tokenizer.decode(ids) == f"{question}\n{text}"
        assert example["attention_mask"] == [1] * len(ids)
        first, last = example["start_positions"], example["end_positions"]
        spelt = demo.tokenizer.decode(ids[first : last + 1])
        assert answer in spelt or "�" in spelt  # tokens may be wider than the answer
        assert answer not in demo.tokenizer.decode(ids[first + 1 : last + 1])
        assert answer not in demo.tokenizer.decode(ids[first:last])


def test_whoever_marks_the_answers_gets_all_and_the_question_is_never_marked(demo):
    questions = question_answering("en", sentences=True).about(range(8))
    examples = answer_examples(demo.tokenizer, questions)
    columns = [(one["start_positions"], one["end_positions"]) for one in examples]
    longest = max(last - first + 1 for first, last in columns)
    found = score_answers(Oracle(demo.tokenizer, columns), questions, longest=longest)
    assert found.score.tolist() == ["exact", "overlap"]
    assert found.value.tolist() == found.low.tolist() == found.high.tolist() == [1.0, 1.0]
    assert (found.n == len(questions)).all()
    said = marked_answers(Oracle(demo.tokenizer, columns), questions, longest=longest)
    assert all(answer in one for one, answer in zip(said, questions.answers, strict=True))


def test_chance_and_overlap_are_those_counted_by_hand(demo):
    questions = made(("Who?", "a b c d", "b c"))
    texts = demo.tokenizer("Who?\na b c d")["input_ids"]
    begin = len(texts) - 4
    assert demo.tokenizer.decode(texts[begin:]) == "a b c d"
    found = score_answers(
        Oracle(demo.tokenizer, [(begin + 2, begin + 3)]), questions, longest=3
    ).set_index("score")
    assert found.value["exact"] == 0
    assert found.value["overlap"] == pytest.approx(2 / 6)  # "c" of "c d" and "b c"
    spans = [(i, j) for i in range(4) for j in range(i, min(4, i + 3))]  # letters at 0 2 4 6
    overlap = [
        2 * max(0, min(2 * j + 1, 5) - max(2 * i, 2)) / (2 * j + 1 - 2 * i + 3) for i, j in spans
    ]
    assert len(spans) == 9
    assert found.chance["exact"] == pytest.approx(1 / 9)
    assert found.chance["overlap"] == pytest.approx(sum(overlap) / 9)


def test_questions_about_one_paragraph_are_drawn_together(demo):
    one = ("Who?", "a b c d", "b")
    begin = len(demo.tokenizer("Who?\na b c d")["input_ids"]) - 4
    right, wrong = (begin + 1, begin + 1), (begin + 3, begin + 3)
    questions = made(*[one] * 8)

    def scores(*paragraphs):
        oracle = Oracle(demo.tokenizer, [right] * 4 + [wrong] * 4)
        return score_answers(oracle, replace(questions, paragraphs=paragraphs), longest=1)

    single, apart = scores(*[0] * 8), scores(*range(8))
    assert (single.low == single.high).all()
    two = scores(*[0] * 4, *[1] * 4)
    assert (two.low[0], two.high[0]) == (0, 1)  # both of a kind in half of the draws
    assert 0 < apart.low[0] < 0.5 < apart.high[0] < 1


def test_a_model_scores_the_same_alone_and_in_a_batch(demo):
    model = with_task_head(demo, bl.BloomForQuestionAnswering)
    questions = question_answering("es", sentences=True).about(range(3))
    together = marked_answers(model, questions)
    alone = [marked_answers(model, questions.about([i])) for i in range(3)]
    assert together == [one for some in alone for one in some]
    assert len(score_answers(model, questions)) == 2


def test_what_has_no_span_is_refused(demo):
    questions = made(("Who?", "a b", "b"))
    model = with_task_head(demo, bl.BloomForQuestionAnswering)
    with pytest.raises(InputError, match="longest is 0"):
        score_answers(model, questions, longest=0)
    with pytest.raises(InputError, match="longest is 0"):
        marked_answers(model, questions, longest=0)
