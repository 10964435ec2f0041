"""Steps of a generation: the tokens of `generate`, whole characters, given tokens, clean exits."""

import sys
import types

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TextStreamer

import bloomlab as bl
from bloomlab.errors import InputError, NumericalError, ShapeError
from bloomlab.model.hooks import is_hooked
from bloomlab.model.spelling import Spelling
from tests.model.test_generate import padded
from tests.tiny import distance_in_eps, pair, tokens

DEMO = bl.load("demo", device="cpu")
SPOKEN = "héllo 🤗 naïve 你好 日本語 👩‍👩‍👧 שלום\n x"


def nothing_hooked(model):
    return not any(is_hooked(point) for point in model.hook_dict.values())


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "seed": 3, "top_p": 0.9},
        {"do_sample": True, "seed": 3, "num_return_sequences": 2, "eos_token_id": [11, 50]},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "eos_token_id": list(range(60))},
    ],
    ids=str,
)
def test_steps_have_the_tokens_of_generate_and_the_logits_of_a_forward(options, use_cache):
    _, ours = pair()
    ids, mask = padded(4, 9, 7)
    options = {"attention_mask": mask, "use_cache": use_cache, "max_new_tokens": 9, **options}
    text = ours.generate(ids, **options)
    steps = list(ours.stream(ids, **options))
    assert [step.index for step in steps] == list(range(text.shape[1] - 9))
    assert torch.equal(torch.stack([step.token for step in steps], 1), text[:, 9:])
    rows = len(text) // 3
    whole = torch.cat([mask.repeat_interleave(rows, 0), torch.ones_like(text[:, 9:])], 1)
    logits = ours(text, attention_mask=whole, return_type="logits")[:, 8:-1]
    assert distance_in_eps(torch.stack([step.logits for step in steps], 1), logits) < 200
    assert all(step.seconds > 0 and step.text == [""] * len(text) for step in steps)
    ids, probabilities = steps[-1].top
    assert torch.equal(ids[:, 0], steps[-1].logits.argmax(-1))
    assert torch.equal(probabilities, steps[-1].logits.softmax(-1).gather(-1, ids))


def test_text_never_ends_within_a_character_and_ends_as_decoded():
    steps = list(DEMO.stream("A", forced=SPOKEN))
    ids = DEMO.tokenizer(SPOKEN)["input_ids"]
    assert [int(step.token) for step in steps] == ids
    assert any("\ufffd" in DEMO.tokenizer.decode(ids[: i + 1]) for i in range(len(ids)))
    for step in steps:
        assert SPOKEN.startswith(step.text[0])
        assert len(step.text[0].encode()) + 4 > len(b"".join(map(as_bytes, ids[: step.index + 1])))
    assert steps[-1].text == [SPOKEN]


def as_bytes(token):
    return DEMO.tokenizer.convert_ids_to_tokens([token])[0].encode("latin-1", "replace")


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.integers(0, 8191), st.integers(4, 260)), max_size=20))
def test_any_tokens_spell_what_the_tokenizer_decodes(ids):
    spelling, before = Spelling(DEMO.tokenizer), ""
    for i, token in enumerate(ids):
        text = spelling.add([token], last=i == len(ids) - 1)
        assert text.startswith(before)
        before = text
    assert before == DEMO.tokenizer.decode(ids)


def test_other_tokenizers_are_decoded_too():
    class Words:
        def decode(self, ids):
            return " ".join({1: "one", 2: "two", 3: "\ufffd"}[i] for i in ids)

    spelling = Spelling(Words())
    assert [spelling.add([1]), spelling.add([3]), spelling.add([2])] == [
        "one",
        "one ",
        "one \ufffd two",
    ]


def test_an_ended_row_keeps_its_text_without_padding(demo):
    prompts = ["The government", "La función"]
    free = list(demo.stream(prompts, max_new_tokens=6, eos_token_id=[]))
    end = int(free[2].token[0])
    steps = list(demo.stream(prompts, max_new_tokens=6, eos_token_id=[end]))
    assert steps[2].finished.tolist()[0] is True
    assert steps[-1].text[0] == free[2].text[0]
    assert "<pad>" not in "".join(steps[-1].text)


@pytest.mark.parametrize("use_cache", [True, False])
def test_forced_tokens_are_taken_and_then_the_model_goes_on(use_cache):
    _, ours = pair()
    ids, mask = padded(4, 9)
    forced = tokens(2, 5, seed=8)
    forced[0, 1] = 11
    options = {"attention_mask": mask, "eos_token_id": [11], "use_cache": use_cache}
    steps = list(ours.stream(ids, forced=forced, **options))
    assert torch.equal(torch.stack([step.token for step in steps], 1), forced)
    text = torch.cat([ids, forced], 1)
    whole = torch.cat([mask, torch.ones_like(forced)], 1)
    expected = ours(text, attention_mask=whole, return_type="logits")[:, 8:-1]
    assert distance_in_eps(torch.stack([step.logits for step in steps], 1), expected) < 200
    assert not any(bool(step.finished.any()) for step in steps)
    steps = list(ours.stream(ids, forced=forced, max_new_tokens=9, **options))
    on = ours.generate(text, attention_mask=whole, eos_token_id=[11], max_new_tokens=4)
    assert torch.equal(torch.stack([step.token for step in steps], 1)[:, 5:], on[:, 14:])


