"""Minimal pairs: files read, sentences scored as whole forwards score them, alone or together."""

import json
from collections import Counter

import pytest
import torch

from bloomlab.analysis.intervals import bootstrap_mean
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.tasks import Pairs, minimal_pairs, score_pairs, sentence_log_probs

SOME = (
    "Katherine can't help herself.",
    "Yes.",
    "这是一个很长的句子，有很多词。",
    " A b c d e f g.",
)


def alone(model, text, start=1):
    """Log-probability by one forward of the token before and the text's."""
    ids = torch.tensor([[start, *model.tokenizer(text)["input_ids"]]])
    with torch.no_grad():
        logs = model(ids, return_type="logits")[0, :-1].double().log_softmax(-1)
    return float(logs.gather(-1, ids[0, 1:, None]).sum())


def test_excerpts_are_twenty_pairs_of_twelve_paradigms():
    pairs = minimal_pairs()
    assert len(pairs) == 240
    assert set(Counter(pairs.paradigms).values()) == {20}
    assert pairs.paradigms[0] == "anaphor_gender_agreement"
    assert (pairs.good[1], pairs.bad[1]) == (
        "Marie had insulted herself.",
        "Marie had insulted himself.",
    )
    assert all(good != bad for good, bad in zip(pairs.good, pairs.bad, strict=True))
    assert minimal_pairs("passive_1").paradigms == ("passive_1",) * 20


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_texts_are_scored_as_if_alone(demo, batch_size):
    expected = torch.tensor([alone(demo, text) for text in SOME])
    got = sentence_log_probs(demo, SOME, batch_size=batch_size)
    assert torch.allclose(got, expected.double(), atol=1e-3)
    assert demo.config.bos_token_id == 1
    other = sentence_log_probs(demo, SOME[:1], start=2)
    assert float(other[0]) == pytest.approx(alone(demo, SOME[0], start=2), abs=1e-3)
    assert float(other[0]) != pytest.approx(float(got[0]), abs=1e-2)


@pytest.mark.slow
def test_a_row_a_paradigm_with_share_interval_and_margin(demo):
    pairs = minimal_pairs(["principle_A_domain_1", "npi_present_1"])
    pairs = Pairs(good=pairs.good[12:26], bad=pairs.bad[12:26], paradigms=pairs.paradigms[12:26])
    frame = score_pairs(demo, pairs, batch_size=5, level=0.9)
    both = zip(pairs.good, pairs.bad, strict=True)
    margin = torch.tensor([alone(demo, good) - alone(demo, bad) for good, bad in both])
    assert frame.paradigm.tolist() == ["principle_A_domain_1", "npi_present_1"]
    assert frame.n.tolist() == [8, 6]
    for row, some in zip(frame.itertuples(), margin.double().split([8, 6]), strict=True):
        low, high = bootstrap_mean((some > 0).double(), 0.9)
        assert row.accuracy == pytest.approx(float((some > 0).double().mean()))
        assert (row.low, row.high) == pytest.approx((float(low), float(high)))
        assert row.margin == pytest.approx(float(some.mean()), abs=1e-3)


def test_as_likely_is_not_likelier(demo):
    same = Pairs(good=("A cat.",), bad=("A cat.",), paradigms=("none",))
    assert score_pairs(demo, same).accuracy.tolist() == [0.0]


def test_a_folder_and_its_bad_lines(tmp_path):
    file = tmp_path / "mine.jsonl"
    good = json.dumps({"sentence_good": "a", "sentence_bad": "b"})
    file.write_text(f"{good}\n\n{good}\n")
    assert minimal_pairs(source=tmp_path) == minimal_pairs("mine", file)
    assert len(minimal_pairs(source=tmp_path)) == 2
    for bad, fault in [
        ("{", "mine.jsonl, line 3 is not JSON"),
        ("[1]", "line 3 holds .1., expected an object"),
        ('{"sentence_good": "a"}', "line 3 has sentence_bad = None, expected a text"),
        ('{"sentence_good": " ", "sentence_bad": "b"}', "line 3 has sentence_good = ' '"),
    ]:
        file.write_text(f"{good}\n\n{bad}\n")
        with pytest.raises(InputError, match=fault):
            minimal_pairs(source=tmp_path)
    file.write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        minimal_pairs(source=tmp_path)


def test_wrong_input_is_refused(demo):
    with pytest.raises(UnknownNameError, match="Did you mean 'passive_1'"):
        minimal_pairs("passive_9")
    with pytest.raises(InputError, match="2 good and 1 bad"):
        Pairs(good=("a", "b"), bad=("a",), paradigms=("x", "x"))
    with pytest.raises(InputError, match="and some"):
        Pairs(good=(), bad=(), paradigms=())
    with pytest.raises(InputError, match="is empty"):
        sentence_log_probs(demo, ["a", ""])
    with pytest.raises(InputError, match="expected several texts"):
        sentence_log_probs(demo, [])
