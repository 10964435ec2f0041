"""Law 6: what a trace rebuilds from q and k is what eager attention computes."""

import pytest
import torch
from torch.nn.functional import adaptive_max_pool2d
from torch.utils._python_dispatch import TorchDispatchMode

import bloomlab as bl
from bloomlab.model import rebuild
from bloomlab.trace import Recorder
from tests.tiny import distance_in_eps, make_hf, pair, tokens

N, LAYERS, HEADS = 12, 2, 6
ALL = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def padding(kind, length=N):
    mask = torch.ones(2, length, dtype=torch.long)
    if kind == "left":
        mask[0, :4] = 0
    if kind == "ragged":
        mask[0, :2], mask[0, 5], mask[1, 7:9] = 0, 0, 0
    return None if kind == "none" else mask


class Largest(TorchDispatchMode):
    """The largest tensor any operation makes, in numbers."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.numel = max(self.numel, out.numel())
        return out


@pytest.mark.parametrize("alibi", ["hf", "exact"])
@pytest.mark.parametrize("kind", ["none", "left", "ragged"])
@pytest.mark.parametrize("length", [N, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_pattern_and_scores_equal_the_eager_ones(dtype, length, kind, alibi):
    _, ours = pair(dtype=dtype)
    ours.alibi = alibi
    ids, mask = tokens(2, length), padding(kind, length)
    recorder = Recorder(ours)
    with ours.hooks(fwd_hooks=recorder.hooks()):  # of the same run: only the rebuilding is tested
        _, cache = ours.run_with_cache(ids, attention_mask=mask, use_cache=False)
    recorder.add(ids, mask)
    trace = recorder.trace
    limit = 20 if dtype in (torch.float32, torch.float64) else 2
    unseen = ~torch.ones(length, length).tril().bool()
    unseen = unseen | (torch.zeros(2, 1, length) if mask is None else mask[:, None] == 0).bool()
    for layer, head in ALL:
        pattern = cache["pattern", layer][:, head]
        assert trace.pattern(layer, head).dtype == dtype
        assert distance_in_eps(trace.pattern(layer, head), pattern) < limit
        scores, expected = trace.scores(layer, head), cache["attn_scores", layer][:, head]
        assert distance_in_eps(scores, expected) < limit  # the lowest numbers at the same places
        scores, expected = (s.masked_fill(unseen, 0) for s in (scores, expected))
        assert distance_in_eps(scores, expected, dtype) < limit


@pytest.mark.parametrize("n_head", [3, 4, 6])
@pytest.mark.parametrize("kind", ["none", "left", "ragged"])
def test_patterns_equal_transformers_attentions(n_head, kind):
    theirs, ours = pair(n_head=n_head, attn_implementation="eager")
    ids, mask = tokens(2, N), padding(kind)
    expected = theirs(ids, attention_mask=mask, output_attentions=True).attentions
    trace = ours.trace(ids, attention_mask=mask)
    for layer in range(LAYERS):
        for head in range(n_head):
            assert distance_in_eps(trace.pattern(layer, head), expected[layer][:, head]) < 200


def test_one_token_attends_to_itself():
    _, ours = pair()
    trace = ours.trace(tokens(1, 1))
    assert trace.pattern(0, 0).tolist() == [[[1.0]]]
    assert trace.thumbnails().tolist() == torch.ones(1, LAYERS, HEADS, 1, 1).tolist()


@pytest.mark.parametrize("alibi", ["hf", "exact"])
@pytest.mark.parametrize("kind", ["none", "left"])
@torch.no_grad()
def test_content_and_alibi_are_what_the_scores_consist_of(kind, alibi):
    _, ours = pair(dtype=torch.float64)
    ours.alibi = alibi
    ids, mask = tokens(2, N), padding(kind)
    trace = ours.trace(ids, attention_mask=mask)
    _, cache = ours.run_with_cache(ids, attention_mask=mask, names_filter=lambda n: "alibi" in n)
    valid = torch.ones(2, N) if mask is None else mask
    seen = torch.ones(N, N).tril().bool() & valid[:, None].bool()
    for layer, head in ALL:
        content, bias = trace.content(layer, head), trace.alibi(layer, head)
        assert distance_in_eps(bias, cache["alibi", layer][:, head], torch.float32) < 4
        q, k = (t[:, :, head] for t in (trace.q(layer), trace.k(layer)))
        assert distance_in_eps(content, torch.einsum("bqd,bkd->bqk", q, k) / 8**0.5) < 10
        total = (content + bias)[seen]
        assert distance_in_eps(total, trace.scores(layer, head)[seen]) < 10


def test_value_weighted_is_the_pattern_times_the_norm_of_the_value():
    _, ours = pair()
    trace = ours.trace(tokens(2, N))
    norm = trace.v(1).square().sum(-1).sqrt()[:, None, :, 3]
    assert distance_in_eps(trace.value_weighted(1, 3), trace.pattern(1, 3) * norm) < 10
    assert distance_in_eps(trace.value_weighted(1, 3, [7]), trace.value_weighted(1, 3)[:, [7]]) < 10


@pytest.mark.parametrize("post_norm", [False, True])
def test_the_residual_stream_is_transformers_hidden_states(post_norm):
    theirs, ours = pair(apply_residual_connection_post_layernorm=post_norm)
    ids = tokens(2, N)
    states = theirs(ids, output_hidden_states=True).hidden_states
    trace = ours.trace(ids)
    for layer in range(LAYERS):
        assert distance_in_eps(trace.resid(layer), states[layer]) < 200
    assert distance_in_eps(ours.ln_final(trace.resid(LAYERS)), states[-1]) < 200
    assert torch.equal(trace.resid(-1), trace.resid(LAYERS - 1))


@pytest.mark.parametrize("name", ["pattern", "scores", "content", "alibi", "value_weighted"])
@pytest.mark.parametrize("kind", ["none", "left"])
@pytest.mark.parametrize("alibi", ["hf", "exact"])
def test_any_rows_are_those_of_the_whole(name, kind, alibi):
    _, ours = pair()
    ours.alibi = alibi
    trace = ours.trace(tokens(2, N), attention_mask=padding(kind))
    whole = getattr(trace, name)(0, -1)
    assert whole.shape == (2, N, N)
    asked = [0, 5, -1, slice(3, 8), [9, 2, 2], torch.tensor([1, -2])]
    for queries in asked:
        rows = [queries] if isinstance(queries, int) else queries
        got = getattr(trace, name)(0, HEADS - 1, queries)
        assert got.shape == whole[:, rows].shape
        assert distance_in_eps(got, whole[:, rows]) < 10


@pytest.mark.parametrize("kind", ["none", "left"])
def test_a_row_does_not_cost_the_whole_pattern(kind):
    _, ours = pair()
    trace = ours.trace(tokens(2, 300), attention_mask=padding(kind, 300))
    with Largest() as largest:
        trace.pattern(0, 0, queries=[250, 299])
    assert 2 * 2 * 300 <= largest.numel < 300 * 300 / 4


@pytest.mark.parametrize("cells", [1, 2**22])
@pytest.mark.parametrize("kind", ["none", "left"])
@pytest.mark.parametrize(("length", "size"), [(N, 5), (N, 12), (N, 64), (80, 16), (70, 64)])
def test_thumbnails_are_adaptive_max_pooling(monkeypatch, length, size, kind, cells):
    monkeypatch.setattr(rebuild, "CELLS", cells)
    _, ours = pair()
    ids, mask = tokens(2, length), padding(kind, length)
    expected = ours(ids, attention_mask=mask, output_attentions=True).attentions
    size_now = min(size, length)
    expected = torch.stack([adaptive_max_pool2d(p, (size_now, size_now)) for p in expected], 1)
    got = ours.trace(ids, attention_mask=mask).thumbnails(size)
    assert got.shape == (2, LAYERS, HEADS, size_now, size_now)
    assert distance_in_eps(got, expected) < 200


def test_thumbnails_never_hold_the_patterns_of_a_layer(monkeypatch):
    monkeypatch.setattr(rebuild, "CELLS", 2**15)
    _, ours = pair()
    trace = ours.trace(tokens(1, 256))
    with Largest() as largest:
        pooled = trace.thumbnails(64)
    assert largest.numel <= max(2**15, pooled.numel()) < HEADS * 256 * 256 / 4


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_smaller_format_halves_the_memory_and_rebuilds_in_float32(stored):
    _, ours = pair()
    ids = tokens(2, 64)
    full, small = ours.trace(ids), ours.trace(ids, dtype=stored)
    assert small.q(0).dtype == small.resid(0).dtype == stored
    assert small.nbytes < 0.55 * full.nbytes
    assert small.nbytes == full.to(stored).nbytes
    got = small.pattern(1, 0)
    assert got.dtype == torch.float32
    assert 0 < (got - full.pattern(1, 0)).abs().max() < 0.1
    assert torch.equal(got, full.to(dtype=stored).pattern(1, 0))
    named = str(stored).removeprefix("torch.")
    assert ours.trace(ids, dtype=named).q(0).dtype == full.to(dtype=named).q(0).dtype == stored


def test_a_wider_format_rebuilds_as_the_run_computed():
    _, ours = pair(dtype=torch.bfloat16)
    ids = tokens(2, N)
    got = ours.trace(ids, dtype=torch.float32).pattern(1, 2)
    assert torch.equal(got, ours.trace(ids).pattern(1, 2))


def test_memory_is_a_fraction_of_the_patterns():
    """Heads of width 64 at 1024 tokens, as bloom-560m's: the ratios do not depend on the rest."""
    ours = bl.BloomForCausalLM.from_hf(make_hf(hidden_size=256, n_layer=4, n_head=4))
    ids = tokens(1, 1024)
    patterns = 4 * 4 * 1024 * 1024 * 4
    thin = ours.trace(ids, keep=("q", "k"), dtype=torch.bfloat16)
    assert thin.q(0).numel() * 2 * 2 * 4 <= thin.nbytes < 0.1 * patterns
    assert ours.trace(ids, keep=("q", "k")).nbytes < 0.2 * patterns  # v is not kept alive
    assert 0.2 * patterns < ours.trace(ids).nbytes < 0.3 * patterns


