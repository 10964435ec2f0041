"""Law 2 under interventions: step by step with a cache, an edit is the one of a full forward."""

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bloomlab as bl
from bloomlab.interventions import (
    Intervention,
    freeze_pattern,
    knock_out,
    mask_heads,
    mean_heads,
    patch,
    scale_heads,
    scale_slopes,
    steer,
)
from tests.points import LEFT, SHAPES
from tests.tiny import pair, tokens

N, PROMPT = 9, 5
IDS, OTHER = tokens(2, N), tokens(2, N, seed=2)
PUSH = torch.linspace(-1, 1, 48, dtype=torch.float64)
LIMIT = 1e-9
MASKS = pytest.mark.parametrize("mask", [None, LEFT], ids=["full", "left-padded"])


@pytest.fixture(scope="module", params=[3, 6])
def ours(request):
    return pair(n_head=request.param, dtype=torch.float64)[1]


@pytest.fixture(scope="module")
def model():
    return pair(dtype=torch.float64)[1]


def forward(model, columns, hooks, *, past=None, mask=None):
    """Logits of some columns of the text under hooks; grows the cache if there is one."""
    return model.run_with_hooks(
        IDS[:, columns],
        attention_mask=None if mask is None else mask[:, : columns.stop],
        past_key_values=past,
        fwd_hooks=hooks,
    )


def stepwise(model, *edits, mask=None, prompt=(PROMPT,)):
    """Logits of every column: the prompt (maybe in parts), then one token at a time, cached."""
    past, logits = bl.KVCache(), []
    for step, length in enumerate((*prompt, *[1] * (N - sum(prompt))), 1 - len(prompt)):
        columns = slice(len(past), len(past) + length)
        hooks = [pair for e in edits for pair in e.hooks(len(past), max(step, 0))]
        logits.append(forward(model, columns, hooks, past=past, mask=mask))
    return torch.cat(logits, 1)


