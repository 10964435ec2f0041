import types

import numpy as np
import psutil
import pytest
import torch

import bloomlab as bl
from bloomlab.errors import BloomlabError, InputError
from bloomlab.widgets import HeadGrid, HeadMaskLab, HeadZoom, TokenStrip
from tests.widgets.asking import FIRST, NAMES, PROMPT, READERS, TEXTS, Browser, ask, make


def failing(error):
    """A function that raises."""

    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_carries_the_id_and_the_version(name, session):
    view = make(name, session)
    browser = Browser(view)
    for _ in range(2):
        version = view.facts["version"]
        answer = browser.first()
        assert answer["version"] in (version, view.facts["version"])
        assert "error" not in answer
        assert view.status == ""
    session.prompt = "another text"
    assert view.facts["version"] > version
    assert browser.ask("code")["version"] == view.facts["version"]


def test_questions_come_through_the_widget(session):
    view = HeadZoom(session)
    browser = Browser(view)
    view._handle_custom_msg({"id": 9, **FIRST["HeadZoom"]}, [])
    assert browser.heard[0][0]["id"] == 9
    assert len(browser.heard) == 1


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_question_is_refused_by_name(name, session):
    view = make(name, session)
    for op in ("nonsense", "", None, "__init__"):
        answer = ask(view, op)
        assert repr(op) in answer["error"]
        assert answer["error"] == view.status
        assert answer["buffers"] == []


@pytest.mark.parametrize("name", ["HeadZoom", "TokenStrip", "CompareRuns", "AlibiView"])
@pytest.mark.parametrize("place", [{"layer": 6}, {"layer": -1}, {"head": 8}, {"head": -1}])
def test_a_head_that_is_not_there_is_refused(name, place, session):
    view = make(name, session)
    browser = Browser(view)
    answer = browser.ask(**{**FIRST[name], **place})
    assert answer["error"] == view.status
    assert str(*place.values()) in answer["error"]
    assert "error" not in browser.first()
    assert view.status == ""


@pytest.mark.parametrize("name", READERS)
def test_a_closed_session_is_said(name, session):
    view = make(name, session)
    facts = view.facts
    session.close()
    answer = Browser(view).first()
    assert "closed" in answer["error"]
    assert answer["error"] == view.status
    assert view.facts == facts


@pytest.mark.parametrize("name", READERS)
def test_an_empty_prompt_is_said_and_another_ends_it(name, session):
    session.prompt = ""
    view = make(name, session)
    browser = Browser(view)
    assert "empty" in view.status
    assert view.facts["tokens"] == []
    answer = browser.first()
    assert "empty" in answer["error"]
    assert answer["error"] == view.status
    session.prompt = PROMPT
    assert view.status == ""
    assert "error" not in browser.first()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyboardInterrupt(), "interrupted"),
        (MemoryError(), "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"), "CUDA out of memory"),
        (InputError("no such thing"), "no such thing"),
    ],
)
def test_an_expected_error_is_said_and_the_next_question_answered(
    error, said, session, monkeypatch
):
    view = HeadZoom(session)
    browser = Browser(view)

    with monkeypatch.context() as patched:
        patched.setattr(session, "attention", failing(error))
        answer = browser.first()
    assert said in answer["error"]
    assert answer["error"] == view.status
    assert "error" not in browser.first()
    assert view.status == ""


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), RuntimeError("shapes differ")])
def test_an_unexpected_error_is_said_and_goes_on(error, session, monkeypatch):
    view = HeadZoom(session)
    browser = Browser(view)

    with monkeypatch.context() as patched:
        patched.setattr(session, "attention", failing(error))
        with pytest.raises(type(error)):
            browser.first()
    answer, _ = browser.heard[-1]
    assert answer["error"] == view.status == f"unexpected: {type(error).__name__}: {error}"
    assert "error" not in browser.first()


def test_a_prompt_that_is_too_long_for_the_memory_is_said(session, monkeypatch):
    views = [HeadGrid(session), TokenStrip(session)]
    with monkeypatch.context() as patched:
        free = types.SimpleNamespace(available=1000)
        patched.setattr(psutil, "virtual_memory", lambda: free)
        session.prompt = "a long text"
        for view in views:
            assert "too many" in view.status
            assert "too many" in Browser(view).first()["error"]
    for view in views:
        assert "error" not in Browser(view).first()


def test_an_interrupted_run_is_said(session, monkeypatch):
    view = HeadGrid(session)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("bloomlab.session.session.run_text", interrupt)
        session.prompt = "another text"
    assert "interrupted" in view.status
    beside = TokenStrip(session)  # one interrupt is enough, however many views ask
    assert "interrupted" in Browser(beside).first()["error"]
    session.refresh()
    assert "error" not in Browser(view).first()
    assert view.status == ""


