"""Beam search: the same hypotheses as transformers, for every rule of ranking and stopping."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MaxLengthCriteria

import bloomlab as bl
from bloomlab.errors import InputError
from bloomlab.model.outputs import RENAMED
from tests.model.test_generate import padded
from tests.tiny import notices, pair, tokens

THEIRS, OURS = pair(n_head=3)


def both(ids, mask, seed=None, **arguments):
    """What transformers and we say to the same arguments."""
    said = []
    for model in (THEIRS, OURS):
        if seed is not None:
            torch.manual_seed(seed)
        said.append(model.generate(ids, attention_mask=mask, **arguments))
    return said


def assert_same(theirs, ours):
    assert torch.equal(ours, theirs), (ours, theirs)


@pytest.mark.parametrize("early_stopping", [False, True, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
def test_beams_equal_transformers(num_beams, length_penalty, early_stopping):
    ids, mask = padded(4, 9, 7)
    assert_same(
        *both(
            ids,
            mask,
            num_beams=num_beams,
            length_penalty=length_penalty,
            early_stopping=early_stopping,
            num_return_sequences=2,
            max_new_tokens=14,
            eos_token_id=[11, 50, 23],
        )
    )


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=3),
    num_beams=st.integers(2, 6),
    returned=st.integers(1, 6),
    length_penalty=st.sampled_from([-0.7, 0.0, 0.6, 1.0, 3.0]),
    early_stopping=st.sampled_from([True, False, "never"]),
    ends=st.lists(st.integers(4, 96), max_size=20, unique=True),
    max_new_tokens=st.integers(1, 12),
    least=st.integers(0, 4),
    repetition_penalty=st.sampled_from([1.0, 0.7, 1.4]),
    no_repeat_ngram_size=st.sampled_from([0, 2, 3]),
    pad=st.sampled_from([3, 7]),
    use_cache=st.booleans(),
)
def test_any_beam_search_equals_transformers(
    lengths, returned, num_beams, max_new_tokens, least, ends, pad, **arguments
):
    ids, mask = padded(*lengths)
    if ends:
        arguments |= {"min_new_tokens": min(least, max_new_tokens)}
    theirs, ours = both(
        ids,
        mask,
        num_beams=num_beams,
        num_return_sequences=min(returned, num_beams),
        max_new_tokens=max_new_tokens,
        eos_token_id=ends or 2,
        pad_token_id=pad,
        **arguments,
    )
    assert_same(theirs, ours)


@pytest.mark.skipif(not RENAMED, reason="transformers ranks drawn candidates from 5.24 on")
@pytest.mark.parametrize(
    "options", [{}, {"top_k": 1}, {"top_k": 4, "min_p": 0.9}, {"top_p": 0.7, "temperature": 1.5}]
)
def test_drawn_beams_equal_transformers_with_the_same_seed(options):
    ids, mask = padded(4, 9)
    options = {"num_beams": 3, "do_sample": True, "eos_token_id": [11, 50], **options}
    for seed in range(5):
        assert_same(*both(ids, mask, seed, max_new_tokens=10, num_return_sequences=2, **options))


def test_criteria_complete_hypotheses():
    ids, mask = padded(4, 9)
    assert_same(
        *both(ids, mask, num_beams=3, stopping_criteria=[MaxLengthCriteria(13)], max_new_tokens=9)
    )


def test_half_precision_beams_equal_transformers():
    theirs, ours = pair(dtype=torch.bfloat16)
    ids, mask = padded(4, 9)
    arguments = {"num_beams": 4, "max_new_tokens": 12, "attention_mask": mask}
    assert_same(theirs.generate(ids, **arguments), ours.generate(ids, **arguments))


def test_the_prompt_is_read_once_and_the_given_cache_is_left_alone():
    ids, rows = tokens(2, 9), []
    past = OURS(ids[:, :5]).past_key_values
    arguments = {"num_beams": 4, "max_new_tokens": 6, "eos_token_id": []}
    hook = ("hook_embed", lambda value, hook: rows.append(tuple(value.shape[:2])))
    with OURS.hooks(fwd_hooks=[hook]):
        got = OURS.generate(ids, past_key_values=past, **arguments)
    assert rows == [(2, 4)] + [(8, 1)] * 5
    assert len(past) == 5
    OURS.generate(ids, past_key_values=(empty := bl.KVCache()), **arguments)
    assert len(empty) == 0
    assert torch.equal(got, OURS.generate(ids, **arguments))


def test_head_masks_of_each_row_go_with_its_beams():
    ids, heads = tokens(2, 6), torch.rand(2, 2, 3)
    together = OURS.generate(ids, head_mask=heads, num_beams=3, eos_token_id=[])
    for row in (0, 1):
        alone = OURS.generate(ids[[row]], head_mask=heads[row], num_beams=3, eos_token_id=[])
        assert torch.equal(together[[row]], alone)


def test_impossible_beams_are_refused():
    ids = tokens(1, 6)
    with pytest.raises(InputError, match="no more than the beams"):
        OURS.generate(ids, num_beams=2, num_return_sequences=3)
    with pytest.raises(InputError, match="'never'"):
        OURS.generate(ids, num_beams=2, early_stopping="always")
    with pytest.raises(InputError, match="nothing to stream"):
        OURS.stream(ids, num_beams=2)
    with notices("length_penalty: no effect without num_beams"):
        OURS.generate(ids, length_penalty=2.0, max_new_tokens=1)
