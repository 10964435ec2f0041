"""Generation: the same tokens as transformers, with masks and hooks in force."""

import pytest
import torch

import bloomlab as bl
from bloomlab.errors import CacheError, InputError, NumericalError
from tests.tiny import make_hf, pair, tokens


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
    with pytest.raises(InputError, match=r"crop\("):
        ours.generate(ids, past_key_values=past)
    got = ours.generate(ids, past_key_values=past.crop(-1), max_new_tokens=4)
    assert torch.equal(got, ours.generate(ids, max_new_tokens=4))


def test_a_head_mask_of_each_row_goes_with_its_samples():
    _, ours = pair()
    ids, heads = tokens(2, 6), torch.rand(2, 2, 6)
    got = ours.generate(ids, head_mask=heads, do_sample=True, top_k=1, num_return_sequences=2)
    assert torch.equal(got[::2], ours.generate(ids, head_mask=heads))


def test_an_evicted_cache_is_not_taken_for_a_prefix():
    _, ours = pair()
    ids = tokens(1, 9)
    past = ours(ids[:, :6]).past_key_values.evict([1, 2])
    with pytest.raises(InputError, match="evict"):
        ours.generate(ids, past_key_values=past)
    with pytest.raises(InputError, match="evict"):
        ours.generate(ids[:, 6:], past_key_values=past, attention_mask=torch.ones(1, 9))


def test_after_eviction_the_new_tokens_are_the_prompt():
    _, ours = pair()
    ids, mask = tokens(1, 9), torch.ones(1, 9, dtype=torch.long)
    mask[0, 1:3] = 0
    past = ours(ids[:, :6]).past_key_values
    hidden = ours.generate(
        ids, past_key_values=past.fork(), attention_mask=mask, max_new_tokens=6, eos_token_id=[]
    )
    thinned = past.evict([1, 2])
    got = ours.generate(ids[:, 6:], past_key_values=thinned, max_new_tokens=6, eos_token_id=[])
    assert torch.equal(got, hidden[:, 6:])
    assert len(thinned) == 4 + 3 + 5


def test_a_mask_may_hide_what_the_cache_shows():
    _, ours = pair()
    ids, mask = tokens(1, 9), torch.ones(1, 9, dtype=torch.long)
    mask[0, :4] = 0
    past, seen = ours(ids[:, 4:7]).past_key_values, []
    alone = ours.generate(ids[:, 4:], past_key_values=past, max_new_tokens=6, eos_token_id=[])
    hidden = ours(ids[:, :7], attention_mask=mask[:, :7]).past_key_values
    got = ours.generate(
        ids, past_key_values=hidden, attention_mask=mask, max_new_tokens=6, eos_token_id=[]
    )
    assert torch.equal(got[:, 4:], alone)
    past = ours(ids[:, :7]).past_key_values
    attend = ("blocks.1.attn.hook_pattern", lambda value, hook: seen.append(value))
    with ours.hooks(fwd_hooks=[attend]):
        ours.generate(ids, past_key_values=past, attention_mask=mask, max_new_tokens=4)
    assert len(seen) == 4
    assert all(float(pattern[..., :4].abs().max()) == 0 for pattern in seen)


