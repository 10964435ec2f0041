"""Law 6 under interventions: a trace shows what the edited run did, not what q and k would give."""

import pytest
import torch

import bloomlab as bl
from bloomlab.trace import Recorder
from tests.test_trace import ALL, HEADS, LAYERS, N, padding
from tests.test_trace_generation import advance
from tests.tiny import distance_in_eps, pair, tokens


def cut(scores, hook):
    """The last query does not look at the token before it."""
    scores[:, :, -1, -2] = torch.finfo(scores.dtype).min


def uniform(pattern, hook):
    return torch.full_like(pattern, 1 / pattern.shape[-1])


def steeper(alibi, hook):
    alibi[:, 1] *= 2


def double(value, hook):
    value[:, -1] *= 2


def steer(value, hook):
    return value + torch.arange(value.shape[-1]) / 20


EDITS = {
    "scores": [("blocks.1.attn.hook_attn_scores", cut)],
    "pattern": [("blocks.0.attn.hook_pattern", uniform)],
    "alibi": [("blocks.1.attn.hook_alibi", steeper)],
    "two at once": [
        ("blocks.0.attn.hook_alibi", steeper),
        ("blocks.0.attn.hook_attn_scores", cut),
    ],
    "by a function": [(lambda name: name.endswith("hook_attn_scores"), cut)],
    "q": [("blocks.0.attn.hook_q", double)],
    "k": [("blocks.1.attn.hook_k", double)],
    "stream": [("blocks.1.hook_resid_pre", steer)],
}


def assert_is_the_run(trace, cache, *, limit):
    """Every rebuilt quantity against what hooks of an equally edited run saw."""
    for layer, head in ALL:
        for name, point in (
            ("pattern", "pattern"),
            ("scores", "attn_scores"),
            ("alibi", "alibi"),
        ):
            got, expected = getattr(trace, name)(layer, head), cache[point, layer][:, head]
            assert (got.isfinite() == expected.isfinite()).all()
            if name == "scores":
                assert torch.equal(got < -1e4, expected < -1e4)
                got, expected = (s.masked_fill(expected < -1e4, 0) for s in (got, expected))
            assert distance_in_eps(got, expected) < limit, (layer, head, name)
    for layer in range(LAYERS):
        assert distance_in_eps(trace.resid(layer), cache["resid_pre", layer]) < limit
        assert distance_in_eps(trace.q(layer), cache["q", layer]) < limit


@pytest.mark.parametrize("kind", ["none", "left"])
@pytest.mark.parametrize("name", EDITS)
@torch.no_grad()
def test_a_trace_shows_the_edited_run(name, kind):
    _, ours = pair()
    ids, mask = tokens(2, N), padding(kind)
    with ours.hooks(EDITS[name]):
        _, cache = ours.run_with_cache(ids, attention_mask=mask)
        already = ours.trace(ids, attention_mask=mask)  # hooks attached before
    trace = ours.trace(ids, attention_mask=mask, fwd_hooks=EDITS[name])
    for one in (trace, already):
        assert_is_the_run(one, cache, limit=200)
    clean = ours.trace(ids, attention_mask=mask)
    assert any(distance_in_eps(trace.pattern(*h), clean.pattern(*h)) > 1e4 for h in ALL)


@pytest.mark.parametrize("name", EDITS)
def test_an_edit_at_one_step_shows_at_that_step(name):
    _, ours = pair()
    ids, recorder, past = tokens(2, N), Recorder(ours), bl.KVCache()
    clean = ours.trace(ids[:, :8])
    advance(ours, recorder, ids[:, :8], past)
    mirror = past.fork(1)
    advance(ours, recorder, ids[:, 8:9], past, hooks=EDITS[name])
    with torch.no_grad(), ours.hooks(EDITS[name]):
        _, cache = ours.run_with_cache(ids[:, 8:9], past_key_values=mirror, use_cache=True)
    advance(ours, recorder, ids[:, 9:], past)
    with torch.no_grad():
        after = ours(ids[:, 9:], past_key_values=mirror, output_attentions=True).attentions
    trace = recorder.trace
    for layer, head in ALL:
        pattern = trace.pattern(layer, head)
        before = clean.pattern(layer, head)
        assert distance_in_eps(pattern[:, :8, :8], before) < 200
        at = cache["pattern", layer][:, head]
        assert distance_in_eps(pattern[:, 8:9, :9], at) < 200
        assert distance_in_eps(pattern[:, 9:], after[layer][:, head]) < 200
        assert distance_in_eps(trace.pattern(layer, head, [10, 8]), pattern[:, [10, 8]]) < 10


def test_an_edit_the_cache_does_not_know_shows_at_its_step_only():
    """The edited forward runs on a fork; the clean one's keys are what later queries see."""
    _, ours = pair()
    hooks = EDITS["k"] + EDITS["stream"]
    ids, recorder, past = tokens(2, N), Recorder(ours), bl.KVCache()
    advance(ours, recorder, ids[:, :8], past)
    with torch.no_grad():
        with ours.hooks([*hooks, *recorder.hooks(edited=[name for name, _ in hooks])]):
            at = ours(ids[:, 8:9], past_key_values=past.fork(1), output_attentions=True)
        with ours.hooks(recorder.cache_hooks()):
            ours(ids[:, 8:9], past_key_values=past)
        recorder.add(ids[:, 8:9])
        mirror = past.fork(1)
        advance(ours, recorder, ids[:, 9:], past)
        after = ours(ids[:, 9:], past_key_values=mirror, output_attentions=True)
    clean = ours.trace(ids)
    trace = recorder.trace
    assert distance_in_eps(trace.k(1)[:, 8], clean.k(1)[:, 8]) > 1e4
    for layer, head in ALL:
        pattern = trace.pattern(layer, head)
        assert distance_in_eps(pattern[:, 8:9, :9], at.attentions[layer][:, head]) < 200
        assert distance_in_eps(pattern[:, 9:], after.attentions[layer][:, head]) < 200
        for rows in (slice(0, 8), slice(9, N)):
            assert distance_in_eps(pattern[:, rows], clean.pattern(layer, head, rows)) < 200
        weighted = trace.value_weighted(layer, head, [N - 1])
        expected = clean.value_weighted(layer, head, [N - 1])
        assert distance_in_eps(weighted, expected) < 200


def test_later_writes_do_not_reach_a_trace():
    _, ours = pair()
    ids, steering = tokens(1, N), torch.zeros(1, N, 48)
    trace = ours.trace(ids, fwd_hooks=[("hook_embed", lambda v, hook: steering)])
    trace = ours.trace(ids, fwd_hooks=[("blocks.0.hook_resid_pre", lambda v, hook: steering)])
    steering += 1
    assert not trace.resid(0).any()


def test_whoever_only_reads_costs_no_patterns():
    _, ours = pair()

    def look(pattern, hook):
        assert pattern.shape[1] == HEADS

    look.only_reads = True
    hooks = [("blocks.0.attn.hook_pattern", look)]
    ids = tokens(1, N)
    assert ours.trace(ids, fwd_hooks=hooks).nbytes == ours.trace(ids).nbytes
    edited = ours.trace(ids, fwd_hooks=EDITS["pattern"])
    assert edited.nbytes == ours.trace(ids).nbytes + HEADS * N * N * 4
