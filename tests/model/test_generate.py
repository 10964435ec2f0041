"""Generation: the same tokens as transformers, with masks and hooks in force."""

import pytest
import torch
from transformers import MaxLengthCriteria, SuppressTokensLogitsProcessor

import bloomlab as bl
from bloomlab.errors import InputError, UnknownArgumentError
from tests.tiny import make_hf, notices, pair, tokens


def padded(*lengths):
    """Left-padded rows and their mask."""
    width = max(lengths)
    ids, mask = (
        torch.full((len(lengths), width), 3),
        torch.zeros(len(lengths), width, dtype=torch.long),
    )
    for i, n in enumerate(lengths):
        ids[i, width - n :], mask[i, width - n :] = tokens(1, n, seed=n)[0], 1
    return ids, mask


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("n_head", [3, 6, 12])
def test_greedy_tokens_equal_transformers(n_head, dtype):
    theirs, ours = pair(n_head=n_head, dtype=dtype)
    ids, mask = padded(4, 9, 7)
    arguments = {"attention_mask": mask, "max_new_tokens": 20, "eos_token_id": [11, 50]}
    expected = theirs.generate(ids, do_sample=False, **arguments)
    assert torch.equal(ours.generate(ids, **arguments), expected)
    assert torch.equal(ours.generate(ids, use_cache=False, **arguments), expected)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.7, "top_k": 5},
        {"top_p": 0.8, "top_k": 0},
        {"num_return_sequences": 3},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 5},
    ],
)
def test_sampled_tokens_equal_transformers_with_the_same_seed(options):
    theirs, ours = pair()
    ids, mask = padded(4, 9)
    drawn = []
    for model in (theirs, ours):
        torch.manual_seed(0)
        drawn.append(
            model.generate(ids, attention_mask=mask, do_sample=True, max_new_tokens=15, **options)
        )
    assert torch.equal(*drawn)


def test_a_row_says_the_same_alone_and_in_a_batch():
    _, ours = pair()
    ids, mask = padded(4, 9, 7)
    together = ours.generate(ids, attention_mask=mask, max_new_tokens=12, eos_token_id=[])
    for row in range(3):
        alone = ours.generate(
            ids[row : row + 1, mask[row].bool()], max_new_tokens=12, eos_token_id=[]
        )
        assert torch.equal(together[row, 9:], alone[0, -12:])


def test_padding_tokens_are_seen_without_a_mask():
    theirs, ours = pair()
    ids, mask = padded(4, 9)
    expected = theirs.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=5)
    assert torch.equal(ours.generate(ids, max_new_tokens=5), expected)


def test_a_head_mask_holds_at_every_step():
    ids, mask = padded(4, 9)
    heads = torch.ones(2, 6)
    heads[0, 1], heads[1, 3] = 0, 0
    theirs = make_hf()  # transformers 5 has no head mask: zero the heads' output weights
    with torch.no_grad():
        for layer, block in enumerate(theirs.transformer.h):
            block.self_attention.dense.weight *= heads[layer].repeat_interleave(8)
    expected = theirs.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=15)
    _, ours = pair()
    got = ours.generate(ids, attention_mask=mask, head_mask=heads, max_new_tokens=15)
    assert torch.equal(got, expected)
    plain = ours.generate(ids, attention_mask=mask, max_new_tokens=15)
    assert not torch.equal(plain, expected)


def test_hooks_act_at_every_step_cached_or_not():
    _, ours = pair()
    ids = tokens(2, 6)

    direction = torch.randn(48, generator=torch.Generator().manual_seed(3))

    def steer(value, hook):
        return value + 3 * direction

    with ours.hooks(fwd_hooks=[("blocks.1.hook_resid_post", steer)]):
        cached = ours.generate(ids, max_new_tokens=10)
        uncached = ours.generate(ids, max_new_tokens=10, use_cache=False)
    assert torch.equal(cached, uncached)
    assert not torch.equal(cached, ours.generate(ids, max_new_tokens=10))


def test_generation_goes_on_from_a_cached_prefix():
    _, ours = pair()
    ids = tokens(1, 9)
    past = ours(ids[:, :5]).past_key_values
    got = ours.generate(ids, past_key_values=past.fork(), max_new_tokens=8)
    assert torch.equal(got, ours.generate(ids, max_new_tokens=8))
    assert len(past) == 5


