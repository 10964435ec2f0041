import copy
import json

import pytest
from ipywidgets.embed import dependency_state

import bloomlab as bl
from bloomlab.errors import InputError
from bloomlab.widgets import CompareRuns, GenScrubber, HeadGrid, HeadZoom
from tests.widgets.asking import NAMES, PROMPT, TEXTS, Browser, Curve, ask, make
from tests.widgets.asking import saved_states as states


@pytest.fixture
def used(session):
    """A session in which much was changed."""
    session.prompt = TEXTS["html"]
    session.edits = (
        session.edits.with_heads([(0, 1), (2, 3)], scale=0.0)
        .with_heads([(1, 1)], scale=0.25)
        .with_heads([(4, 4)], mean=True)
        .with_slope(3, 2, 4.0)
    )
    session.selection.set(layer=2, head=3, query=4, key=1, run="clean")
    return session


def execute(code, **names):
    """The value of the last line."""
    *lines, last = code.splitlines()
    names["bl"] = bl
    exec("\n".join(lines), names)
    return eval(last, names)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_makes_another_view_the_same(name, used, demo):
    view = make(name, used)
    some = next(iter(view.controls), None)
    if some is not None:
        Browser(view).set("controls", **{some: view.controls[some]})
    state = json.loads(json.dumps(view.state_dict(), allow_nan=False))
    other = make(name, bl.Session(demo, "another text"))
    other.load_state_dict(state)
    assert other.state_dict() == view.state_dict()
    assert other.session.edits == used.edits
    hidden = ("version", "group")
    assert {**other.facts, **dict.fromkeys(hidden)} == {**view.facts, **dict.fromkeys(hidden)}
    assert other.place == view.place


@pytest.mark.parametrize("name", NAMES)
def test_code_makes_an_equal_view(name, used, demo):
    view = make(name, used)
    code = ask(view, "code")["code"]
    again = execute(code, model=demo, curve=Curve())
    assert type(again).__name__ == name
    assert again.state_dict() == view.state_dict()
    assert again.place == view.place


def test_code_holds_the_controls_of_now(session):
    view = HeadGrid(session)
    Browser(view).set("controls", filter="sink > .8, )", gamma=0.5)
    assert execute(view.code(), model=session.model).controls == view.controls


def test_code_of_two_sessions_makes_both(used, demo):
    other = bl.Session(demo, PROMPT)
    other.edits = other.edits.with_heads([(5, 5)], scale=0.0)
    view = CompareRuns(used, other, layout="6")
    again = execute(view.code(), model=demo)
    assert again.state_dict() == view.state_dict()
    assert view.state_dict()["other"]["prompt"] == PROMPT
    third = CompareRuns(bl.Session(demo), bl.Session(demo))
    third.load_state_dict(view.state_dict())
    assert third.state_dict() == view.state_dict()


def test_code_of_another_model_says_so(session, demo):
    view = CompareRuns(session, bl.Session(copy.deepcopy(demo), PROMPT))
    assert "other = bl.Session(other_model," in view.code()


def test_code_names_the_readouts(session):
    readouts = {"logits": ()}
    assert "readouts=readouts" in GenScrubber(session, readouts=readouts).code()


def test_code_says_which_heads_are_off(session):
    session.edits = session.edits.with_heads([(1, head) for head in range(4, 8)], scale=0.0)
    assert "# off: L1H4-7" in HeadGrid(session).code()


def test_the_state_of_another_kind_of_view_is_refused(session):
    with pytest.raises(InputError, match="HeadGrid"):
        HeadZoom(session).load_state_dict(HeadGrid(session).state_dict())


def test_the_state_of_another_model_changes_nothing(session):
    view = HeadGrid(session)
    state = view.state_dict()
    state["prompt"] = "another text"
    state["edits"] = {name: [row[:4] for row in rows] for name, rows in state["edits"].items()}
    with pytest.raises(InputError, match=r"\(6, 4\)"):
        view.load_state_dict(state)
    assert session.prompt == PROMPT
    assert session.edits.is_none


def test_a_notebook_keeps_little_of_a_view(session):
    session.prompt = "the " * 200
    own = ("facts", "controls", "place", "status", "kind")
    for name in NAMES:
        view = make(name, session)
        Browser(view).first()
        saved = dependency_state([view])
        text = json.dumps(saved, allow_nan=False)
        bundle, _ = view._repr_mimebundle_()
        assert len(text) + 4 * len(bundle["image/png"]) / 3 < 300_000
        assert not any(one.get("buffers") for one in saved.values())
        assert len(json.dumps({trait: getattr(view, trait) for trait in own})) < 8_000


def test_a_page_opens_with_the_state_it_was_saved_in(used, tmp_path):
    view = HeadZoom(used)
    Browser(view).set("controls", gamma=0.5)
    (state,) = states(view.to_html(tmp_path / "page.html"))
    assert state["controls"] == view.controls
    assert state["place"] == view.place
    assert state["facts"] == {**view.facts, "static": True}


def snapshot(view):
    return view.state_dict(), view.facts["version"]


@pytest.mark.parametrize("name", NAMES)
def test_a_state_that_lacks_parts_changes_nothing(name, session, used):
    view, whole = make(name, session), make(name, used).state_dict()
    before = snapshot(view)
    for lacking in whole:
        if lacking == "other":
            continue
        state = {part: value for part, value in whole.items() if part != lacking}
        with pytest.raises(InputError, match=lacking):
            view.load_state_dict(state)
        with pytest.raises(InputError, match=lacking):
            view.load_state_dict({**whole, lacking: 7})
    for inner in ("edits", "selection"):
        for lacking in whole[inner]:
            part = {name: value for name, value in whole[inner].items() if name != lacking}
            with pytest.raises(InputError, match=lacking):
                view.load_state_dict({**whole, inner: part})
    assert snapshot(view) == before


@pytest.mark.parametrize("state", [None, [], "text", 3])
def test_what_is_no_state_is_refused(state, session):
    with pytest.raises(InputError, match="state_dict"):
        HeadGrid(session).load_state_dict(state)


def test_a_wrong_value_in_a_state_changes_nothing(session):
    view = HeadGrid(session)
    whole, before = view.state_dict(), snapshot(view)
    ragged = {**whole["edits"], "scale": [[1.0], [1.0, 2.0]]}
    for change in (
        {"controls": {"gamma": 99}},
        {"controls": {"gama": 1}},
        {"selection": {**whole["selection"], "layer": 99}},
        {"edits": ragged},
    ):
        with pytest.raises(bl.errors.BloomlabError):
            view.load_state_dict({**whole, "prompt": "another", **change})
    assert snapshot(view) == before


def test_the_state_of_two_sessions_needs_both(session, demo):
    view = CompareRuns(session, bl.Session(demo, PROMPT))
    state, before = view.state_dict(), snapshot(view)
    for other in (7, {}, {"prompt": "a"}):
        with pytest.raises(InputError):
            view.load_state_dict({**state, "prompt": "another", "other": other})
    assert snapshot(view) == before