KINDS = {  # an intervention of each kind, given another run
    "mask": lambda _: mask_heads(0, [0, 2]),
    "scale": lambda _: scale_heads(1, 1, factor=2.0),
    "mean": lambda other: mean_heads(0, 1, mean=other["z", 0].mean((0, 1))),
    "steer": lambda _: steer(1, PUSH),
    "knock out": lambda _: knock_out(0, [0, 2], keys=[2, 4]),
    "freeze": lambda other: freeze_pattern(1, 2, pattern=other),
    "slopes": lambda _: scale_slopes(0, [1, 2], factor=0),
    "patch k": lambda other: patch("blocks.0.attn.hook_k", other, heads=1),
    "patch scores": lambda other: patch("blocks.1.attn.hook_attn_scores", other, heads=[0, 2]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [[3, 6, 7], [8], range(N)])
@MASKS
@torch.no_grad()
def test_an_edit_at_a_step_is_that_of_a_full_forward_at_its_column(ours, kind, columns, mask):
    other = ours.run_with_cache(OTHER, attention_mask=mask)[1]
    edit = KINDS[kind](other).at_columns(columns)
    seen = torch.ones_like(LEFT).bool() if mask is None else mask.bool()
    expected = forward(ours, slice(0, N), [edit], mask=mask)
    clean = forward(ours, slice(0, N), [], mask=mask)
    assert (expected - clean)[seen].abs().max() > 1e-6
    got = stepwise(ours, edit, mask=mask)
    assert (got - expected)[seen].abs().max() < LIMIT


@pytest.mark.parametrize("name", SHAPES)
@torch.no_grad()
def test_a_patch_at_any_point_at_a_step_is_that_of_a_full_forward(model, name):
    other = model.run_with_cache(OTHER, attention_mask=LEFT, names_filter=name)[1]
    edit = patch(name, other).at_columns([2, 6, 7]).on_rows(1)
    expected = forward(model, slice(0, N), [edit])
    assert (expected - forward(model, slice(0, N), []))[1].abs().max() > 1e-6
    assert (stepwise(model, edit) - expected).abs().max() < LIMIT


@torch.no_grad()
def test_edits_at_one_point_follow_each_other_in_their_order(model):
    first, second = scale_heads(0, 1, factor=3.0), mean_heads(0, 1, mean=torch.ones(6, 8))
    both, reverse = (forward(model, slice(0, N), e) for e in ([first, second], [second, first]))
    assert torch.equal(both, forward(model, slice(0, N), [second]))
    by_hand = forward(model, slice(0, N), [mean_heads(0, 1, mean=torch.full((6, 8), 3.0))])
    assert (reverse - by_hand).abs().max() < LIMIT
    assert (stepwise(model, second, first) - by_hand).abs().max() < LIMIT


# -- schedules -------------------------------------------------------------------------------------

BUMP = steer("hook_embed", torch.ones(48))


def step_of(column, prompt):
    return max(0, column - prompt + 1)


def bumped(model, start, stop, step, edit, past=None):
    """Where an edit acted in one forward: how much was added, per row and column."""
    added = []
    clean = model.run_with_cache(IDS, names_filter="hook_embed")[1]["hook_embed"]
    hooks = [
        *edit.hooks(start, step),
        ("hook_embed", lambda v, hook: added.append((v - clean[:, start:stop])[..., 0])),
    ]
    forward(model, slice(start, stop), hooks, past=past)
    return added[0].round(decimals=6)


narrowings = st.lists(
    st.one_of(
        st.sampled_from(["prompt", "generation"]).map(lambda p: ("during", p)),
        st.sets(st.integers(0, 5), min_size=1).map(lambda s: ("at_steps", s)),
        st.sets(st.integers(0, N + 2), min_size=1).map(lambda s: ("at_columns", s)),
        st.sets(st.integers(0, 1), min_size=1).map(lambda s: ("on_rows", s)),
        st.sets(st.integers(0, 3), min_size=1).map(
            lambda s: ("when", lambda step, column: (step + 2 * column) % 4 in s)
        ),
    ),
    max_size=4,
)


def allows(narrowing, row, column, step):
    """What one narrowing says, written down."""
    how, what = narrowing
    if how == "during":
        return (step == 0) == (what == "prompt")
    if how == "when":
        return what(step, column)
    return {"at_steps": step, "at_columns": column, "on_rows": row}[how] in what


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(chosen=narrowings, prompt=st.integers(1, N), cut=st.integers(0, N), outside=st.booleans())
@torch.no_grad()
def test_a_schedule_acts_where_all_its_parts_say(chosen, prompt, cut, outside):
    model = MODEL
    edit = BUMP
    for how, what in chosen:
        edit = getattr(edit, how)(what)
    expected = torch.tensor(
        [
            [float(all(allows(n, row, c, step_of(c, prompt)) for n in chosen)) for c in range(N)]
            for row in range(2)
        ]
    )
    # with a cache, the prompt in one or two parts
    ends = sorted({min(cut, prompt), prompt} - {0}) + list(range(prompt + 1, N + 1))
    past, got = bl.KVCache(), []
    for end in ends:
        got.append(bumped(model, len(past), end, step_of(end - 1, prompt), edit, past))
    assert torch.equal(torch.cat(got, 1), expected.to(got[0]))
    # without one: every step runs all of the text
    last = N - prompt
    edit = edit.outside_cache() if outside else edit
    again = bumped(model, 0, N, last, edit)
    if outside and last:  # what earlier steps did is gone
        expected[:, :-1] = 0
    assert torch.equal(again, expected.to(again))


MODEL = pair(n_layer=1, dtype=torch.float64)[1]


@pytest.mark.parametrize(
    ("edit", "idle", "busy"),
    [
        (BUMP.during("prompt"), (5, 1), (0, 0)),
        (BUMP.during("generation"), (0, 0), (5, 1)),
        (BUMP.at_steps(2), (5, 1), (6, 2)),
        (BUMP.at_steps(2), (0, 1), (0, 3)),  # the text once more, with what step 2 did
        (BUMP.at_steps(2).outside_cache(), (0, 3), (0, 2)),
        (BUMP.at_columns([1, 3]), (4, 0), (3, 0)),
        (BUMP.at_columns(1).at_columns(2), (0, 0), None),
    ],
)
def test_nothing_is_attached_where_the_schedule_rules_it_out(edit, idle, busy):
    assert edit.hooks(*idle) == []
    assert busy is None or [name for name, _ in edit.hooks(*busy)] == ["hook_embed"]


@torch.no_grad()
def test_an_edit_outside_the_cache_changes_its_own_step_only(model):
    """By hand: the edited forward on a fork, a clean one on the cache; as without a cache."""
    edit = steer(0, PUSH).at_steps([0, 2]).outside_cache()
    assert not edit.enters_cache
    assert steer(0, PUSH).enters_cache
    past, clean = bl.KVCache(), forward(model, slice(0, N), [])
    for step, end in enumerate(range(PROMPT, N + 1)):
        columns = slice(len(past), end)
        fork = past.fork(1) if len(past) else bl.KVCache()
        edited = forward(model, columns, edit.hooks(len(past), step), past=fork)[:, -1]
        forward(model, columns, [], past=past)
        again = forward(model, slice(0, end), edit.hooks(0, step))[:, -1]
        assert (edited - again).abs().max() < LIMIT
        assert ((edited - clean[:, end - 1]).abs().max() > 1e-3) == (step in (0, 2))


@torch.no_grad()
def test_a_forward_takes_an_intervention_its_pair_and_both_kinds_together(model):
    edit = steer(0, PUSH).at_columns([3, 4])
    name, fn = edit
    assert name == "blocks.0.hook_resid_pre"
    expected = forward(model, slice(0, N), [edit])
    assert (expected - forward(model, slice(0, N), [])).abs().max() > 1e-3
    assert torch.equal(forward(model, slice(0, N), [(name, fn)]), expected)
    seen = []
    watch = (name, lambda value, hook: seen.append(value))
    forward(model, slice(0, N), (edit, watch))
    with model.hooks(fwd_hooks=[edit]):
        cached = model.run_with_cache(IDS)[1][name]
    assert (cached - seen[0]).abs().max() < 1e-12


@torch.no_grad()
def test_a_plain_forward_is_all_prompt(model):
    clean = forward(model, slice(0, N), [])
    edit = steer(0, PUSH)
    assert torch.equal(forward(model, slice(0, N), [edit.during("generation")]), clean)
    prompt = forward(model, slice(0, N), [edit.during("prompt")])
    assert torch.equal(prompt, forward(model, slice(0, N), [edit]))
    told = forward(model, slice(0, N), edit.during("generation").hooks(0, N - PROMPT))
    columns = edit.at_columns(range(PROMPT, N))
    assert torch.equal(told, forward(model, slice(0, N), [columns]))


@torch.no_grad()
def test_narrowing_leaves_the_wider_one_as_it_was_and_survives_a_worker(model):
    wide = mask_heads(0, [1])
    before = forward(model, slice(0, N), [wide])
    narrow = wide.at_columns(4).on_rows(0).during("prompt").at_steps([0, 1])
    assert torch.equal(forward(model, slice(0, N), [wide]), before)
    sent = pickle.loads(pickle.dumps(narrow))
    assert isinstance(sent, Intervention)
    expected = forward(model, slice(0, N), [narrow])
    assert not torch.equal(expected, before)
    assert torch.equal(forward(model, slice(0, N), [sent]), expected)


@torch.no_grad()
def test_it_stands_in_a_stream_of_generation_by_hooks(model):
    """`generate` under hooks sees one column a step: an edit without a schedule fits that too."""
    edit = steer(1, PUSH, coefficient=4)
    with model.hooks(fwd_hooks=[edit]):
        ids = model.generate(IDS[:, :PROMPT], max_new_tokens=4)
    text = IDS[:, :PROMPT]
    for _ in range(4):
        logits = model.run_with_hooks(text, fwd_hooks=[edit])
        text = torch.cat([text, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(ids, text)


def test_an_intervention_shows_where_and_when_it_acts():
    edit = scale_heads(0, [2, 1], factor=0.5).during("generation").on_rows(0).outside_cache()
    assert repr(edit) == (
        "Intervention(blocks.0.attn.hook_z, scaled, heads=[1, 2], rows=[0], 1 limits on steps, "
        "outside the cache)"
    )
