"""Law 2: any split into cached chunks, any fork, crop or gather, gives what one forward gives."""

import pytest
import torch

import bloomlab as bl
from bloomlab.errors import CacheError, ShapeError
from bloomlab.model.outputs import PAST
from tests.tiny import distance_in_eps, make_hf, pair, tokens

N = 12


def masks():
    left, ragged = torch.ones(2, N, dtype=torch.long), torch.ones(2, N, dtype=torch.long)
    left[0, :4] = 0
    ragged[0, :2], ragged[0, 5], ragged[1, 7:9] = 0, 0, 0
    return {"none": None, "left": left, "ragged": ragged}


def chunks(lengths):
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]


@pytest.mark.parametrize("alibi", ["hf", "exact"])
@pytest.mark.parametrize("padding", ["none", "left", "ragged"])
@pytest.mark.parametrize("split", [[N], [1] * N, [5, 1, 1, 5], [1, 11]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_chunks_give_what_one_forward_gives_at_every_hook(dtype, split, padding, alibi):
    _, ours = pair(dtype=dtype)
    ours.alibi = alibi
    ids, mask = tokens(2, N), masks()[padding]
    limit = 200 if dtype != torch.bfloat16 else 10
    seen = torch.ones(2, N, dtype=torch.bool) if mask is None else mask.bool()
    whole_logits, whole = ours.run_with_cache(ids, attention_mask=mask)
    past, parts = bl.KVCache(), []
    for part in chunks(split):
        logits, cache = ours.run_with_cache(
            ids[:, part],
            attention_mask=None if mask is None else mask[:, : part.stop],
            past_key_values=past,
            use_cache=True,
        )
        parts.append((logits, cache))
    assert len(past) == N
    assert distance_in_eps(torch.cat([p[0] for p in parts], 1)[seen], whole_logits[seen]) < limit
    for name, expected in whole.items():
        values = [cache[name] for _, cache in parts]
        if expected.ndim == 4 and expected.shape[1] == 6:  # batch head query key: keys grow
            values = [torch.nn.functional.pad(v, (0, N - v.shape[-1])) for v in values]
            got, expected = torch.cat(values, 2).transpose(1, 2), expected.transpose(1, 2)
            if name.endswith(("scores", "alibi")):  # hidden keys: masked, or meaningless
                hidden = ~(seen[:, None, None, :] & torch.ones(N, N).tril().bool()[:, None])
                got, expected = (t.masked_fill(hidden, 0) for t in (got, expected))
        else:
            got = torch.cat(values, 1)
        assert distance_in_eps(got[seen], expected[seen]) < limit, name


def test_an_unhooked_model_keeps_the_law_too():
    _, ours = pair()
    ids = tokens(2, N)
    expected = ours(ids).logits
    past = ours(ids[:, :7]).past_key_values
    got = ours(ids[:, 7:], past_key_values=past)
    assert distance_in_eps(got.logits, expected[:, 7:]) < 200
    assert got.past_key_values is past


def test_forks_go_their_own_ways():
    _, ours = pair()
    ids, first, second = tokens(1, 6), tokens(1, 3, seed=5), tokens(1, 3, seed=6)
    past = ours(ids).past_key_values
    branches = [past.fork(), past.fork(), past]
    for _ in range(2):  # interleaved appends: none may overwrite another's
        for branch in branches:
            ours(first[:, :1], past_key_values=branch)
    for branch, new in zip(branches, (first, second, first), strict=True):
        got = ours(new, past_key_values=branch).logits
        text = torch.cat([ids, first[:, :1], first[:, :1], new], 1)
        assert distance_in_eps(got, ours(text).logits[:, -3:]) < 200


def test_bytes_are_those_of_keys_and_values():
    _, ours = pair()
    past = ours(tokens(2, N)).past_key_values
    assert past.nbytes == 2 * 2 * 2 * N * 48 * 4  # k and v, layers, rows, tokens, width, float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cropping_a_padded_batch_counts_on_from_the_right_position(dtype):
    _, ours = pair(dtype=dtype)
    ids, mask = tokens(2, N), masks()["ragged"]
    past = ours(ids, attention_mask=mask).past_key_values.crop(6)
    got = ours(ids[:, 6:], attention_mask=mask, past_key_values=past).logits
    expected = ours(ids, attention_mask=mask).logits[:, 6:]
    seen = mask[:, 6:].bool()
    assert distance_in_eps(got[seen], expected[seen]) < (200 if dtype == torch.float32 else 10)


def test_evicted_tokens_are_gone_as_if_masked():
    """Without reindexing: the same as hiding the tokens but keeping everyone's distance."""
    theirs, ours = pair(n_layer=1)  # one layer: other tokens' states do not depend on the evicted
    ids = tokens(1, N)
    past = ours(ids[:, :-1]).past_key_values
    mask = torch.ones(1, N, dtype=torch.long)
    mask[:, [2, 3, 7]] = 0
    got = ours(ids[:, -1:], past_key_values=past.evict([2, 3, 7], reindex=True)).logits
    # transformers counts positions without the hidden tokens: that is `reindex=True`
    assert distance_in_eps(got, theirs(ids, attention_mask=mask).logits[:, -1:]) < 200
    kept = past.evict([2, 3, 7])
    assert kept.positions.tolist() == [[0, 1, 4, 5, 6, 8, 9, 10]]
    assert kept.next_position.tolist() == [11]
    got = ours(ids[:, -1:], past_key_values=kept).logits

    def hide(scores, hook):
        scores[..., [2, 3, 7]] = torch.finfo(scores.dtype).min

    whole = [("blocks.0.attn.hook_attn_scores", hide)]
    expected = ours.run_with_hooks(ids, fwd_hooks=whole)[:, -1:]
    assert distance_in_eps(got, expected) < 200


def test_eviction_keeps_padded_rows_in_step():
    _, ours = pair(n_layer=1)
    ids, mask = tokens(2, N), masks()["left"]
    past = ours(ids, attention_mask=mask).past_key_values.evict([0, 1])
    assert past.valid.sum(-1).tolist() == [N - 4 - 2, N - 2]
    new = tokens(2, 1, seed=9)
    got = ours(new, past_key_values=past).logits
    for row in range(2):
        alone = ours(ids[row : row + 1, mask[row].bool()]).past_key_values.evict([0, 1])
        expected = ours(new[row : row + 1], past_key_values=alone).logits[0]
        assert distance_in_eps(got[row], expected) < 200


def test_greedy_continuation_equals_transformers_with_a_growing_cache():
    theirs, ours = pair()
    ids, mask = tokens(2, N), masks()["left"]
    past, cache = None, None
    for step in range(N):
        seen = mask[:, : step + 1]
        got = ours(ids[:, step : step + 1], attention_mask=seen, past_key_values=past)
        expected = theirs(ids[:, step : step + 1], attention_mask=seen, **{PAST: cache})
        past, cache = got.past_key_values, expected[PAST]
        rows = mask[:, step].bool()
        assert distance_in_eps(got.logits[rows], expected.logits[rows]) < 200


def test_gradients_flow_through_a_cache():
    _, ours = pair()
    ids = tokens(1, N)
    past = ours(ids[:, :5]).past_key_values
    ours(ids[:, 5:], past_key_values=past).logits.square().mean().backward()
    chunked = {name: value.grad.clone() for name, value in ours.named_parameters()}
    ours.zero_grad()
    ours(ids).logits[:, 5:].square().mean().backward()
    top = max(gradient.abs().max() for gradient in chunked.values())
    for name, value in ours.named_parameters():
        assert (chunked[name] - value.grad).abs().max() < 200 * 1.2e-7 * top, name


def test_a_forward_that_raises_leaves_the_cache_as_it_was():
    _, ours = pair()
    ids = tokens(1, N)
    past = ours(ids[:, :5]).past_key_values
    ours(ids[:, 5:6], past_key_values=past)

    def fail(value, hook):
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="middle"):
        ours.run_with_hooks(
            ids[:, 6:9], past_key_values=past, fwd_hooks=[("blocks.1.attn.hook_z", fail)]
        )
    assert len(past) == 6
    got = ours(ids[:, 6:], past_key_values=past).logits
    assert distance_in_eps(got, ours(ids).logits[:, 6:]) < 200


def test_a_masked_past_token_is_not_seen():
    theirs, ours = pair()
    ids = tokens(2, N)
    mask = masks()["ragged"]
    past = ours(ids[:, :8], attention_mask=mask[:, :8]).past_key_values
    got = ours(ids[:, 8:], attention_mask=mask, past_key_values=past).logits
    seen = mask[:, 8:].bool()
    expected = theirs(ids, attention_mask=mask).logits[:, 8:]
    assert distance_in_eps(got[seen], expected[seen]) < 200


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda past: past.crop(99), "99"),
        (lambda past: past.gather([2]), "rows 0 to 1"),
        (lambda past: past.fork(0), "at least one"),
        (lambda past: past.evict([40]), "0 to 11"),
        (lambda past: past.gather(torch.tensor([True, False])), "whole numbers"),
        (lambda past: past.evict(torch.ones(N, dtype=torch.bool)), "whole numbers"),
    ],
)
def test_impossible_changes_are_refused(change, text):
    _, ours = pair()
    past = ours(tokens(2, N)).past_key_values
    with pytest.raises(CacheError, match=text):
        change(past)