@pytest.mark.parametrize(
    ("forced", "kind", "said"),
    [
        ([5, 97], InputError, "0 to 96"),
        ([-1], InputError, "-1"),
        ([], InputError, "forced is"),
        ([[5], [6], [7]], ShapeError, "forced"),
        ([[5, 6], [7]], InputError, "forced is"),
        ([0.5], InputError, "forced is"),
        ([5] * 9, InputError, "9 forced tokens.*room for 4"),
    ],
)
def test_wrong_forced_tokens_are_refused(forced, kind, said):
    _, ours = pair()
    with pytest.raises(kind, match=said):
        ours.stream(tokens(2, 6), forced=forced, max_new_tokens=4)


def test_forced_texts_of_different_lengths_are_refused(demo):
    with pytest.raises(InputError, match="score_continuations"):
        demo.stream(["A", "B"], forced=[" the", " the government of"])


def test_leaving_or_interrupting_a_stream_leaves_model_and_cache_usable():
    _, ours = pair()
    ids = tokens(2, 9)
    past = ours(ids[:, :4]).past_key_values
    expected = ours.generate(ids, max_new_tokens=8, eos_token_id=[])
    pairs = [("blocks.0.hook_resid_pre", lambda value, hook: value + 0)]
    options = {"interventions": pairs, "eos_token_id": [], "max_new_tokens": 8}
    stream = ours.stream(ids, past_key_values=past, **options)
    assert len(past) == 4
    for _ in range(3):
        next(stream)
        assert nothing_hooked(ours)
    assert torch.is_grad_enabled()
    stream.close()
    assert len(past) == 11

    def interrupt(value, hook):
        raise KeyboardInterrupt

    options["interventions"] = [*pairs, ("blocks.1.hook_mlp_out", interrupt)]
    with pytest.raises(KeyboardInterrupt):
        next(ours.stream(expected[:, :12], past_key_values=past, **options))
    assert nothing_hooked(ours)
    assert len(past) == 11
    got = ours.generate(expected[:, :12], past_key_values=past, max_new_tokens=5, eos_token_id=[])
    assert torch.equal(got, expected)


def test_nan_of_an_intervention_is_found():
    _, ours = pair()
    past = ours(tokens(1, 4)).past_key_values

    def spoil(value, hook):
        return value / 0 if value.shape[1] == 1 else value

    stream = ours.stream(
        tokens(1, 6), past_key_values=past, interventions=[("blocks.0.hook_attn_out", spoil)]
    )
    next(stream)
    with pytest.raises(NumericalError, match=r"step 1.*blocks\.0\.hook_attn_out"):
        next(stream)
    assert len(past) == 6


def test_transformers_streamers_get_every_token(demo, capsys):
    streamer = TextStreamer(demo.tokenizer)
    ids = demo.generate("The government", max_new_tokens=7, streamer=streamer)
    assert capsys.readouterr().out == demo.tokenizer.decode(ids[0]) + "\n"
    with pytest.raises(InputError, match="one row"):
        demo.generate("The", num_beams=2, streamer=streamer)


class Recorder:
    """Notes what a recorder is told."""

    def __init__(self, model):
        self.said, self.now = [], []

    def hooks(self, edited=()):
        self.edited = list(edited)
        return [("blocks.0.hook_resid_pre", lambda value, hook: self.now.append(value.clone()))]

    def cache_hooks(self):
        return [("blocks.0.attn.hook_k", lambda value, hook: self.now.append("k"))]

    def add(self, ids, mask):
        self.said.append((ids.clone(), mask.clone(), self.now, self.edited))
        self.now = []

    @property
    def trace(self):
        return list(self.said)


def test_a_trace_is_told_of_every_forward(monkeypatch):
    module = types.ModuleType("bloomlab.trace")
    module.Recorder = Recorder
    monkeypatch.setitem(sys.modules, "bloomlab.trace", module)
    _, ours = pair()
    ids, mask = padded(4, 6)

    class Once:
        enters_cache = False

        def hooks(self, start, step):
            return [("hook_embed", lambda value, hook: value * 2)] if step == 1 else []

    options = {"attention_mask": mask, "interventions": [Once()], "eos_token_id": []}
    steps = list(ours.stream(ids, trace=True, max_new_tokens=3, **options))
    assert [len(step.trace) for step in steps] == [1, 2, 3]
    read = [ids, steps[0].token[:, None], steps[1].token[:, None]]
    for i, (new, seen, values, edited) in enumerate(steps[-1].trace):
        assert torch.equal(new, read[i])
        assert torch.equal(seen[:, :6], mask)
        assert seen.shape[1] == 6 + i
        assert len(values) == (2 if i == 1 else 1)
        assert edited == (["hook_embed"] if i == 1 else [])
    plain = ours.run_with_cache(read[1])[1]["blocks.0.hook_resid_pre"]
    assert distance_in_eps(steps[-1].trace[1][2][0], 2 * plain) < 10
    past = ours(ids[:, :3]).past_key_values
    with pytest.raises(InputError, match="records from the first token"):
        ours.stream(ids, trace=True, past_key_values=past)
