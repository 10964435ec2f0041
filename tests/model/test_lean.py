"""The lean decoder computes what a forward computes, and knows when it must not be used."""

import pytest
import torch

import bloomlab as bl
from bloomlab.model.graphs import static_step
from bloomlab.model.inputs import layer_head_mask
from bloomlab.model.lean import LeanDecoder
from bloomlab.model.passing import suits
from tests.tiny import distance_in_eps, pair, tokens

STEPS = 5


def started(padded=False, **fields):
    """A model, a cache of three rows of twelve tokens, and the cache's fork."""
    _, ours = pair(**fields)
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, : 4 * padded] = 0
    past = ours(tokens(3, 12), attention_mask=mask).past_key_values
    return ours, past, past.fork()


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


def limit(dtype):
    return 10 if dtype in (torch.bfloat16, torch.float16) else 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("alibi", ["hf", "exact"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("n_head", [3, 6])
def test_a_lean_step_equals_a_forward(dtype, alibi, padded, n_head):
    ours, past, other = started(padded, dtype=dtype, n_head=n_head)
    ours.alibi = alibi
    ours.blocks[1].attn.slopes = ours.blocks[1].attn.slopes * 1.5
    lean = LeanDecoder(ours, past, steps=STEPS)
    for step in range(STEPS):
        new = tokens(3, 1, seed=step)
        expected = ours(new, past_key_values=other).logits[:, -1]
        assert distance_in_eps(lean.advance(new[:, 0]), expected) < limit(dtype)
    assert len(past) == len(other) == 12 + STEPS
    for ours_marks, theirs in zip(past.marks, other.marks, strict=True):
        assert torch.equal(ours_marks, theirs)
    for layer in range(2):
        assert distance_in_eps(past.keys(layer), other.keys(layer)) < limit(dtype)
        assert distance_in_eps(past.values(layer), other.values(layer)) < limit(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("padded", [False, True])
def test_a_step_of_fixed_shapes_equals_a_forward(dtype, padded):
    """What a GPU captures, run on the CPU: the column is data and later columns are masked."""
    ours, past, other = started(padded, dtype=dtype)
    lean = LeanDecoder(ours, past, steps=STEPS)
    lean.clear_ahead()
    column = torch.tensor([0])
    for step in range(STEPS):
        new = tokens(3, 1, seed=step)
        column.fill_(len(past))
        got = static_step(lean, new[:, 0], column)
        lean.keep()
        expected = ours(new, past_key_values=other).logits[:, -1]
        assert distance_in_eps(got, expected) < limit(dtype)
    assert torch.equal(past.positions, other.positions)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("post", [False, True])
def test_head_masks_and_both_kinds_of_skip(per_row, post):
    ours, past, other = started(apply_residual_connection_post_layernorm=post)
    mask = torch.rand(3, 2, 6) if per_row else torch.rand(2, 6)
    full = layer_head_mask(mask, batch=3, config=ours.config, device=ours.device)
    lean = LeanDecoder(ours, past, steps=STEPS, head_mask=full)
    new = tokens(3, 1)
    expected = ours(new, past_key_values=other, head_mask=mask).logits[:, -1]
    assert distance_in_eps(lean.advance(new[:, 0]), expected) < 200


def test_a_fork_is_unharmed_and_a_shared_prefix_is_copied_once():
    ours, past, other = started()
    forks = past.fork(2)
    before = past.keys(0).clone()
    lean = LeanDecoder(ours, forks, steps=STEPS)
    lean.advance(tokens(6, 1)[:, 0])
    assert len(past) == 12
    assert torch.equal(past.keys(0), before)
    assert len(forks) == 13
    new = tokens(3, 1, seed=9)
    expected = ours(new, past_key_values=other).logits
    assert torch.equal(ours(new, past_key_values=past).logits, expected)


def test_a_step_that_is_interrupted_leaves_the_cache_as_it_was(monkeypatch):
    ours, past, other = started()
    lean = LeanDecoder(ours, past, steps=STEPS)
    lean.advance(tokens(3, 1)[:, 0])
    ours(tokens(3, 1), past_key_values=other)

    def interrupt(stream):
        raise KeyboardInterrupt

    whole = lean.multiply
    lean.multiply = whole._replace(unembed=interrupt)
    with pytest.raises(KeyboardInterrupt):
        lean.advance(tokens(3, 1, seed=5)[:, 0])
    lean.multiply = whole
    assert len(past) == 13
    new = tokens(3, 1, seed=6)
    expected = ours(new, past_key_values=other).logits[:, -1]
    assert lean.holds(past)
    assert distance_in_eps(lean.advance(new[:, 0]), expected) < 200


def test_it_knows_whether_it_can_take_a_cache_on():
    ours, past, other = started()
    lean = LeanDecoder(ours, past, steps=2)
    assert lean.holds(past)
    assert not lean.holds(other)
    ours(tokens(3, 1), past_key_values=past)  # a forward in between, in the same room
    assert lean.holds(past)
    lean.advance(tokens(3, 1)[:, 0])
    assert not lean.holds(past)  # no room left
    expected = ours(torch.cat([tokens(3, 12), tokens(3, 1), tokens(3, 1)], 1)).logits[:, -1]
    assert (
        distance_in_eps(ours(tokens(3, 1), past_key_values=past.crop(13)).logits[:, -1], expected)
        < 200
    )


PASSED = [  # where a lean step calls hooks
    *("embed.hook_out", "hook_embed"),
    *(f"blocks.1.{name}" for name in ("hook_resid_pre", "hook_resid_mid", "hook_resid_post")),
    *(f"blocks.1.{name}" for name in ("hook_attn_out", "hook_mlp_out")),
    *(f"blocks.1.attn.hook_{name}" for name in "qkvz"),
    *(f"blocks.1.mlp.hook_{name}" for name in ("pre", "post")),
]


@pytest.mark.parametrize("name", PASSED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hooks_see_and_change_what_they_do_in_a_forward(name, dtype):
    ours, past, other = started(True, dtype=dtype)
    seen = []

    def edit(value, hook):
        seen.append(value.clone())
        return value * 1.1

    new = tokens(3, 1)
    lean = LeanDecoder(ours, past, steps=STEPS)
    with ours.hooks(fwd_hooks=[(name, edit)]):
        assert suits(ours)
        got = lean.advance(new[:, 0])
        expected = ours(new, past_key_values=other).logits[:, -1]
    mine, theirs = seen
    assert mine.shape == theirs.shape
    assert distance_in_eps(mine, theirs) < limit(dtype)
    assert distance_in_eps(got, expected) < limit(dtype)


def test_a_hook_anywhere_else_forbids_it():
    _, ours = pair()
    assert suits(ours)
    others = [name for name in ours.hook_dict if name.replace("blocks.0", "blocks.1") not in PASSED]
    assert len(others) == 2 * 13 + 4
    for name in others:
        with ours.hooks(fwd_hooks=[(name, lambda value, hook: None)]):
            assert not suits(ours), name


def test_whatever_else_would_be_called_forbids_it():
    _, ours = pair()
    handle = ours.blocks[0].mlp.register_forward_hook(lambda *_: None)
    assert not suits(ours)
    handle.remove()
    with torch.enable_grad():
        assert not suits(ours)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not suits(ours)
    assert suits(ours)
    ours.blocks[0].attn.o = torch.nn.Sequential(ours.blocks[0].attn.o)
    assert not suits(ours)


def test_it_notices_a_hook_it_would_not_call():
    ours, past, _ = started()
    lean = LeanDecoder(ours, past, steps=STEPS)
    for name, fine in (("hook_resid_post", True), ("attn.hook_pattern", False)):
        with ours.hooks(fwd_hooks=[(f"blocks.0.{name}", lambda value, hook: None)]):
            assert lean.is_current() == fine
    with torch.enable_grad():
        assert not lean.is_current()


def test_it_notices_other_weights_or_slopes():
    ours, past, _ = started()
    lean = LeanDecoder(ours, past, steps=STEPS)
    assert lean.is_current()
    ours.blocks[0].attn.slopes[2] += 0.1
    assert not lean.is_current()
    ours.blocks[0].attn.slopes[2] -= 0.1
    lean = LeanDecoder(ours, past, steps=STEPS)
    ours.blocks[1].mlp.fc_in.weight = torch.nn.Parameter(ours.blocks[1].mlp.fc_in.weight * 2)
    assert not lean.is_current()
    lean = LeanDecoder(ours, past, steps=STEPS)
    ours.alibi = "exact"
    assert not lean.is_current()


def test_dropout_and_slices_forbid_it():
    _, dropping = pair(hidden_dropout=0.1)
    assert suits(dropping)
    assert not suits(dropping.train())
    _, slow = pair(pretraining_tp=2, slow_but_exact=True)
    assert not suits(slow)
    assert not suits(pair("BloomModel")[1])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padded", [False, True])
def test_a_captured_step_equals_a_forward(dtype, padded):
    from bloomlab.model.graphs import GraphedDecoder

    _, ours = pair(dtype=dtype)
    ours = ours.to("cuda")
    mask = torch.ones(3, 12, dtype=torch.long)
    mask[0, : 4 * padded] = 0
    past = ours(tokens(3, 12).cuda(), attention_mask=mask.cuda()).past_key_values
    other = past.fork()
    graphed = GraphedDecoder(LeanDecoder(ours, past, steps=STEPS))
    for step in range(STEPS):
        new = tokens(3, 1, seed=step).cuda()
        expected = ours(new, past_key_values=other).logits[:, -1]
        assert distance_in_eps(graphed.advance(new[:, 0]), expected) < limit(dtype)
    assert isinstance(past, bl.KVCache)
    assert len(past) == 12 + STEPS