@pytest.mark.parametrize("name", READERS)
def test_broken_weights_are_said_and_mended_ones_shown(name, broken, demo):
    view = make(name, broken)
    browser = Browser(view)
    answer = browser.first()
    said = answer.get("error") or answer["trouble"]
    assert "NaN" in said
    assert view._repr_mimebundle_()
    with torch.no_grad():
        broken.model.blocks[3].attn.qkv.weight.copy_(demo.blocks[3].attn.qkv.weight)
    broken.refresh()
    answer = browser.first()
    assert not answer.get("error")
    assert not answer.get("trouble")


def test_views_of_a_session_share_its_selection(session):
    grid, zoom = HeadGrid(session), HeadZoom(session)
    Browser(grid).set("place", layer=3, head=5)
    assert (session.selection.layer, session.selection.head) == (3, 5)
    assert zoom.place == grid.place == {**zoom.place, "layer": 3, "head": 5}
    session.selection.run = "clean"
    assert zoom.place["run"] == grid.place["run"] == "clean"


def test_views_of_a_session_share_its_edits(session):
    grid, mask = HeadGrid(session), HeadMaskLab(session)
    ask(grid, "edit", heads=[[1, 2], [4, 0]], scale=0)
    assert mask.facts["off"] == "L1H2 L4H0"
    ask(mask, "edit", heads=[[1, 2]], mean=True)
    assert grid.facts["mean"][1][2] is True
    assert grid.facts["scale"] == session.edits.scale.tolist()
    assert Browser(grid).ask("edit", heads=[[9, 0]], scale=0)["error"] == grid.status


def test_two_sessions_share_nothing(demo):
    first, second = (HeadGrid(bl.Session(demo, text)) for text in ("one", "two"))
    Browser(first).set("place", layer=2)
    ask(first, "edit", heads=[[0, 0]], scale=0)
    assert second.place["layer"] == 0
    assert second.session.edits.is_none
    assert first.facts["group"] != second.facts["group"]


@pytest.mark.parametrize("name", TEXTS)
def test_tokens_are_the_text_unescaped(name, session):
    text = TEXTS[name]
    view = TokenStrip(session, text)
    assert view.facts["tokens"] == session.run("clean").tokens
    assert view.facts["prompt"] == text
    seen = "".join(view.facts["tokens"])
    assert "&lt;" not in seen
    if name in ("html", "arabic"):
        plain = seen.translate({0x2423: " ", 0x2068: None, 0x2069: None})
        assert text.replace(" ", "") in plain.replace(" ", "")


def test_a_long_text_has_small_facts(session):
    session.prompt = "the " * 600
    for name in NAMES:
        view = make(name, session)
        n = len(view.facts["tokens"])
        assert n >= 600
        assert len(str(view.facts)) < 40 * n


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_control_is_refused(name, session):
    with pytest.raises(BloomlabError, match="modus"):
        make(name, session, modus="pattern")


def test_a_view_is_written_as_what_it_is(session):
    bundle = bl.widgets.HeadGrid(session)._repr_mimebundle_()[0]
    assert bundle["text/plain"] == f"HeadGrid({session.prompt[:40]!r})"


def test_a_view_needs_a_session(demo):
    with pytest.raises(InputError, match="bl.Session"):
        HeadGrid(demo)


def test_a_closed_view_hears_nothing(session):
    view, other = HeadGrid(session), HeadZoom(session)
    version = view.facts["version"]
    view.close()
    view.close()
    session.prompt = "another text"
    session.selection.layer = 2
    assert view.facts["version"] == version
    assert view.place["layer"] == 0
    assert other.facts["prompt"] == "another text"


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("PruningBoard", "GenScrubber")])
def test_a_view_is_right_at_once_after_the_prompt_changed(name, session):
    view = make(name, session)
    before = Browser(view).first()
    session.prompt = "A text that is quite another one"
    after = Browser(view).first()
    assert after["version"] > before["version"]
    pairs = zip(before["buffers"], after["buffers"], strict=True)
    assert before.get("labels") != after.get("labels") or not all(
        np.array_equal(*pair) for pair in pairs
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_closed_session_makes_no_view(name, session, demo):
    session.close()
    with pytest.raises(InputError, match="closed"):
        make(name, session)
    if name == "CompareRuns":
        with pytest.raises(InputError, match="closed"):
            make(name, bl.Session(demo, PROMPT), other=session)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("shapes differ")])
def test_a_view_without_its_picture_is_displayed(error, session, monkeypatch):
    view = HeadZoom(session)

    def fail():
        raise error

    monkeypatch.setattr(view, "still", fail)
    bundle, _ = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "image/png" not in bundle
    assert "no picture" in view.status