def test_a_cache_that_does_not_fit_is_refused_and_stays_as_it_was():
    _, ours = pair()
    ids = tokens(2, 9)
    others = {
        "rows": (ours(ids[:1, :4]).past_key_values, "1 rows"),
        "dtype": (pair(dtype=torch.bfloat16)[1](ids[:, :4]).past_key_values, "bfloat16"),
        "heads": (pair(n_head=3)[1](ids[:, :4]).past_key_values, "another model"),
        "layers": (pair(n_layer=3)[1](ids[:, :4]).past_key_values, "layers"),
        "kind": ([1], "KVCache"),
    }
    for past, said in others.values():
        before = None if isinstance(past, list) else past.keys(0).clone()
        for attempt in ({}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}):
            with pytest.raises((CacheError, InputError), match=said):
                ours.generate(ids, past_key_values=past, **attempt)
        if before is not None:
            assert len(past) == 4
            assert torch.equal(past.keys(0), before)
    with pytest.raises(InputError, match="use_cache=False"):
        ours.generate(ids, past_key_values=others["rows"][0], use_cache=False)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"do_sample": True}, {"num_beams": 3}, {"eos_token_id": []}], ids=str
)
def test_nan_logits_say_where_they_first_appear(options, use_cache):
    _, ours = pair(n_layer=3)
    ids, calls = tokens(2, 9), []

    def spoil(value, hook):
        calls.append(1)
        if value.shape[1] == 1 or (len(calls) > 3 and not use_cache):
            value[-1, -1, 5] = torch.nan
        return value

    options = {"max_new_tokens": 20, "use_cache": use_cache} | options
    with ours.hooks(fwd_hooks=[("blocks.1.hook_mlp_out", spoil)]):
        match = r"row \d+(, \d+)* are NaN.*blocks\.1\.hook_mlp_out \(NaN\).*float32"
        with pytest.raises(NumericalError, match=match) as error:
            ours.generate(ids, **options)
    assert str(error.value).startswith(f"step {1 if use_cache else 3}:")


def test_a_step_with_nan_is_taken_back_out_of_the_cache():
    _, ours = pair()
    ids = tokens(1, 9)
    past = ours(ids[:, :4]).past_key_values
    with torch.no_grad():
        ours.blocks[1].mlp.fc_out.bias[3] = torch.inf
    with pytest.raises(NumericalError, match=r"step 0.*blocks\.1\.hook_mlp_out \(infinite\)"):
        ours.generate(ids, past_key_values=past)
    assert len(past) == 4


def test_no_token_left_is_blamed_on_the_processors():
    _, ours = pair()

    def forbid(ids, scores):
        return torch.full_like(scores, -torch.inf)

    for options in ({}, {"do_sample": True, "top_k": 0}, {"num_beams": 2}):
        with pytest.raises(NumericalError, match="logits are finite.*processors"):
            ours.generate(tokens(1, 5), logits_processor=[forbid], **options)


def test_what_cannot_fit_is_refused_with_the_arithmetic():
    _, ours = pair()
    with pytest.raises(InputError, match=r"2 rows of 1,000,000,000 tokens need .* TB.* are free"):
        ours.generate(tokens(2, 6), max_length=10**9)
    with (
        ours.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", lambda value, hook: None)]),
        pytest.raises(InputError, match="for a hooked layer's scores"),
    ):
        ours.generate(tokens(1, 1).expand(1, 10**6), max_new_tokens=1)


def test_an_interrupt_leaves_no_hook_and_whole_steps_in_the_cache():
    _, ours = pair()
    ids, calls = tokens(1, 9), []
    past = ours(ids[:, :4]).past_key_values

    def interrupt(value, hook):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    arguments = {"max_new_tokens": 6, "eos_token_id": []}
    hooks = [("blocks.1.hook_resid_mid", interrupt)]
    with pytest.raises(KeyboardInterrupt), ours.hooks(fwd_hooks=hooks):
        ours.generate(ids, past_key_values=past, **arguments)
    expected = ours.generate(ids, **arguments)
    assert len(past) == 9 + 1
    assert torch.equal(
        ours.generate(expected[:, :11], past_key_values=past, **arguments)[:, :15], expected
    )


def test_processors_do_not_change_the_logits_of_a_step():
    _, ours = pair()
    ids = tokens(1, 6)

    def spoil(text, scores):
        return scores.mul_(0).index_fill_(1, torch.tensor([9]), 1.0)

    step = next(ours.stream(ids, logits_processor=[spoil]))
    assert int(step.token) == 9
    expected = ours(ids, return_type="logits", logits_to_keep=1)[:, -1]
    torch.testing.assert_close(step.logits, expected.detach(), atol=1e-6, rtol=1e-5)
    assert not step.logits.requires_grad
