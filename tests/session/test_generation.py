"""Generations and branches against the model's own and against loops of whole forwards."""

import pytest
import torch

import bloomlab as bl
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.readouts import linear_readout
from tests.session.oracles import (
    EDITS,
    WRONG_TYPE,
    edits_of,
    is_untouched,
    means_of,
    patterns_of,
    whole,
)
from tests.tiny import pair

NONE = edits_of()
N = 5


def made(session, name="main", n=N, **options):
    return session.generate(name, max_new_tokens=n, eos_token_id=[], **options)


def branched(session, parent, step, token=None, n=N, **options):
    return session.branch(parent, step, token, max_new_tokens=n, eos_token_id=[], **options)


def grown(model, prompt, phases, n=N, forced=()):
    """Greedy tokens, logits and last rows of a loop of whole forwards under phases of edits."""
    means, text, steps = means_of(model, prompt), prompt, []
    forced = dict(forced)
    for step in range(n):
        logits, cache = whole(model, text, phases=phases, means=means)
        last = logits[0, -1]
        token = forced.get(step, int(last.argmax()))
        steps.append((token, last, patterns_of(cache, model)[:, :, -1]))
        text = torch.cat([text, torch.tensor([[token]])], 1)
    return steps


def assert_same(generated, expected):
    assert [step.token for step in generated.steps] == [token for token, *_ in expected]
    for step, (token, logits, rows) in zip(generated.steps, expected, strict=True):
        best = logits.topk(512)
        torch.testing.assert_close(torch.tensor(step.logits), best.values, atol=1e-4, rtol=1e-4)
        probability = logits.softmax(-1)
        torch.testing.assert_close(
            probability[step.ids], probability[best.indices], atol=1e-5, rtol=1e-4
        )
        assert step.probability == pytest.approx(probability[token].item(), abs=1e-5)
        entropy = -(probability * probability.log()).sum().item()
        assert step.entropy == pytest.approx(entropy, abs=1e-4)
        assert step.scale == pytest.approx(logits.exp().sum().log().item(), abs=1e-4)
        torch.testing.assert_close(torch.tensor(step.rows), torch.tensor(rows), atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", [None, "off", "half", "double"])
def test_greedy_tokens_are_the_models_own(session, name):
    session.edits = NONE if name is None else EDITS[name]
    prompt = session.run().ids
    mask = torch.tensor(session.edits.scale)
    expected = session.model.generate(
        prompt, head_mask=mask, max_new_tokens=N, do_sample=False, eos_token_id=[]
    )
    assert made(session).ids == expected[0].tolist()


@pytest.mark.parametrize("name", [None, *EDITS])
def test_steps_are_those_of_a_loop_of_whole_forwards(session, name):
    session.edits = NONE if name is None else EDITS[name]
    found = made(session)
    assert_same(found, grown(session.model, found.prompt, {0: session.edits}))
    assert found.edits is session.edits
    assert (found.name, found.parent, found.since) == ("main", "", 0)


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("alibi", ["hf", "exact"])
def test_steps_of_other_models_are_too(demo, alibi, post_norm):
    _, model = pair(
        vocab_size=demo.config.vocab_size, apply_residual_connection_post_layernorm=post_norm
    )
    model.tokenizer, model.alibi = demo.tokenizer, alibi
    session = bl.Session(model, "The cat sat on")
    session.edits = EDITS["all"]
    found = made(session)
    assert_same(found, grown(model, found.prompt, {0: EDITS["all"]}))


@pytest.mark.parametrize("pruned", [{0: [1, 4]}, {0: range(6)}])
def test_rows_of_pruned_heads_are_0(tiny, pruned):
    model = bl.prune_heads(tiny, pruned)
    model.tokenizer = tiny.tokenizer
    found = made(bl.Session(model, "The cat sat on"))
    assert_same(found, grown(model, found.prompt, {}))
    for step in found.steps:
        assert not step.rows[0, list(pruned[0])].any()


def test_a_prompt_may_be_one_token(tiny):
    session = bl.Session(tiny, "The")
    assert session.run().ids.shape == (1, 1)
    made(session)
    session.edits = EDITS["all"]
    other = branched(session, "main", 0)
    assert_same(other, grown(tiny, other.prompt, {0: EDITS["all"]}))


@pytest.mark.parametrize("step", [0, 2, N - 1])
def test_a_branch_goes_on_as_from_the_forced_text(session, step):
    main = made(session)
    token = (main.steps[step].token + 1) % session.model.config.vocab_size
    other = branched(session, "main", step, token)
    text = [*main.ids[: main.prompt.shape[1] + step], token]
    assert other.ids[: len(text)] == text
    if step < N - 1:
        expected = session.model.generate(
            torch.tensor([text]), max_new_tokens=N - step - 1, do_sample=False, eos_token_id=[]
        )
        assert other.ids == expected[0].tolist()
    assert_same(other, grown(session.model, main.prompt, {}, forced=_forced(other, step + 1)))
    assert (other.name, other.parent, other.since) == ("branch 1", "main", step)


@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize(("before", "after"), [(None, "all"), ("mean", "slopes"), ("all", None)])
def test_edits_of_a_branch_act_from_its_step_on(session, before, after, step):
    first, second = (NONE if name is None else EDITS[name] for name in (before, after))
    session.edits = first
    main = made(session)
    session.edits = second
    other = branched(session, "main", step)
    last = main.prompt.shape[1] - 1
    phases = {0: first, last + step: second} if last + step else {0: second}
    expected = grown(session.model, main.prompt, phases, forced=_forced(main, step))
    assert_same_from(step, other, expected)
    assert all(a is b for a, b in zip(other.steps[:step], main.steps[:step], strict=True))


def test_a_branch_of_a_branch_has_the_edits_of_both(session):
    main = made(session)
    session.edits = EDITS["double"]
    child = branched(session, "main", 1)
    session.edits = EDITS["all"]
    other = branched(session, child.name, 3)
    last = main.prompt.shape[1] - 1
    phases = {0: NONE, last + 1: EDITS["double"], last + 3: EDITS["all"]}
    expected = grown(session.model, main.prompt, phases, forced=_forced(child, 3))
    assert_same_from(3, other, expected)
    assert [one.name for one in session.generations.values()] == ["main", "branch 1", "branch 2"]


def _forced(generated, step):
    return enumerate(one.token for one in generated.steps[:step])


def assert_same_from(step, generated, expected):
    """From a step on; the steps before were checked as the parent's."""
    assert [one.token for one in generated.steps] == [token for token, *_ in expected]
    late = type("Late", (), {"steps": generated.steps[step:]})
    assert_same(late, expected[step:])


def test_a_branch_leaves_its_parent_as_it_was(session):
    main = made(session)
    layers = range(2)
    steps = list(main.steps)
    kept = [(main.cache.keys(i).clone(), main.cache.values(i).clone()) for i in layers]
    session.edits = EDITS["all"]
    for step in range(N):
        branched(session, "main", step, token=7, n=N + 2)
    assert session.generations["main"] is main
    assert all(a is b for a, b in zip(main.steps, steps, strict=True))
    for layer, (keys, values) in enumerate(kept):
        assert torch.equal(main.cache.keys(layer), keys)
        assert torch.equal(main.cache.values(layer), values)
    assert len(main.cache) == len(main.ids) - 1


def test_a_branch_that_changes_nothing_is_its_parent(session):
    main = made(session)
    other = branched(session, "main", 2)
    assert other.ids == main.ids
    longer = branched(session, "main", N - 1, n=N + 2)
    assert longer.ids[:-2] == main.ids


def test_samples_are_the_models_own(session):
    prompt = session.run().ids
    options = {"do_sample": True, "temperature": 2.0, "top_k": 50, "seed": 3}
    expected = session.model.generate(prompt, max_new_tokens=N, eos_token_id=[], **options)
    assert made(session, **options).ids == expected[0].tolist()
    assert made(session, "again", **options).ids == expected[0].tolist()
    assert made(session, "other", **options | {"seed": 4}).ids != expected[0].tolist()


def test_a_generation_ends_where_the_model_does(session):
    end = made(session).steps[2].token
    found = session.generate(max_new_tokens=N, eos_token_id=[end])
    assert [step.token for step in found.steps].index(end) == len(found.steps) - 1


def test_readings_are_those_of_the_whole_forward(session):
    weights = torch.randn(2, 48, generator=torch.Generator().manual_seed(0))
    session.edits = EDITS["all"]
    found = made(session, readouts=[linear_readout("probe", "resid_post", weights)])
    text = torch.tensor([found.ids[:-1]])
    means = means_of(session.model, found.prompt)
    _, cache = whole(session.model, text, session.edits, means=means)
    for index, step in enumerate(found.steps):
        column = found.prompt.shape[1] - 1 + index
        for layer in range(2):
            name = f"blocks.{layer}.hook_resid_post"
            expected = weights @ cache[name][0, column]
            assert step.readings[f"probe at {name}"] == pytest.approx(expected.tolist(), abs=1e-3)


def test_nothing_stays_attached(session):
    session.edits = EDITS["all"]
    made(session)
    branched(session, "main", 2)
    assert is_untouched(session.model)


@pytest.mark.parametrize("step", [-1, N, 99])
def test_a_step_that_is_not_there_is_named(session, step):
    made(session)
    with pytest.raises(InputError, match=f"no step {step}: 'main' has steps 0 to {N - 1}"):
        branched(session, "main", step)
    assert list(session.generations) == ["main"]


@pytest.mark.parametrize("step", [True, 1.0, "1", None])
def test_a_step_is_a_whole_number(session, step):
    made(session)
    with pytest.raises(WRONG_TYPE, match="step"):
        branched(session, "main", step)


@pytest.mark.parametrize("token", [-1, 8192, 1.5, "x"])
def test_a_token_is_of_the_vocabulary(session, token):
    made(session)
    with pytest.raises(WRONG_TYPE, match="token"):
        branched(session, "main", 1, token)
    assert list(session.generations) == ["main"]
    assert is_untouched(session.model)


@pytest.mark.parametrize(("step", "n"), [(0, 0), (2, 2), (2, 1)])
def test_a_generation_needs_room_for_a_token(session, step, n):
    made(session)
    with pytest.raises(InputError, match=f"more than {step}"):
        branched(session, "main", step, n=n)


def test_a_branch_has_a_parent_and_options_that_exist(session):
    with pytest.raises(InputError, match="no branch 'main'"):
        branched(session, "main", 0)
    with pytest.raises((InputError, UnknownNameError, TypeError), match="temperatur"):
        made(session, temperatur=2.0)
    for name in ("past_key_values", "interventions", "num_return_sequences"):
        with pytest.raises(InputError, match=name):
            made(session, **{name: 2})
    assert session.generations == {}


def test_a_branch_takes_no_name_that_is_there(session):
    first = made(session, "branch 1")
    second = branched(session, "branch 1", 1)
    third = branched(session, second.name, 1)
    assert list(session.generations.values()) == [first, second, third]
