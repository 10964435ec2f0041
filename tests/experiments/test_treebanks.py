"""Treebanks: the excerpts counted by hand, files written by hand, bad lines named."""

import re
from collections import Counter
from itertools import pairwise

import pytest

from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.probe_labels import label_examples, without_rare
from bloomlab.experiments.task_files import EXCERPTS
from bloomlab.experiments.tasks import (
    dependency_relations,
    language_identification,
    part_of_speech,
)

LANGUAGES = ("ar", "en", "es", "fr", "hi", "id", "pt", "zh")
OPEN = {"ADJ", "ADV", "INTJ", "NOUN", "PROPN", "VERB"}
CLOSED = {"ADP", "AUX", "CCONJ", "DET", "NUM", "PART", "PRON", "SCONJ"}
TAGS = OPEN | CLOSED | {"PUNCT", "SYM", "X"}


def row(index, form, tag="X", head=0, relation="root", misc="_"):
    return f"{index}\t{form}\t_\t{tag}\t_\t_\t{head}\t{relation}\t_\t{misc}"


def written(folder, *lines, end="\n"):
    file = folder / "xx_test.conllu"
    file.write_bytes((end.join(lines) + end).encode())
    return file


def shown(words, text=0):
    return [words.texts[text][a:b] for a, b in words.spans[text]]


def test_the_first_english_sentence_is_as_a_reader_sees_it():
    words = part_of_speech("en")
    assert words.texts[0] == (
        "“While much of the digital transition is unprecedented in the United States, the peaceful "
        "transition of power is not,” Obama special assistant Kori Schulman wrote in a blog post "
        "Monday."
    )
    forms = shown(words)
    assert len(forms) == 35
    assert forms[:4] == ["“", "While", "much", "of"]
    assert forms[-7:] == ["wrote", "in", "a", "blog", "post", "Monday", "."]
    tags = dict(zip(forms, words.labels[0], strict=True))
    assert (tags["While"], tags["wrote"], tags["Kori"]) == ("SCONJ", "VERB", "PROPN")
    assert Counter(words.labels[0])["PUNCT"] == 5
    assert [forms[i] for i, head in enumerate(words.heads[0]) if head == -1] == ["wrote"]
    assert forms[words.heads[0][forms.index("blog")]] == "post"
    relations = dependency_relations("en").labels[0]
    assert relations[forms.index("wrote")] == "root"
    assert relations[forms.index("blog")] == "compound"


def test_fused_words_share_a_place_and_have_no_label():
    words = part_of_speech("fr")
    forms = shown(words)
    assert len(forms) == 49
    assert forms[13:17] == ["précédent", "aux", "aux", "États-Unis"]
    assert words.labels[0][13:17] == ("NOUN", None, None, "PROPN")
    assert [forms[i] for i, label in enumerate(words.labels[0]) if label is None] == [
        *["aux"] * 2,
        *["du"] * 2,
    ]
    assert words.heads[0][14:16] == (16, 16)


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_excerpt_is_whole(language):
    words, relations = part_of_speech(language), dependency_relations(language)
    text = (EXCERPTS / "ud_pud" / f"{language}_pud-ud-test.conllu").read_text("utf-8")
    assert len(words) == 50
    assert words.ids == part_of_speech("en").ids == relations.ids
    assert sum(map(len, words.spans)) == len(re.findall(r"^\d+\t", text, re.MULTILINE))
    assert {x for some in words.labels for x in some} <= TAGS | {None}
    assert not any(":" in (x or "") for some in relations.labels for x in some)
    for spans, labels, heads in zip(words.spans, words.labels, words.heads, strict=True):
        assert len(spans) == len(labels) == len(heads)
        assert all(a[0] <= b[0] and a[1] <= b[1] for a, b in pairwise(spans))
        for word in range(len(heads)):  # each walk up ends at the one root
            path = [word]
            while heads[path[-1]] >= 0:
                path.append(heads[path[-1]])
                assert len(path) <= len(heads)
        assert heads.count(-1) == 1


def test_languages_are_told_with_the_same_sentences_in_each():
    texts = language_identification()
    assert Counter(texts.labels) == dict.fromkeys(LANGUAGES, 50)
    assert texts.ids[:50] == texts.ids[50:100]
    some = language_identification(["zh", "en"])
    assert some.labels == ("zh",) * 50 + ("en",) * 50
    assert some.texts[50:] == part_of_speech("en").texts


