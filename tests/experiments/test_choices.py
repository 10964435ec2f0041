"""Choices: prompts put together, options scored as whole forwards score them."""

import json

import pytest
import torch

from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.tasks import Choices, causal_choices, score_choices

ITEM = {"premise": "Hujan.", "choice1": "A a.", "choice2": "B b.", "question": "cause", "label": 1}


def alone(model, prefix, option):
    """Log-probability of each token of an option, by one forward."""
    first, last = (model.tokenizer(text)["input_ids"] for text in (prefix, option))
    ids = torch.tensor([first + last])
    with torch.no_grad():
        logs = model(ids, return_type="logits")[0, :-1].double().log_softmax(-1)
    return logs.gather(-1, ids[0, 1:, None])[len(first) - 1 :, 0]


@pytest.mark.parametrize("language", ["id", "sw", "ta", "vi", "zh"])
def test_excerpts_are_thirty_items(language):
    choices = causal_choices(language)
    assert len(choices) == 30
    assert sum(choices.right) == 11
    assert {len(options) for options in choices.options} == {2}


def test_prompts_join_premise_connector_and_choice():
    chinese, indonesian = causal_choices("zh"), causal_choices("id")
    assert chinese.prefixes[:2] == ("该物品用气泡包装纸包着因为", "我掏空了口袋所以")
    assert chinese.options[0] == ("它很易碎。", "它很小。")
    assert indonesian.prefixes[0] == "Barang itu dikemas dalam bungkus gelembung karena"
    assert indonesian.options[0] == (" barang itu rapuh.", " barang itu kecil.")
    assert causal_choices("ta").prefixes[0].endswith("பொட்டலம் கட்டப்பட்டது காரணமாக")


def test_options_are_judged_by_sum_and_by_mean_as_if_alone(demo):
    every = causal_choices("vi")
    n = 8
    choices = Choices(prefixes=every.prefixes[:n], options=every.options[:n], right=every.right[:n])
    frame = score_choices(demo, choices).set_index("rule")
    sums, means = [], []
    for prefix, (one, two), right in zip(
        choices.prefixes, choices.options, choices.right, strict=True
    ):
        logs = alone(demo, prefix, one), alone(demo, prefix, two)
        sums.append(logs[right].sum() > logs[1 - right].sum())
        means.append(logs[right].mean() > logs[1 - right].mean())
    assert frame.accuracy["sum"] == pytest.approx(sum(sums).item() / n)
    assert frame.accuracy["mean"] == pytest.approx(sum(means).item() / n)
    assert frame.n.tolist() == [n, n]
    assert (frame.low <= frame.accuracy).all()
    assert (frame.accuracy <= frame.high).all()
    assert frame.chance.tolist() == [0.5, 0.5]


def test_a_long_option_loses_by_sum_and_may_win_by_mean(demo):
    """What was said twice is likely a third time; its beginning alone is likelier in sum."""
    prefix = "The cat sat on the mat. The cat sat on the mat. The cat"
    options = (" sat on the mat. The cat sat on the mat.", " zebra", " sat")
    logs = [alone(demo, prefix, option) for option in options]
    assert max(logs, key=lambda x: x.sum()) is not logs[0]
    assert max(logs, key=lambda x: x.mean()) is logs[0]
    frame = score_choices(demo, Choices(prefixes=(prefix,), options=(options,), right=(0,)))
    assert dict(zip(frame.rule, frame.accuracy, strict=True)) == {"sum": 0.0, "mean": 1.0}
    assert frame.chance[0] == pytest.approx(1 / 3)


def test_as_likely_is_not_likelier(demo):
    same = Choices(prefixes=("A",), options=((" cat", " cat"),), right=(0,))
    assert score_choices(demo, same).accuracy.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"premise": None}, "premise = None"),
        ({"choice2": ""}, "choice2 = ''"),
        ({"question": "why"}, "question = 'why', expected cause or effect"),
        ({"label": 2}, "label = 2, expected 0 or 1"),
        ({"label": True}, "label = True"),
    ],
)
def test_a_bad_line_is_named(tmp_path, change, fault):
    file = tmp_path / "test.id.jsonl"
    file.write_text(json.dumps(ITEM) + "\n" + json.dumps(ITEM | change) + "\n")
    with pytest.raises(InputError, match="test.id.jsonl, line 2 has ") as error:
        causal_choices("id", tmp_path)
    assert fault in str(error.value)


def test_folders_and_wrong_input(tmp_path):
    (tmp_path / "xcopa").mkdir()
    (tmp_path / "xcopa" / "test.id.jsonl").write_text(json.dumps(ITEM))
    (tmp_path / "xcopa" / "test.en.jsonl").write_text(json.dumps(ITEM))
    got = causal_choices("id", tmp_path)
    assert got == Choices(prefixes=("Hujan karena",), options=((" a a.", " b b."),), right=(1,))
    with pytest.raises(UnknownNameError, match="language of XCOPA 'en'"):
        causal_choices("en", tmp_path)
    with pytest.raises(UnknownNameError, match="for 'qu'"):
        causal_choices("qu", tmp_path)
    with pytest.raises(InputError, match="1 texts, 0 lists"):
        Choices(prefixes=("a",), options=(), right=(0,))
    with pytest.raises(InputError, match="text 0 has 1 options"):
        Choices(prefixes=("a",), options=(("b",),), right=(0,))
    with pytest.raises(InputError, match="of which 2 is right"):
        Choices(prefixes=("a",), options=(("b", "c"),), right=(2,))