def test_ended_rows_are_padded_and_everything_stops_when_all_ended():
    _, ours = pair()
    ids = tokens(2, 6)
    free = ours.generate(ids, max_new_tokens=12, eos_token_id=[])
    end = int(free[0, 8])
    got = ours.generate(ids[:1], max_new_tokens=12, eos_token_id=end)
    assert int(got[0, -1]) == end
    assert got.shape[1] < free.shape[1]
    both = ours.generate(ids, max_new_tokens=12, eos_token_id=end, pad_token_id=7)
    stop = both[0].tolist().index(end, 6)
    assert set(both[0, stop + 1 :].tolist()) <= {7}


def test_transformers_processors_and_criteria_are_obeyed():
    _, ours = pair()
    ids = tokens(2, 6)
    plain = ours.generate(ids, max_new_tokens=6)
    banned = plain[0, 6].item()
    got = ours.generate(
        ids, max_new_tokens=6, logits_processor=[SuppressTokensLogitsProcessor([banned])]
    )
    assert banned not in got[:, 6:].tolist()[0]
    short = ours.generate(ids, max_new_tokens=6, stopping_criteria=[MaxLengthCriteria(8)])
    assert short.shape[1] == 8


def test_text_goes_in_and_the_seeded_draw_repeats(demo):
    prompts = ["The government", "La función"]
    drawn = [
        demo.generate(
            prompts, do_sample=True, max_new_tokens=5, generator=torch.Generator().manual_seed(1)
        )
        for _ in range(2)
    ]
    assert torch.equal(*drawn)
    assert all(
        text.startswith(p)
        for p, text in zip(
            prompts, demo.tokenizer.batch_decode(drawn[0], skip_special_tokens=True), strict=True
        )
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 5, "max_length": 9},
        {"max_length": 4},
        {"num_return_sequences": 2},
        {"do_sample": True, "temperature": 0.0},
        {"do_sample": True, "top_p": 1.5},
    ],
)
def test_impossible_arguments_are_refused(arguments):
    _, ours = pair()
    with pytest.raises(InputError):
        ours.generate(tokens(1, 6), **arguments)


def test_misspelt_arguments_and_empty_or_right_padded_prompts_are_refused():
    _, ours = pair()
    with pytest.raises(UnknownArgumentError, match="max_new_tokens"):
        ours.generate(tokens(1, 6), max_new_token=5)
    with pytest.raises(InputError, match="at least one token"):
        ours.generate(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(InputError, match="left"):
        ours.generate(torch.tensor([[5, 6, 3], [5, 6, 7]]))


def test_generation_leaves_no_graph_and_keeps_the_mode():
    _, ours = pair()
    ids = ours.train().generate(tokens(1, 4), max_new_tokens=3)
    assert ours.training
    assert not ids.requires_grad
    assert isinstance(ours, bl.BloomModel)


def test_a_fully_cached_prompt_asks_to_crop():
    _, ours = pair()
    ids = tokens(1, 6)
    past = ours(ids).past_key_values
    with pytest.raises(InputError, match=r"crop\(-1\)"):
        ours.generate(ids, past_key_values=past)
    got = ours.generate(ids, past_key_values=past.crop(-1), max_new_tokens=4)
    assert torch.equal(got, ours.generate(ids, max_new_tokens=4))


def test_a_head_mask_of_each_row_goes_with_its_samples():
    _, ours = pair()
    ids, heads = tokens(2, 6), torch.rand(2, 2, 6)
    got = ours.generate(ids, head_mask=heads, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(got[::2], ours.generate(ids, head_mask=heads))


def test_sampling_settings_without_sampling_are_pointed_out():
    _, ours = pair()
    with notices("do_sample"):
        ours.generate(tokens(1, 6), temperature=0.5, max_new_tokens=1)


def test_an_evicted_cache_is_not_taken_for_a_prefix():
    _, ours = pair()
    ids = tokens(1, 9)
    past = ours(ids[:, :6]).past_key_values.evict([1, 2])
    with pytest.raises(InputError, match="evict"):
        ours.generate(ids, past_key_values=past)


def test_none_means_the_default_of_transformers():
    _, ours = pair()
    ids = tokens(1, 6)
    nothing = {"top_k": None, "top_p": None, "temperature": None, "repetition_penalty": None}
    drawn = []
    for options in (nothing, {"top_k": 0}):
        torch.manual_seed(0)
        drawn.append(ours.generate(ids, do_sample=True, **options))
    assert torch.equal(*drawn)
