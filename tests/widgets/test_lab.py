import json

import pytest

import bloomlab as bl
from bloomlab.errors import InputError
from bloomlab.widgets import LabView, View
from tests.widgets.asking import PROMPT, Browser, ask, saved_states


@pytest.fixture
def lab(session):
    return LabView(session)


def views(lab):
    return [lab.grid, lab.zoom, *lab.views.values()]


def test_a_prompt_that_is_typed_is_everywhere(lab, session):
    lab.prompt.set_state({"value": "the dog ran"})
    assert session.prompt == "the dog ran"
    assert {view.facts["prompt"] for view in views(lab)} == {"the dog ran"}


def test_a_prompt_from_a_cell_is_in_the_box(lab, session):
    session.prompt = "the cat <b>sat</b>"
    assert lab.prompt.value == "the cat <b>sat</b>"
    lab.zoom.load_state_dict({**lab.zoom.state_dict(), "prompt": "a third"})
    assert lab.prompt.value == "a third"


def test_the_run_is_chosen_on_both_sides(lab, session):
    lab.run.value = "clean"
    assert session.selection.run == "clean"
    assert {view.place["run"] for view in views(lab)} == {"clean"}
    session.selection.run = "edited"
    assert lab.run.value == "edited"
    Browser(lab.zoom).set("place", run="clean")
    assert lab.run.value == "clean"


def test_an_empty_prompt_is_said_and_ends(lab, session):
    lab.prompt.set_state({"value": ""})
    assert all("empty" in view.status for view in views(lab))
    lab.prompt.set_state({"value": PROMPT})
    assert not any(view.status for view in views(lab))


def test_every_view_of_the_lab_sees_an_edit(lab):
    ask(lab.grid, "edit", heads=[[2, 3]], scale=0)
    assert {view.facts["scale"][2][3] for view in views(lab)} == {0}


def test_a_lab_holds_every_kind_of_view_once(lab):
    kinds = [view.kind for view in views(lab)]
    assert len(set(kinds)) == len(kinds) == len(View.__subclasses__()) - 1  # no pruning curve
    assert "application/vnd.jupyter.widget-view+json" in lab._repr_mimebundle_()


def test_a_model_will_do(demo):
    lab = bl.Lab(demo)
    assert lab.session.model is demo
    assert lab.prompt.value == lab.session.prompt != ""
    assert not any(view.status for view in views(lab))
    assert bl.Lab(demo, "the cat").session.prompt == "the cat"


def test_a_session_will_do_and_keeps_its_prompt(session):
    assert bl.Lab(session).session is session
    assert session.prompt == PROMPT
    lab = bl.Lab(session, "the cat")
    assert lab.prompt.value == session.prompt == "the cat"


def test_what_is_neither_is_refused():
    with pytest.raises(InputError, match="bl.load"):
        bl.Lab("demo")


def test_a_closed_lab_and_its_views_hear_nothing(lab, session):
    versions = [view.facts["version"] for view in views(lab)]
    lab.close()
    lab.close()
    session.prompt = "another text"
    session.selection.run = "clean"
    assert [view.facts["version"] for view in views(lab)] == versions
    assert lab.prompt.value == PROMPT
    assert all(view.comm is None for view in (*views(lab), lab.prompt, lab.run))


def test_a_page_of_a_lab_holds_every_view(lab, tmp_path):
    states = saved_states(lab.to_html(tmp_path / "lab.html"))
    assert [state["kind"] for state in states] == [view.kind for view in views(lab)]
    with pytest.raises(InputError, match=r"\.html"):
        lab.to_html(tmp_path / "lab")


def test_a_state_makes_another_lab_the_same(lab, session, demo):
    session.edits = session.edits.with_heads([(2, 3)], scale=0.0)
    session.selection.set(layer=2, run="clean")
    lab.grid.controls = {"mode": "value"}
    state = json.loads(json.dumps(lab.state_dict(), allow_nan=False))
    other = bl.Lab(demo, "another text")
    other.load_state_dict(state)
    assert other.state_dict() == lab.state_dict()
    assert other.prompt.value == PROMPT
    before = other.state_dict()
    for wrong in (None, lab.grid.state_dict(), {**state, "prompt": "x", "controls": {}}):
        with pytest.raises(InputError):
            other.load_state_dict(wrong)
    assert other.state_dict() == before


def test_a_lab_is_said_in_one_line(lab):
    assert repr(lab) == f"LabView({PROMPT[:40]!r}, {len(views(lab))} views)"


def test_a_lab_view_needs_a_session_that_is_open(demo, session):
    with pytest.raises(InputError, match=r"LabView\(bl.Session"):
        LabView(demo)
    session.close()
    for make in (LabView, bl.Lab):
        with pytest.raises(InputError, match="closed"):
            make(session)