def test_a_mask_or_batch_that_does_not_fit_the_cache_is_refused():
    _, ours = pair()
    ids = tokens(2, N)
    past = ours(ids).past_key_values
    for length in (1, N, N + 2):
        with pytest.raises(ShapeError, match="12 cached and 1 new"):
            ours(ids[:, :1], attention_mask=torch.ones(2, length), past_key_values=past)
    with pytest.raises(CacheError, match="holds 2 rows, the input 1"):
        ours(ids[:1, :1], past_key_values=past)
    with pytest.raises(CacheError, match="KVCache"):
        ours(ids[:, :1], past_key_values=((1, 2),))
    with pytest.raises(CacheError, match="expected"):
        ours(ids[:, :1], past_key_values=past, cache_position=torch.tensor([3]))
    other = bl.BloomForCausalLM.from_hf(make_hf(n_layer=3))
    with pytest.raises(CacheError, match="2 layers"):
        other(ids[:, :1], past_key_values=past)
    wider = bl.BloomForCausalLM.from_hf(make_hf(n_head=3))
    with pytest.raises(ShapeError, match="another model"):
        wider(ids[:, :1], past_key_values=past)
    assert len(past) == N


def test_a_mask_that_shows_cached_padding_is_refused():
    _, ours = pair()
    ids, mask = tokens(2, N), masks()["left"]
    past = ours(ids, attention_mask=mask).past_key_values
    with pytest.raises(CacheError, match="were padding"):
        ours(ids[:, :1], attention_mask=torch.ones(2, N + 1), past_key_values=past)


@torch.no_grad()
def test_text_goes_on_from_a_cache_as_its_tokens_do(demo):
    before, after = "The old house in", " the city"
    ids = demo.to_tokens(after)
    past = demo(before).past_key_values
    expected = demo(ids, past_key_values=past.fork(), return_type="logits")
    assert torch.equal(demo(after, past_key_values=past, return_type="logits"), expected)
