"""Interventions while generating: what one full forward with the same edits gives."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bloomlab as bl
from bloomlab.errors import InputError, UnknownNameError
from tests.model.test_generate import padded
from tests.tiny import distance_in_eps, pair, tokens

_, OURS = pair()
N_PROMPT, N_NEW = 6, 5
NAMES = ["hook_embed", "blocks.0.attn.hook_v", "blocks.0.hook_resid_mid", "blocks.1.attn.hook_k"]


def edit(value, columns):
    """Scale and shift some positions."""
    value = value.clone()
    value[:, columns] = value[:, columns] * 0.5 + 1
    return value


@dataclass
class AtStep:
    """Edits what the forward of one step sees."""

    name: str
    step: int
    enters_cache: bool = True

    def hooks(self, start, step):
        if step != self.step:
            return []
        return [(self.name, lambda value, hook: edit(value, slice(None)))]


def columns_of(step):
    """The columns that a step reads."""
    return slice(0, N_PROMPT) if step == 0 else slice(N_PROMPT + step - 1, N_PROMPT + step)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    step=st.integers(0, N_NEW - 1),
    other=st.integers(0, N_NEW - 1),
    enters=st.booleans(),
    lengths=st.tuples(st.integers(1, N_PROMPT), st.just(N_PROMPT)),
)
def test_intervening_at_a_step_equals_a_full_forward_with_the_same_edit(
    name, step, other, enters, lengths
):
    ids, mask = padded(*lengths)
    chosen = [AtStep(name, step, enters), AtStep("blocks.1.hook_resid_pre", other)]
    options = {"attention_mask": mask, "eos_token_id": [], "max_new_tokens": N_NEW}
    steps = list(OURS.stream(ids, interventions=chosen, **options))
    text = torch.cat([ids, *(s.token[:, None] for s in steps)], 1)[:, :-1]
    mask = torch.cat([mask, torch.ones(2, N_NEW - 1, dtype=torch.long)], 1)

    def whole(edits):
        pairs = [
            (point, lambda value, hook, at=at: edit(value, columns_of(at))) for point, at in edits
        ]
        forward = {"attention_mask": mask, "fwd_hooks": pairs}
        return OURS.run_with_hooks(text, **forward)[:, N_PROMPT - 1 :]

    stays = [("blocks.1.hook_resid_pre", other)]
    edited, staying = whole([(name, step), *stays]), whole(stays)
    for t, got in enumerate(steps):
        expected = edited if enters or t == step else staying
        if not enters and t == step == 0:
            expected = edited
        assert distance_in_eps(got.logits, expected[:, t]) < 300


def test_a_passing_edit_leaves_the_cache_clean():
    ids = tokens(1, 6)
    held = []
    for chosen in ([], [AtStep("blocks.0.hook_resid_pre", 0, enters_cache=False)]):
        past = bl.KVCache()
        steps = list(OURS.stream(ids, past_key_values=past, forced=[5, 6, 7], interventions=chosen))
        held.append((past.keys(1), steps))
    assert torch.equal(held[0][0], held[1][0])
    assert not torch.equal(held[0][1][0].logits, held[1][1][0].logits)
    assert torch.equal(held[0][1][2].logits, held[1][1][2].logits)


def test_a_pair_is_in_force_at_every_step_cached_or_not():
    ids, direction = tokens(2, 6), torch.randn(48, generator=torch.Generator().manual_seed(3))
    steer = ("blocks.1.hook_resid_post", lambda value, hook: value + 3 * direction)
    with OURS.hooks(fwd_hooks=[steer]):
        expected = OURS.generate(ids, max_new_tokens=8)
    for given_as in ([steer], steer, [("blocks.1.hook_out", steer[1])], (s for s in [steer])):
        steps = OURS.stream(ids, interventions=given_as, max_new_tokens=8)
        assert torch.equal(torch.stack([s.token for s in steps], 1), expected[:, 6:])
    steps = OURS.stream(ids, interventions=[steer], max_new_tokens=8, use_cache=False)
    assert torch.equal(torch.stack([s.token for s in steps], 1), expected[:, 6:])


def test_schedules_are_told_the_first_column_and_the_step():
    said = []

    class Listens:
        enters_cache = True

        def hooks(self, start, step):
            said.append((start, step))
            return []

    ids = tokens(1, 6)
    past = OURS(ids[:, :2]).past_key_values
    list(OURS.stream(ids, interventions=Listens(), past_key_values=past, max_new_tokens=3))
    assert sorted(set(said)) == [(2, 0), (6, 1), (7, 2)]


@pytest.mark.parametrize("wrong", [3, ["hook_embed"], [("hook_embed", 3)], [None]], ids=str)
def test_what_is_no_intervention_is_refused(wrong):
    with pytest.raises(InputError, match="an intervention is"):
        OURS.stream(tokens(1, 6), interventions=wrong)


def test_unknown_hook_names_are_refused_before_anything_runs():
    with pytest.raises(UnknownNameError, match="hook_embed"):
        OURS.stream(tokens(1, 6), interventions=[("hook_embd", print)])
