"""From text files to one row of ids."""

import numpy as np
import pytest

from bloomlab.demo.corpus import Corpus, prepare, read_documents, shares
from bloomlab.errors import InputError
from tests.demo.corpora import tiny_recipe, write_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def test_every_document_comes_back_from_its_ids(folder, tmp_path):
    corpus = prepare(folder, tiny_recipe(), tmp_path)
    for name, documents in read_documents(folder, tiny_recipe()).items():
        start, end = corpus.spans[name]
        text = corpus.tokenizer.decode(corpus.tokens[start:end].astype(int))
        assert text == "".join(document + "</s>" for document in documents)
    assert sum(end - start for start, end in corpus.spans.values()) == len(corpus.tokens)
    assert corpus.tokens.dtype == np.uint16


def test_the_tokenizer_has_blooms_pipeline_and_special_ids(folder, tmp_path, demo):
    tokenizer = prepare(folder, tiny_recipe(), tmp_path).tokenizer
    assert len(tokenizer) == 300
    ids = tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<pad>"])
    assert ids == [0, 1, 2, 3]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 3)
    ours, packaged = tokenizer.backend_tokenizer, demo.tokenizer.backend_tokenizer
    assert repr(ours.pre_tokenizer) == repr(packaged.pre_tokenizer)
    assert tokenizer.decode(tokenizer("héllo\n  wörld 中文")["input_ids"]) == "héllo\n  wörld 中文"


def test_a_corpus_is_made_once_for_the_same_texts(folder, tmp_path):
    kept = tmp_path / "kept"
    first = prepare(folder, tiny_recipe(), kept)
    made = (kept / "tokens.npy").stat().st_mtime_ns
    again = prepare(folder, tiny_recipe(), kept)
    assert (kept / "tokens.npy").stat().st_mtime_ns == made
    assert again.digest == first.digest
    np.testing.assert_array_equal(again.tokens, first.tokens)
    other = prepare(folder, tiny_recipe(vocab_size=310), kept)
    assert other.digest != first.digest
    assert len(Corpus.load(kept).tokenizer) == 310


def test_documents_and_languages_are_left_out(folder):
    recipe = tiny_recipe(languages={"xx": 0.0}, leave_out={"en": r"^the\b"})
    found = read_documents(folder, recipe)
    assert found.keys() == {"en"}
    every = (folder / "en.txt").read_text(encoding="utf-8").split("\n\n\n")
    assert found["en"] == [text for text in every if not text.startswith("the ")]
    assert 0 < len(found["en"]) < len(every)


def test_shares_follow_weight_and_size():
    recipe = tiny_recipe(languages={"a": 3.0}, exponent=0.5)
    assert shares({"a": 100, "b": 400}, recipe) == pytest.approx({"a": 0.6, "b": 0.4})


@pytest.mark.parametrize(
    ("languages", "there", "message"),
    [({"zz": 1.0}, True, "there is no zz"), ({}, False, "there is none at all")],
)
def test_a_corpus_that_is_not_there_is_told(folder, tmp_path, languages, there, message):
    with pytest.raises(InputError, match=message):
        read_documents(folder if there else tmp_path, tiny_recipe(languages=languages))
