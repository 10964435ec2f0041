"""Stages, rates and the packaged recipes."""

import pytest

from bloomlab.demo.recipe import DEMO, PHASES, Recipe, Stage


def recipe(**fields):
    stages = (
        Stage(steps=3, rows=2, length=8, mix={"repeated": 1.0}),
        Stage(steps=10, rows=2, length=8, mix={"text": 1.0}),
    )
    sizes = {"n_layer": 1, "n_head": 2, "hidden_size": 8, "vocab_size": 300}
    return Recipe(**{"name": "r", "stages": stages, "warmup": 2, **sizes, **fields})


def test_every_step_belongs_to_one_stage():
    made = recipe()
    found = [made.at(step) for step in range(made.steps)]
    assert [within for _, within in found] == [*range(3), *range(10)]
    assert all(stage is made.stages[i >= 3] for i, (stage, _) in enumerate(found))
    with pytest.raises(IndexError, match="step 13 beyond the 13"):
        made.at(13)


def test_rates_rise_at_each_start_and_go_in_lines_between_points():
    made = recipe(rates=((8, 1.0), (10, 0.5), (12, 0.1)))
    rates = [made.rate(step) for step in range(13)]
    assert rates[:5] == [0.5, 1, 1, 0.5, 1]
    assert rates[5:9] == [1, 1, 1, 1]
    assert rates[9:] == pytest.approx([0.75, 0.5, 0.3, 0.1])
    assert recipe().rate(12) == 1


@pytest.mark.parametrize("mix", [{"text": 0.5}, {"text": 0.5, "poems": 0.5}])
def test_a_mix_is_shares_of_known_kinds(mix):
    with pytest.raises(ValueError, match="expected shares of"):
        Stage(steps=1, rows=1, length=8, mix=mix)


@pytest.mark.parametrize("made", [DEMO, PHASES])
def test_the_packaged_recipes_leave_out_what_has_no_documented_rights(made):
    assert made.languages["ur"] == 0
    assert made.leave_out.keys() == {"ar", "bn", "id"}
    assert all(step <= made.steps for step in made.snapshots)
