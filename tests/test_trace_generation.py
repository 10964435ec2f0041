"""Law 6 for what runs in pieces: a trace over a growing cache equals that of one full forward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bloomlab as bl
from bloomlab.errors import InputError, ShapeError
from bloomlab.trace import Recorder
from tests.test_trace import ALL, HEADS, LAYERS, N, padding
from tests.tiny import distance_in_eps, pair, tokens


def advance(model, recorder, ids, past, mask=None, hooks=()):
    """One recorded forward of new tokens."""
    fwd_hooks = [*hooks, *recorder.hooks(edited=[name for name, _ in hooks])]
    with torch.no_grad(), model.hooks(fwd_hooks=fwd_hooks):
        model(ids, attention_mask=mask, past_key_values=past)
    recorder.add(ids, mask)


def in_steps(model, ids, lengths, mask=None, **options):
    """The trace of a text run in chunks, the cache growing."""
    recorder, past, start = Recorder(model, **options), bl.KVCache(), 0
    for length in lengths:
        stop = start + length
        seen = None if mask is None else mask[:, :stop]
        advance(model, recorder, ids[:, start:stop], past, seen)
        start = stop
    return recorder.trace


def assert_equal_traces(got, expected, *, valid, limit):
    """Everything a trace holds and rebuilds, at the rows that are no padding.

    In eps of the model's format: what is rebuilt in float32 comes from rounded queries and keys.
    """
    dtype = expected.resid(0).dtype
    assert torch.equal(got.tokens, expected.tokens)
    assert torch.equal(got.positions, expected.positions)
    assert torch.equal(got.attention_mask, expected.attention_mask)
    for layer in range(LAYERS + 1):
        assert distance_in_eps(got.resid(layer)[valid], expected.resid(layer)[valid]) < limit
    for name in "qkv":
        for layer in range(LAYERS):
            ours, theirs = getattr(got, name)(layer), getattr(expected, name)(layer)
            assert distance_in_eps(ours[valid], theirs[valid]) < limit
    for layer, head in ALL:
        for name in ("pattern", "value_weighted", "scores"):
            ours, theirs = getattr(got, name)(layer, head), getattr(expected, name)(layer, head)
            if name == "scores":
                hidden = theirs < -1e4
                assert (ours[hidden] < -1e4).all()
                ours, theirs = ours.masked_fill(hidden, 0), theirs.masked_fill(hidden, 0)
            assert distance_in_eps(ours[valid], theirs[valid], dtype) < limit


@pytest.mark.parametrize("alibi", ["hf", "exact"])
@pytest.mark.parametrize("kind", ["none", "left", "ragged"])
@pytest.mark.parametrize("split", [[1] * N, [5, 1, 1, 5]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_trace_of_cached_generation_equals_one_full_forward(dtype, split, kind, alibi):
    _, ours = pair(dtype=dtype)
    ours.alibi = alibi
    ids, mask = tokens(2, N), padding(kind)
    got = in_steps(ours, ids, split, mask)
    expected = ours.trace(ids, attention_mask=mask)
    valid = torch.ones(2, N, dtype=torch.bool) if mask is None else mask.bool()
    limit = 200 if dtype == torch.float32 else 12
    assert_equal_traces(got, expected, valid=valid, limit=limit)
    rows = torch.tensor([2, -1, 7])
    assert distance_in_eps(got.pattern(1, 2, rows), got.pattern(1, 2)[:, rows]) < 10
    with torch.no_grad():
        eager = ours(ids, attention_mask=mask, output_attentions=True).attentions
    for layer, head in ALL:
        ours_now = got.pattern(layer, head)[valid]
        assert distance_in_eps(ours_now, eager[layer][:, head][valid]) < limit


def test_a_long_generation_in_half_precision_follows_its_forwards():
    """Below and above the number of keys where the arithmetic may change: each step's own."""
    _, ours = pair(dtype=torch.bfloat16, n_layer=1)
    ids = tokens(1, 70)
    recorder, past, patterns = Recorder(ours), bl.KVCache(), []
    for step in [slice(0, 60), *(slice(i, i + 1) for i in range(60, 70))]:
        with torch.no_grad(), ours.hooks(fwd_hooks=recorder.hooks()):
            out = ours(ids[:, step], past_key_values=past, output_attentions=True)
        recorder.add(ids[:, step])
        patterns.append(torch.nn.functional.pad(out.attentions[0], (0, 70 - len(past))))
    expected = torch.cat(patterns, 2)
    for head in range(HEADS):
        assert distance_in_eps(recorder.trace.pattern(0, head), expected[:, head]) < 2