def test_words_lie_on_tokens_of_the_demo(demo):
    words = part_of_speech("fr")
    labels = without_rare(words.labels)
    given = label_examples(demo, words.texts, labels, spans=words.spans)
    assert len(given.labels) == sum(x is not None for some in labels for x in some)
    assert given.unit == "span"


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_file_written_by_hand(tmp_path, end):
    file = written(
        tmp_path,
        "# sent_id = a",
        "# text = I'm at 10 000 del mar.",
        row("1-2", "I'm"),
        row(1, "I", "PRON", 3, "nsubj:pass"),
        row(2, "'m", "AUX", 3, "cop"),
        row(3, "at", "ADP", 0),
        row("3.1", "was", "VERB", "_"),
        row(4, "10 000", "NUM", 3, "obj"),
        row("5-6", "del"),
        row(5, "de", "ADP", 7, "case"),
        row(6, "el", "DET", 7, "det"),
        row(7, "mar", "_", 3, "_", "Gloss=x|SpaceAfter=No"),
        row(8, ".", "PUNCT", 3, "punct"),
        "",
        row(1, "no", misc="SpaceAfter=No"),
        row(2, "text", head=1),
        end=end,
    )
    words = part_of_speech("xx", tmp_path)
    assert words == part_of_speech("xx", file)
    assert words.ids == ("a", "2")
    assert words.texts == ("I'm at 10 000 del mar.", "notext")
    assert shown(words) == ["I", "'m", "at", "10 000", "del", "del", "mar", "."]
    assert words.labels[0] == ("PRON", "AUX", "ADP", "NUM", None, None, None, "PUNCT")
    assert words.heads == ((2, 2, -1, 2, 6, 6, 2, 2), (-1, 0))
    assert dependency_relations("xx", file).labels[0][0] == "nsubj"
    assert dependency_relations("xx", file, subtypes=True).labels[0][0] == "nsubj:pass"


@pytest.mark.parametrize(
    ("lines", "line", "fault"),
    [
        ([row(1, "a"), "2\tb"], 2, "has 2 columns"),
        ([row(1, "a"), row(3, "b")], 2, "ID '3', expected 2"),
        ([row("2-3", "ab"), row(1, "a")], 1, "ID '2-3', expected 1-"),
        ([row("1-2", "ab"), row("1-3", "abc"), row(1, "a")], 2, "ID '1-3'"),
        ([row("1-3", "ab"), row(1, "a"), row(2, "b")], 1, "spans words 1 to 3 of 2"),
        ([row(1, "a"), row(2, "b", head=3)], 2, "head '3', expected 0 ... 2"),
        ([row(1, "a", head="_")], 1, "head '_'"),
        (["# text = a c", row(1, "a"), row(2, "b")], 3, "form 'b', but the text goes on with ' c'"),
        (["# text = a", row(1, "a"), row(2, "b")], 3, "goes on with ''"),
    ],
)
def test_a_bad_line_is_named(tmp_path, lines, line, fault):
    written(tmp_path, *lines)
    with pytest.raises(InputError, match=re.escape(f"xx_test.conllu, line {line} ")) as error:
        part_of_speech("xx", tmp_path)
    assert fault in str(error.value)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(UnknownNameError, match="for 'de'"):
        part_of_speech("de")
    with pytest.raises(UnknownNameError, match="treebank of language 'de'"):
        language_identification(["en", "de"])
    with pytest.raises(InputError, match="no folder or file"):
        part_of_speech("en", tmp_path / "none")
    with pytest.raises(InputError, match="no file whose name matches"):
        part_of_speech("en", tmp_path)
    file = written(tmp_path, "# nothing")
    with pytest.raises(InputError, match="xx_test.conllu has no sentences"):
        part_of_speech("xx", tmp_path)
    file.with_name("xx_train.conllu").write_text("")
    with pytest.raises(InputError, match="several files of 'xx'"):
        part_of_speech("xx", tmp_path)
    file.write_bytes(b"# one\n# \xff\n")
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        part_of_speech("xx", file)
