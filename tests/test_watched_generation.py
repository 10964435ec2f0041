"""Generation watched and changed: trace, interventions and stream together, against one forward."""

import pytest
import torch

import bloomlab as bl
from bloomlab import interventions as iv
from tests.tiny import distance_in_eps, pair, tokens

PROMPT, NEW = 9, 6


def padded():
    ids, mask = tokens(2, PROMPT), torch.ones(2, PROMPT, dtype=torch.long)
    mask[0, :4] = 0
    return ids, mask


def limit(dtype):
    return 200 if dtype == torch.float32 else 10


INTERVENTIONS = {
    "none": (),
    "mask": (iv.mask_heads(1, [0, 2]).at_columns([PROMPT + 1]),),
    "steer": (iv.steer(1, torch.linspace(-1, 1, 48), coefficient=2).at_columns([4, PROMPT]),),
    "slopes": (iv.scale_slopes(0, [1], factor=0.5),),
    "edge": (iv.knock_out(1, [0, 3], keys=[5]).at_columns([PROMPT, PROMPT + 2]),),
    "rows": (iv.scale_heads(0, None, factor=2.0).on_rows([1]).at_columns([PROMPT + 1]),),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", INTERVENTIONS)
def test_a_watched_generation_equals_one_forward_of_its_text(name, dtype):
    """Laws 2 and 6: logits, stream and patterns of every step, left-padded, with the same edits."""
    _, ours = pair(dtype=dtype)
    (ids, mask), edits = padded(), INTERVENTIONS[name]
    steps = list(
        ours.stream(
            ids,
            attention_mask=mask,
            max_new_tokens=NEW,
            eos_token_id=[],
            trace=True,
            interventions=edits,
        )
    )
    text = torch.cat([ids, *(step.token[:, None] for step in steps)], 1)[:, :-1]
    full = torch.cat([mask, torch.ones(2, NEW - 1, dtype=torch.long)], 1)
    hooks = [one.hooks(start=0, step=0)[0] for one in edits]
    whole = ours.run_with_hooks(text, attention_mask=full, fwd_hooks=hooks)
    for step in steps:
        column = PROMPT - 1 + step.index
        assert distance_in_eps(step.logits, whole[:, column]) < limit(dtype)
    trace, seen = steps[-1].trace, full.bool()
    assert torch.equal(trace.tokens, text)
    assert len(steps[2].trace) == PROMPT + 2
    expected = ours.trace(text, attention_mask=full, fwd_hooks=hooks)
    for layer in range(2):
        for head in range(6):
            got, other = (t.pattern(layer, head)[seen] for t in (trace, expected))
            assert distance_in_eps(got, other, dtype) < limit(dtype)
        for kind in ("q", "k", "v", "resid"):
            got, other = (getattr(t, kind)(layer)[seen] for t in (trace, expected))
            assert distance_in_eps(got, other, dtype) < limit(dtype)


def test_a_traced_generation_makes_the_tokens_of_an_unwatched_one():
    _, ours = pair()
    ids, mask = padded()
    arguments = {"attention_mask": mask, "max_new_tokens": NEW, "eos_token_id": []}
    expected = ours.generate(ids, **arguments)
    steps = list(ours.stream(ids, trace=True, **arguments))
    assert torch.equal(torch.stack([s.token for s in steps], 1), expected[:, PROMPT:])
    with ours.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda value, hook: None)]):
        assert torch.equal(ours.generate(ids, **arguments), expected)
    with ours.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", lambda value, hook: None)]):
        assert torch.equal(ours.generate(ids, **arguments), expected)


def test_an_edit_outside_the_cache_changes_its_own_step_only():
    _, ours = pair()
    ids = tokens(1, PROMPT)
    edit = iv.mask_heads(0, None).at_steps([2]).outside_cache()
    forced = tokens(1, NEW, seed=7)
    plain, edited, kept = (
        [s.logits for s in ours.stream(ids, forced=forced, interventions=edits)]
        for edits in ((), (edit,), (iv.mask_heads(0, None).at_steps([2]),))
    )
    same = [bool((a - b).abs().max() < 1e-4) for a, b in zip(plain, edited, strict=True)]
    assert same == [True, True, False, True, True, True]
    same = [bool((a - b).abs().max() < 1e-4) for a, b in zip(plain, kept, strict=True)]
    assert same == [True, True, False, False, False, False]
    assert distance_in_eps(edited[2], kept[2]) < 200


def test_edits_from_a_trace_and_a_cache_of_another_run():
    _, ours = pair()
    clean, corrupt = tokens(1, PROMPT), tokens(1, PROMPT, seed=5)
    other, wanted = ours.trace(clean), ours(clean).logits
    swap = [iv.patch(f"blocks.{i}.attn.hook_{kind}", other) for i in (0, 1) for kind in "kv"]
    swap.append(iv.patch("blocks.0.hook_resid_pre", other))
    got = ours.run_with_hooks(corrupt, fwd_hooks=swap)
    assert distance_in_eps(got, wanted) < 200
    theirs, mine = ours(clean).past_key_values, ours(corrupt).past_key_values
    new = tokens(1, 1, seed=8)
    spliced = mine.splice(theirs, columns=slice(None))
    expected = ours(new, past_key_values=theirs).logits
    assert distance_in_eps(ours(new, past_key_values=spliced).logits, expected) < 200


@pytest.mark.parametrize("reindex", [True, False])
def test_a_window_that_slides_while_generating_is_a_loop_of_forwards(reindex):
    _, ours = pair()
    ids = tokens(1, PROMPT)

    def window():
        return bl.KVCache(policy=bl.SinkWindow(sinks=2, window=5, reindex=reindex))

    past, text = window(), ids
    with torch.no_grad():
        logits = ours(ids, past_key_values=past).logits[:, -1]
        for _ in range(NEW):
            text = torch.cat([text, logits.argmax(-1, keepdim=True)], 1)
            logits = ours(text[:, -1:], past_key_values=past).logits[:, -1]
    got = ours.generate(ids, past_key_values=window(), max_new_tokens=NEW, eos_token_id=[])
    assert torch.equal(got, text)