@pytest.mark.parametrize("alibi", ["hf", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_padding_looks_where_its_own_forward_made_it_look(dtype, alibi):
    _, ours = pair(dtype=dtype)
    ours.alibi = alibi
    trace = in_steps(ours, tokens(2, N), [7, 1, 4], padding("left"))
    blind = trace.pattern(0, 1)[0, :4]
    assert torch.allclose(blind[:, :7].float(), torch.tensor(1 / 7), atol=1e-3)
    assert not blind[:, 7:].any()
    assert torch.equal(trace.pattern(0, 1, [2, 9])[0, 0], blind[2])


def test_the_prompts_snapshot_is_not_touched_by_later_steps():
    _, ours = pair()
    ids, recorder, past = tokens(1, N), Recorder(ours), bl.KVCache()
    advance(ours, recorder, ids[:, :8], past)
    early = recorder.trace
    before = early.pattern(1, 0)
    advance(ours, recorder, ids[:, 8:], past)
    assert (len(early), len(recorder.trace), len(recorder)) == (8, N, N)
    assert torch.equal(early.pattern(1, 0), before)
    assert recorder.trace.nbytes < 2 * early.nbytes


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.data())
def test_a_recorder_follows_the_cache_through_forks_crops_and_gathers(data):
    """A brute-force model of both: the token rows themselves."""
    _, ours = pair()
    rows = tokens(2, 4, seed=data.draw(st.integers(0, 99)))
    valid = torch.ones(2, 4, dtype=torch.bool)
    valid[0, : data.draw(st.integers(0, 2))] = False
    recorder, past = Recorder(ours), bl.KVCache()
    advance(ours, recorder, rows, past, valid.long())
    for _ in range(5):
        action = data.draw(st.sampled_from(["extend", "fork", "crop", "gather"]))
        if action == "extend":
            new = tokens(len(rows), data.draw(st.integers(1, 3)), seed=len(rows))
            rows, valid = torch.cat([rows, new], 1), torch.cat([valid, new > 0], 1)
            advance(ours, recorder, new, past, valid.long())
        elif action == "fork" and len(rows) < 8:
            index = torch.arange(len(rows)).repeat_interleave(2)
            past, rows, valid = past.fork(2), rows[index], valid[index]
            recorder.gather(index)
        elif action == "crop":
            length = data.draw(st.integers(3, rows.shape[1]))
            past, rows, valid = past.crop(length), rows[:, :length], valid[:, :length]
            recorder.crop(length)
        elif action == "gather":
            index = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=4))
            past, rows, valid = past.gather(index), rows[index], valid[index]
            recorder.gather(index)
    expected = ours.trace(rows, attention_mask=valid.long())
    assert_equal_traces(recorder.trace, expected, valid=valid, limit=200)


def test_a_trace_is_cropped_and_gathered_like_its_text():
    _, ours = pair()
    ids, mask = tokens(2, N), padding("left")
    trace = in_steps(ours, ids, [7, 1, 4], mask)
    got = trace.gather([1, 0, 1]).crop(-3)
    expected = ours.trace(ids[[1, 0, 1], :-3], attention_mask=mask[[1, 0, 1], :-3])
    valid = mask[[1, 0, 1], :-3].bool()
    assert_equal_traces(got, expected, valid=valid, limit=200)
    assert trace.gather([0] * 384).nbytes < 1.1 * trace.nbytes


def test_a_past_token_hidden_later_is_hidden_from_later_queries_only():
    _, ours = pair()
    ids, recorder, past = tokens(2, N), Recorder(ours), bl.KVCache()
    advance(ours, recorder, ids[:, :8], past)
    mask = torch.ones(2, N, dtype=torch.long)
    mask[1, 3] = 0
    with torch.no_grad(), ours.hooks(fwd_hooks=recorder.hooks()):
        out = ours(ids[:, 8:], attention_mask=mask, past_key_values=past, output_attentions=True)
    recorder.add(ids[:, 8:], mask)
    for layer, head in ALL:
        got = recorder.trace.pattern(layer, head)
        assert distance_in_eps(got[:, 8:], out.attentions[layer][:, head]) < 200
        assert not got[1, 8:, 3].any()
        assert got[1, 3:8, 3].all()


def test_without_a_cache_the_whole_text_is_run_again_each_step():
    _, ours = pair()
    ids, recorder = tokens(2, N), Recorder(ours)
    for start, stop in ((0, 7), (7, 8), (8, N)):
        with torch.no_grad(), ours.hooks(fwd_hooks=recorder.hooks()):
            ours(ids[:, :stop], use_cache=False)
        recorder.add(ids[:, start:stop])
    valid = torch.ones(2, N, dtype=torch.bool)
    assert_equal_traces(recorder.trace, ours.trace(ids), valid=valid, limit=200)


def test_slopes_are_those_of_each_forward():
    _, ours = pair()
    ids, recorder, past = tokens(1, N), Recorder(ours), bl.KVCache()
    advance(ours, recorder, ids[:, :8], past)
    ours.blocks[1].attn.slopes *= 3
    with torch.no_grad(), ours.hooks(fwd_hooks=recorder.hooks()):
        out = ours(ids[:, 8:], past_key_values=past, output_attentions=True)
    recorder.add(ids[:, 8:])
    ours.blocks[1].attn.slopes /= 3
    trace, before = recorder.trace, ours.trace(ids[:, :8])
    for head in range(HEADS):
        assert distance_in_eps(trace.pattern(1, head)[:, 8:], out.attentions[1][:, head]) < 200
        assert distance_in_eps(trace.pattern(1, head)[:, :8, :8], before.pattern(1, head)) < 200


def test_a_recorder_out_of_step_says_so():
    _, ours = pair()
    ids, recorder, past = tokens(2, N), Recorder(ours), bl.KVCache()
    with pytest.raises(InputError, match="nothing is recorded yet"):
        _ = recorder.trace
    with pytest.raises(InputError, match="nothing is recorded yet"):
        recorder.gather([0])
    with pytest.raises(InputError, match="no forward gave q.0"):
        recorder.add(ids)
    advance(ours, recorder, ids[:, :8], past)
    with pytest.raises(InputError, match="no forward gave"):
        recorder.add(ids[:, 8:])
    thinned = past.evict([2])
    with pytest.raises(ShapeError, match="8 recorded and 1 new tokens.*evicted"):
        advance(ours, recorder, ids[:, 8:9], thinned, torch.ones(2, 8, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"\(1, 9\), expected \[2, 9\].*gather"):
        advance(ours, recorder, ids[:1, 8:9], past.gather([0]))
    assert len(recorder) == 8
    with pytest.raises(InputError, match="rows run from 0 to 1"):
        recorder.gather([2])
    with pytest.raises(InputError, match="expected 1 to 8"):
        recorder.crop(9)
