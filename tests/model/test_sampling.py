"""Drawn tokens: transformers' distribution, and seeds that make rows independent."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import SuppressTokensLogitsProcessor, TemperatureLogitsWarper

from bloomlab.errors import InputError
from tests.model.test_generate import padded
from tests.tiny import notices, pair, tokens

THEIRS, OURS = pair()
OPTIONS = [
    {},
    {"temperature": 0.7, "top_k": 5},
    {"top_p": 0.8, "top_k": 0},
    {"top_p": 0.0},
    {"min_p": 0.1, "top_k": None},
    {"typical_p": 0.6, "top_k": 0},
    {"temperature": 2, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9},
    {"num_return_sequences": 3},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
    {"eos_token_id": [11, 50], "min_length": 14},
    {"use_cache": False, "max_length": 20, "max_new_tokens": None},
]


def theirs(ids, mask, *, seed, **options):
    torch.manual_seed(seed)
    if isinstance(options.get("temperature"), int):
        options["temperature"] = float(options["temperature"])
    return THEIRS.generate(ids, attention_mask=mask, do_sample=True, **options)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sampled_tokens_equal_transformers_with_the_same_seed(options):
    ids, mask = padded(4, 9)
    options = {"max_new_tokens": 15, **options}
    expected = theirs(ids, mask, seed=0, **options)
    torch.manual_seed(0)
    got = OURS.generate(ids, attention_mask=mask, do_sample=True, **options)
    assert torch.equal(got, expected)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    seed=st.integers(0, 99),
    top_k=st.sampled_from([0, 1, 7]),
    top_p=st.sampled_from([0.3, 1.0]),
    min_p=st.sampled_from([None, 0.05]),
    typical_p=st.sampled_from([0.5, 1.0]),
    repetition_penalty=st.sampled_from([1.0, 0.5, 2.0]),
    no_repeat_ngram_size=st.integers(0, 3),
    eos_token_id=st.lists(st.integers(4, 96), min_size=1, max_size=20),
)
def test_any_sampling_equals_transformers_with_the_same_seed(lengths, seed, **options):
    ids, mask = padded(*lengths)
    expected = theirs(ids, mask, seed=seed, max_new_tokens=8, **options)
    torch.manual_seed(seed)
    got = OURS.generate(ids, attention_mask=mask, do_sample=True, max_new_tokens=8, **options)
    assert torch.equal(got, expected)


def test_drawing_from_the_top_one_is_greedy():
    ids, mask = padded(4, 9)
    arguments = {"attention_mask": mask, "max_new_tokens": 12}
    greedy = THEIRS.generate(ids, do_sample=False, **arguments)
    got = OURS.generate(ids, do_sample=True, top_k=1, seed=3, num_return_sequences=2, **arguments)
    assert torch.equal(got, greedy.repeat_interleave(2, 0))


def test_a_row_with_a_seed_draws_what_transformers_draws_for_it_alone():
    ids, mask = padded(4, 9, 7)
    arguments = {"max_new_tokens": 10, "eos_token_id": []}
    for seeds in (5, [5, 6, 7], [90, 3, 3], torch.tensor([8, 9, 10])):
        got = OURS.generate(ids, attention_mask=mask, do_sample=True, seed=seeds, **arguments)
        for row in range(3):
            seed = seeds + row if isinstance(seeds, int) else int(seeds[row])
            alone = ids[row : row + 1, mask[row].bool()]
            expected = theirs(
                alone, torch.ones_like(alone), seed=seed, max_new_tokens=10, eos_token_id=None
            )
            assert torch.equal(got[row, 9:], expected[0, -10:])


def test_samples_of_a_prompt_differ_and_repeat():
    ids = tokens(1, 6)
    drawn = [OURS.generate(ids, do_sample=True, num_return_sequences=4, seed=1) for _ in "ab"]
    assert torch.equal(*drawn)
    assert len({tuple(row) for row in drawn[0].tolist()}) == 4
    fewer = OURS.generate(ids, do_sample=True, num_return_sequences=2, seed=1)
    assert torch.equal(fewer, drawn[0][:2])


def test_seeded_beams_of_a_prompt_do_not_depend_on_the_others():
    ids = tokens(2, 6)
    options = {"do_sample": True, "num_beams": 3, "eos_token_id": []}
    both = OURS.generate(ids, seed=[4, 9], **options)
    assert torch.equal(both[1:], OURS.generate(ids[1:], seed=9, **options))


def test_a_generator_is_used_and_the_global_one_left_alone():
    ids, state = tokens(2, 6), torch.get_rng_state()
    drawn = [
        OURS.generate(ids, do_sample=True, generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    ]
    assert torch.equal(*drawn)
    assert torch.equal(drawn[0], theirs(ids, torch.ones_like(ids), seed=1, max_new_tokens=20))
    torch.set_rng_state(state)
    OURS.generate(ids, do_sample=True, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_text_goes_in_and_the_seeded_draw_repeats(demo):
    prompts = ["The government", "La función"]
    drawn = [demo.generate(prompts, do_sample=True, max_new_tokens=5, seed=1) for _ in range(2)]
    assert torch.equal(*drawn)
    texts = demo.tokenizer.batch_decode(drawn[0], skip_special_tokens=True)
    assert all(text.startswith(p) for p, text in zip(prompts, texts, strict=True))


def test_none_means_the_default_of_transformers():
    ids = tokens(1, 6)
    nothing = {"top_k": None, "top_p": None, "temperature": None, "repetition_penalty": None}
    drawn = []
    for options in (nothing, {"top_k": 0}):
        torch.manual_seed(0)
        drawn.append(OURS.generate(ids, do_sample=True, **options))
    assert torch.equal(*drawn)
    assert torch.equal(drawn[0], theirs(ids, None, seed=0, max_new_tokens=20, **nothing))


def test_a_processor_of_the_caller_comes_last_or_replaces_ours():
    ids = tokens(2, 6)
    plain = OURS.generate(ids, max_new_tokens=6)
    banned = plain[0, 6].item()
    ban = SuppressTokensLogitsProcessor([banned])
    got = OURS.generate(ids, max_new_tokens=6, logits_processor=[ban])
    assert banned not in got[:, 6:].tolist()[0]
    options = {"temperature": 0.9, "logits_processor": [TemperatureLogitsWarper(0.2)]}
    expected = theirs(ids, None, seed=1, max_new_tokens=9, **options)
    torch.manual_seed(1)
    assert torch.equal(OURS.generate(ids, do_sample=True, max_new_tokens=9, **options), expected)


@pytest.mark.parametrize(
    ("seed", "said"),
    [([1, 2, 3], "3 seeds for 2 rows"), ("1", "whole number"), (1.5, "whole"), (True, "whole")],
)
def test_wrong_seeds_are_refused(seed, said):
    with pytest.raises(InputError, match=said):
        OURS.generate(tokens(2, 6), do_sample=True, seed=seed)


def test_sampling_settings_without_sampling_are_pointed_out():
    with notices("temperature, seed: no effect without do_sample"):
        OURS.generate(tokens(1, 6), temperature=0.5, seed=3, max_new_tokens=1)
