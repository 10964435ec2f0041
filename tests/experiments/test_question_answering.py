"""Questions: the excerpts as a reader sees them, files written by hand, bad ones named."""

import json

import pytest

from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.task_files import EXCERPTS
from bloomlab.experiments.tasks import question_answering

LANGUAGES = ("en", "es", "zh")


def row(question="Who?", text="Ada", start=4, **fields):
    return {"question": question, "answers": [{"text": text, "answer_start": start}], **fields}


def written(folder, *paragraphs):
    """Of (text, rows); one article each."""
    data = [{"paragraphs": [{"context": text, "qas": rows}]} for text, rows in paragraphs]
    file = folder / "xquad.xx.json"
    file.write_text(json.dumps({"data": data}))
    return file


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_excerpt_is_whole_and_the_same_in_each_language(language):
    found, english = question_answering(language), question_answering("en")
    raw = json.loads((EXCERPTS / "xquad" / f"xquad.{language}.json").read_text("utf-8"))
    rows = [q for a in raw["data"] for p in a["paragraphs"] for q in p["qas"]]
    assert (found.language, len(found)) == (language, 159)
    assert found.answers == tuple(one["answers"][0]["text"] for one in rows)
    assert (found.ids, found.paragraphs) == (english.ids, english.paragraphs)
    assert [*dict.fromkeys(found.paragraphs)] == list(range(30))
    assert len({*zip(found.paragraphs, found.contexts, strict=True)}) == 30


def test_the_first_question_is_as_a_reader_sees_it():
    found = question_answering("en", sentences=True)
    assert found.questions[0] == "Who lost to the Broncos in the divisional round?"
    assert found.contexts[0] == (
        "The Broncos defeated the Pittsburgh Steelers in the divisional round, 23–16, by scoring "
        "11 points in the final three minutes of the game."
    )
    assert found.answers[0] == "Pittsburgh Steelers"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sentence_keeps_its_answer_and_is_part_of_its_paragraph(language):
    whole, short = (question_answering(language, sentences=on) for on in (False, True))
    assert short.answers == whole.answers
    pairs = list(zip(short.contexts, whole.contexts, strict=True))
    assert all(part in text for part, text in pairs)
    assert sum(len(part) for part, _ in pairs) < sum(len(text) for _, text in pairs) / 2


def test_sentences_end_where_they_do(tmp_path):
    text = "No. Was it 3.5 by Ada? Yes.  He saw Ada. Then Bob."
    rows = [
        row(start=18),
        row(start=36),
        row(text="Ada. Then", start=36),
        row(text="3.5", start=11),
    ]
    written(tmp_path, (text, rows), ("是。艾达吗？不。", [row(text="艾达", start=2)]))
    found = question_answering("xx", tmp_path, sentences=True)
    assert found.contexts == (
        "Was it 3.5 by Ada?",
        "He saw Ada.",
        "He saw Ada. Then Bob.",
        "Was it 3.5 by Ada?",
        "艾达吗？",
    )
    assert found.answers == ("Ada", "Ada", "Ada. Then", "3.5", "艾达")


def test_questions_about_some_paragraphs(tmp_path):
    one, two = ("It, Ada.", [row(id="a"), row("What?", "It", 0)]), ("Why Bob?", [row("W", "Bob")])
    found = question_answering("xx", written(tmp_path, one, two))
    assert (found.ids, found.paragraphs) == (("a", "2", "3"), (0, 0, 1))
    assert found.spans == ((4, 7), (0, 2), (4, 7))
    assert found.about([0, 1]) == found
    some = found.about(range(1, 9))
    assert (some.ids, some.questions, some.answers) == (("3",), ("W",), ("Bob",))
    with pytest.raises(InputError, match=r"about the paragraphs \[7\]; they are about 0 to 1"):
        found.about([7])


def test_what_is_no_question_is_refused(tmp_path):
    for rows in (
        [row(), row(start=3)],
        [row(), row(text="")],
        [row(), row(question=" ")],
        [row(), {"question": "Who?", "answers": []}],
        [row(), "Who?"],
    ):
        file = written(tmp_path, ("It, Ada.", rows))
        with pytest.raises(InputError, match=r"xquad.xx.json, question 2 is .* at `answer_start`"):
            question_answering("xx", tmp_path)
    for text, fault in [
        ('{"data":\n[,]}', "xquad.xx.json, line 2 is not JSON"),
        ("[]", "not in SQuAD's form"),
        ('{"data": [{}]}', "not in SQuAD's form .*paragraphs"),
        ('{"data": []}', "has no questions"),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=fault):
            question_answering("xx", tmp_path)
    with pytest.raises(UnknownNameError, match="for 'eo'"):
        question_answering("eo")
