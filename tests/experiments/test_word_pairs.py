"""Word pairs: the excerpts, and files that are no lists of pairs."""

import pytest

from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.tasks import word_pairs

FIRST = {
    "antonym": ("flawed", "perfect"),
    "country-capital": ("Afghanistan", "Kabul"),
    "english-french": ("dependent", "dépendant"),
    "english-spanish": ("proposal", "propuesta"),
    "present-past": ("accelerate", "accelerated"),
    "singular-plural": ("wallet", "wallets"),
}


@pytest.mark.parametrize("task", FIRST)
def test_excerpts_are_fifty_pairs(task):
    found = word_pairs(task)
    assert (found.task, len(found), found.pairs[0]) == (task, 50, FIRST[task])
    assert len(set(found.pairs)) == 50


def test_what_is_no_list_of_pairs_is_refused(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('[{"input": "a", "output": "b"}]')
    assert word_pairs("mine", tmp_path).pairs == (("a", "b"),)
    for text, fault in [
        ('[\n{"input": "a",}]', "mine.json, line 2 is not JSON"),
        ("{}", "mine.json holds {}, expected a list of pairs"),
        ("[]", "expected a list of pairs"),
        ('[{"input": "a", "output": "b"}, {"input": "a"}]', "mine.json, pair 2 is"),
        ('["a"]', "pair 1 is 'a'"),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=fault):
            word_pairs("mine", tmp_path)
    with pytest.raises(UnknownNameError, match="for 'antonyms'. Did you mean 'antonym'"):
        word_pairs("antonyms")