def test_recording_changes_nothing_and_leaves_no_hook():
    _, ours = pair()
    ids = tokens(2, N)
    recorder = Recorder(ours)
    with ours.hooks(fwd_hooks=recorder.hooks()):
        logits = ours(ids).logits
    assert torch.equal(logits, ours(ids).logits)
    ours.trace(ids)
    with pytest.raises(ZeroDivisionError):
        ours.trace(ids, fwd_hooks=[("hook_embed", lambda value, hook: 1 / 0)])
    assert not any(point._forward_hooks for point in ours.hook_dict.values())


def test_the_pattern_is_before_the_head_mask():
    _, ours = pair()
    ids, head_mask = tokens(1, N), torch.zeros(LAYERS, HEADS)
    trace = ours.trace(ids, head_mask=head_mask)
    assert torch.equal(trace.pattern(0, 1), ours.trace(ids).pattern(0, 1))
    _, cache = ours.run_with_cache(ids, head_mask=head_mask)
    assert distance_in_eps(trace.pattern(1, 1), cache["pattern", 1][:, 1]) < 200


def test_text_and_what_describes_a_trace(demo):
    trace = demo.trace(["The cat sat.", "Le chat est assis sur le tapis."], layers=[0, -1])
    ids, mask = demo.to_tokens_and_mask(["The cat sat.", "Le chat est assis sur le tapis."])
    assert isinstance(trace, bl.Trace)
    assert torch.equal(trace.tokens, ids)
    assert torch.equal(trace.attention_mask, mask.bool())
    assert trace.positions.tolist() == ((mask.cumsum(-1) - 1) * mask).tolist()
    assert len(trace) == ids.shape[1]
    assert trace.layers == (0, demo.config.n_layer - 1)
    assert trace.thumbnails(4).shape == (2, 2, 8, 4, 4)
    assert repr(trace).startswith(f"Trace(2 rows, {len(trace)} tokens, 2 of 6 layers, q k v resid")


def test_autocast_is_that_of_the_run():
    _, ours = pair()
    ids = tokens(2, N)
    with torch.autocast("cpu", torch.bfloat16):
        trace = ours.trace(ids)
        expected = ours(ids, output_attentions=True).attentions
        inside = trace.pattern(1, 2)
    assert torch.equal(trace.pattern(1, 2), inside)
    assert distance_in_eps(inside, expected[1][:, 2]) < 4
