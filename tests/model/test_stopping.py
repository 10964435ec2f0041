"""What ends rows, and arguments that contradict each other."""

import inspect

import pytest
import torch
from transformers import GenerationConfig, MaxLengthCriteria, MaxTimeCriteria, StopStringCriteria

from bloomlab.errors import InputError, TokenizerError, UnknownArgumentError, UnsupportedError
from tests.tiny import pair, tokens

_, OURS = pair()


def test_transformers_criteria_are_obeyed():
    ids = tokens(2, 6)
    short = OURS.generate(ids, max_new_tokens=6, stopping_criteria=[MaxLengthCriteria(8)])
    assert short.shape[1] == 8
    late = OURS.generate(ids, max_new_tokens=6, stopping_criteria=[MaxTimeCriteria(0.0)])
    assert late.shape[1] == 7


def test_rows_end_where_their_text_holds_a_stop_string(demo):
    theirs = demo.to_hf()
    prompts = ["The government", "La función de la"]
    ids, mask = demo.to_tokens_and_mask(prompts)
    free = demo.generate(prompts, max_new_tokens=12, eos_token_id=[])
    new = demo.tokenizer.batch_decode(free[:, ids.shape[1] :])
    stops = [new[0][3:6], new[1][-4:]]
    expected = theirs.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=12,
        stop_strings=stops,
        tokenizer=demo.tokenizer,
        pad_token_id=3,
    )
    got = demo.generate(prompts, max_new_tokens=12, stop_strings=stops, pad_token_id=3)
    assert torch.equal(got, expected)
    assert got.shape[1] < free.shape[1] or (got == 3).any()
    *_, last = demo.stream(prompts, max_new_tokens=12, stop_strings=stops)
    assert all(any(stop in text for stop in stops) for text in last.text)
    own = StopStringCriteria(demo.tokenizer, stops)
    by_hand = demo.generate(prompts, max_new_tokens=12, stopping_criteria=[own], pad_token_id=3)
    assert torch.equal(by_hand, expected)


def test_stop_strings_need_a_tokenizer_and_text():
    with pytest.raises(TokenizerError, match="stop_strings"):
        OURS.generate(tokens(1, 6), stop_strings="x")
    for wrong in ([], [""], [3]):
        with pytest.raises(InputError, match="stop_strings"):
            OURS.generate(tokens(1, 6), stop_strings=wrong)


@pytest.mark.parametrize("options", [{"min_new_tokens": 5}, {"min_length": 11}])
def test_no_row_ends_too_early(options):
    ids = tokens(2, 6)
    got = OURS.generate(ids, eos_token_id=list(range(4, 97)), max_new_tokens=40, **options)
    assert set(got[:, 6:11].flatten().tolist()) <= {0, 1, 2, 3}
    assert got.shape[1] < 46
    assert (got[:, 11:] >= 4).any(-1).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": 2.5}, "whole number from 1"),
        ({"max_new_tokens": 5, "max_length": 9}, "not both"),
        ({"max_length": 4}, "nothing to generate"),
        ({"min_new_tokens": 5, "min_length": 9}, "not both"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "at least 15 and at most 14"),
        ({"num_return_sequences": 2}, "greedy rows would all be the same"),
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0.0, expected above 0"),
        ({"do_sample": True, "top_p": 1.5}, "0 to 1"),
        ({"do_sample": True, "min_p": -0.1}, "0 to 1"),
        ({"do_sample": True, "typical_p": 0}, "above 0"),
        ({"do_sample": True, "top_k": -1}, "whole number from 0"),
        ({"repetition_penalty": float("nan")}, "above 0"),
        ({"seed": 1, "generator": torch.Generator(), "do_sample": True}, "not both"),
        ({"eos_token_id": "</s>"}, "expected a token id"),
        ({"pad_token_id": 97}, "0 to 96"),
        ({"attention_mask": torch.ones(1, 7)}, "attention_mask has shape"),
        ({"attention_mask": torch.full((1, 6), 0.5)}, "values other than 0 and 1"),
        ({"generation_config": {"top_k": 3}}, "GenerationConfig"),
    ],
    ids=lambda given: given if isinstance(given, str) else ", ".join(given),
)
def test_impossible_arguments_are_refused(options, said):
    for function in (OURS.generate, OURS.stream):
        with pytest.raises(InputError, match=said):
            function(tokens(1, 6), **options)


def test_misspelt_arguments_and_bad_prompts_are_refused():
    with pytest.raises(UnknownArgumentError, match="'max_new_tokens'"):
        OURS.generate(tokens(1, 6), max_new_token=5)
    with pytest.raises(UnknownArgumentError, match="stream got .*'interventions'"):
        OURS.stream(tokens(1, 6), intervention=[])
    with pytest.raises(UnknownArgumentError, match="return_dict_in_generate"):
        OURS.generate(tokens(1, 6), return_dict_in_generate=True)
    for prompt in (None, torch.zeros(1, 0, dtype=torch.long), tokens(6)):
        with pytest.raises(InputError, match="at least one token"):
            OURS.generate(prompt)
    with pytest.raises(InputError, match="left"):
        OURS.generate(torch.tensor([[5, 6, 3], [5, 6, 7]]))
    with pytest.raises(InputError, match="0 to 96"):
        OURS.generate(torch.tensor([[5, 97]]))


def test_a_generation_config_stands_for_what_is_not_given():
    ids = tokens(1, 6)
    config = GenerationConfig(max_length=12, num_beams=3, length_penalty=2.0, eos_token_id=[11])
    got = OURS.generate(ids, generation_config=config)
    options = {"num_beams": 3, "length_penalty": 2.0, "eos_token_id": [11]}
    assert torch.equal(got, OURS.generate(ids, max_length=12, **options))
    got = OURS.generate(ids, generation_config=config, max_new_tokens=3, num_beams=1)
    assert torch.equal(got, OURS.generate(ids, max_new_tokens=3, eos_token_id=[11]))
    with pytest.raises(UnsupportedError, match="penalty_alpha|guidance_scale"):
        OURS.generate(ids, generation_config=GenerationConfig(guidance_scale=2.0))


def test_help_and_completion_know_every_argument():
    for function in (OURS.generate, OURS.stream):
        names = inspect.signature(function).parameters
        assert {"input_ids", "max_new_tokens", "top_k", "num_beams", "seed"} <= set(names)
        documented = [n for n in names if f"\n    {n}: " in inspect.getdoc(function)]
        assert documented == list(names)
