"""A session's runs are those of its prompt and edits, whatever was asked before."""

import numpy as np
import psutil
import pytest
import torch

import bloomlab as bl
from bloomlab.errors import InputError, ShapeError
from bloomlab.session import Edits
from tests.session.oracles import EDITS, WRONG_TYPE, is_untouched, patterns_of, whole
from tests.tiny import pair

TEXT = "A dog ran."


def test_runs_are_made_once(session):
    clean = session.run("clean")
    assert session.run("clean") is clean
    assert session.run() is clean  # without edits
    session.edits = EDITS["off"]
    edited = session.run()
    assert edited is not clean
    assert session.run("edited") is edited


def test_edits_keep_the_clean_run_and_the_generations(session):
    clean = session.run("clean")
    made = session.generate(max_new_tokens=1)
    session.edits = EDITS["off"]
    first = session.run()
    session.edits = EDITS["half"]
    assert session.run("clean") is clean
    assert session.run() is not first
    assert session.generations == {"main": made}
    session.edits = Edits.none(2, 6)
    assert session.run() is clean


def test_a_prompt_drops_all_runs_but_keeps_the_edits(session):
    clean = session.run("clean")
    session.edits = EDITS["off"]
    session.generate(max_new_tokens=1)
    session.prompt = TEXT
    assert session.run("clean") is not clean
    assert torch.equal(session.run("clean").ids, session.model.to_tokens(TEXT))
    assert session.edits == EDITS["off"]
    assert session.generations == {}


def test_refresh_sees_other_weights(session):
    before = session.run("clean").resid[-1]
    with torch.no_grad():
        session.model.blocks[0].attn.o.bias += 1
    assert session.run("clean").resid[-1] is before
    session.refresh()
    expected = whole(session.model, session.run().ids)[1]["blocks.1.hook_resid_post"]
    torch.testing.assert_close(session.run("clean").resid[-1], expected, atol=2e-5, rtol=1e-5)


def test_observers_hear_of_prompt_edits_and_generations(session):
    heard = []
    session.observe(lambda change: heard.append(change.name))
    session.edits = EDITS["off"]
    session.edits = EDITS["off"].with_heads([])  # equal: nothing to tell
    session.prompt = TEXT
    session.generate(max_new_tokens=1)
    session.generate("other", max_new_tokens=1)
    told = [name for name in heard if name != "version"]
    assert told == ["edits", "prompt", "generations", "generations"]
    assert heard.count("version") == 1  # with the prompt


def test_another_prompt_or_a_refresh_is_another_version(session):
    versions = [session.version]
    session.edits = EDITS["off"]
    assert session.version == versions[0]
    for change in (session.refresh, lambda: setattr(session, "prompt", TEXT)):
        change()
        versions.append(session.version)
    assert len(set(versions)) == 3


def test_another_prompt_has_other_columns(session):
    session.selection.set(layer=1, head=3, query=2, key=1, step=4, run="clean")
    session.prompt = TEXT
    chosen = session.selection
    assert (chosen.query, chosen.key, chosen.step) == (-1, -1, -1)
    assert (chosen.layer, chosen.head, chosen.run) == (1, 3, "clean")


def test_an_interrupted_run_is_made_again_only_when_asked_for(session):
    def interrupt(*_):
        raise KeyboardInterrupt

    handle = session.model.blocks[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    handle.remove()
    assert is_untouched(session.model)
    with pytest.raises(InputError, match="interrupted.*refresh"):
        session.run("clean")
    session.refresh()
    assert len(session.run()) > 1


def test_observers_find_the_new_run(session):
    seen = []
    session.run()
    session.observe(lambda _: seen.append(session.run()), ["prompt", "edits"])
    session.edits = EDITS["off"]
    session.prompt = TEXT
    assert [run.edits == EDITS["off"] for run in seen] == [True, True]
    assert torch.equal(seen[1].ids, session.model.to_tokens(TEXT))


def test_what_was_asked_before_changes_no_answer(session):
    def answers():
        first = session.attention("difference", 1, 3), *session.tiles("value", 0, 4)
        lens = session.lens([0, -1]).kl
        return [*first, lens, session.stream().norms, session.flow("rollout", 1, 0)]

    asked = {}
    for name in ("off", "all", "slopes", "all", "off"):
        session.edits = EDITS[name]
        found = answers()
        for one, other in zip(asked.setdefault(name, found), found, strict=True):
            np.testing.assert_array_equal(one, other)
        session.importance()
        session.look(TEXT, EDITS["mean"])
        session.generate(max_new_tokens=2)
    other = bl.Session(session.model, session.prompt)
    other.edits = EDITS["all"]
    session, found = other, asked["all"]
    for one, wanted in zip(answers(), found, strict=True):
        np.testing.assert_array_equal(one, wanted)


def test_look_leaves_the_session_as_it_was(session):
    run = session.run()
    found = session.look(TEXT, EDITS["all"])
    expected = whole(session.model, session.model.to_tokens(TEXT), EDITS["all"])
    np.testing.assert_allclose(found.patterns(), patterns_of(expected[1], session.model), atol=1e-5)
    assert session.look(TEXT).edits.is_none
    assert session.run() is run


def test_a_closed_session_says_so(session):
    session.run()
    session.generate(max_new_tokens=1)
    session.close()
    for ask in (
        session.run,
        session.importance,
        session.generate,
        session.stream,
        lambda: session.look(TEXT),
        lambda: session.kept(0),
        lambda: session.attention("pattern", 0, 0),
        lambda: session.least_harm(1.0),
    ):
        with pytest.raises(InputError, match="closed"):
            ask()
    assert session.generations == {}
    session.edits = EDITS["off"]  # views may still change it
    assert (session.n_layer, session.n_head) == (2, 6)


def test_a_session_leaves_nothing_on_the_model(session):
    model, session.edits = session.model, EDITS["all"]
    session.tiles("difference", 1, 4)
    session.contributions()
    session.next_tokens()
    session.importance()
    session.least_harm(0.5)
    session.close()
    assert is_untouched(model)


def test_a_text_that_is_too_long_for_the_memory_is_refused(session, monkeypatch):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=10_000))
    n = session.model.to_tokens(session.prompt).shape[1]
    with pytest.raises(InputError, match=f"{n} tokens are too many.*0.0 GB are free"):
        session.run()
    monkeypatch.undo()
    assert len(session.run()) == n


def test_a_session_needs_a_model_with_a_tokenizer_and_one_text(tiny):
    for model in (pair()[1], torch.nn.Linear(2, 2), "demo", tiny.blocks[0]):
        with pytest.raises(InputError, match="tokenizer"):
            bl.Session(model, TEXT)
    for prompt in ([TEXT, TEXT], 5, None):
        with pytest.raises(WRONG_TYPE, match="prompt|one text"):
            bl.Session(tiny, prompt)
        with pytest.raises(WRONG_TYPE, match="prompt|one text"):
            bl.Session(tiny, TEXT).look(prompt)
    session = bl.Session(tiny)
    with pytest.raises(InputError, match="empty"):
        session.run()
    session.prompt = TEXT
    assert len(session.run()) > 1


def test_edits_fit_the_model(session):
    with pytest.raises(ShapeError, match=r"\(3, 4\)"):
        session.edits = Edits.none(3, 4)
    with pytest.raises(InputError):
        session.edits = None
    assert session.edits == Edits.none(2, 6)
