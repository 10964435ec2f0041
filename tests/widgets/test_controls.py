import json

import numpy as np
import pytest

from bloomlab.errors import InputError, UnknownNameError
from bloomlab.widgets import AlibiView, CompareRuns, HeadGrid, HeadMaskLab, HeadZoom
from bloomlab.widgets.controls import KINDS
from tests.widgets.asking import NAMES, Browser, make

WRONG = [
    ("mode", "patern"),
    ("mode", 3),
    ("sort", None),
    ("gamma", "1"),
    ("gamma", 0),
    ("gamma", float("nan")),
    ("gamma", True),
    ("threshold", 0.6),
    ("sink", 1),
    ("filter", 5),
]


def test_every_control_of_every_view_is_in_the_table(session):
    names = {name for view in NAMES for name in make(view, session).controls}
    assert names == set(KINDS)


def test_what_is_assigned_is_merged_with_the_defaults(session):
    view = HeadGrid(session, gamma=2)
    view.controls = {"mode": "value"}
    assert view.controls == {**view.defaults(), "mode": "value"}
    json.dumps(view.controls)


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_is_refused_by_name_and_nothing_changes(name, value, session):
    view = HeadGrid(session)
    with pytest.raises(InputError, match=f"^{name} is .*expected"):
        view.controls = {**view.controls, name: value}
    assert view.controls == view.defaults()
    with pytest.raises(InputError, match=f"^{name} is .*expected"):
        HeadGrid(session, **{name: value})


def test_a_message_says_what_is_allowed(session):
    with pytest.raises(InputError, match="expected one of 'pattern', 'value'"):
        HeadGrid(session, mode="nothing")
    with pytest.raises(InputError, match=r"expected a number from 0\.4 to 2\.5"):
        HeadGrid(session, gamma=9)
    with pytest.raises(InputError, match="expected a whole number from 8 to 512"):
        AlibiView(session, distance=8.5)
    with pytest.raises(InputError, match="expected a dictionary"):
        HeadGrid(session).controls = [1]


def test_a_head_has_no_importance(session):
    assert HeadGrid(session, mode="importance").controls["mode"] == "importance"
    with pytest.raises(InputError, match="mode is 'importance'"):
        HeadZoom(session, mode="importance")


def test_numbers_of_other_types_will_do(session):
    assert CompareRuns(session, layout=3).controls["layout"] == "3"
    assert type(HeadMaskLab(session, k=np.int64(5)).controls["k"]) is int
    assert AlibiView(session, distance=64.0).controls["distance"] == 64
    assert HeadZoom(session, gamma=1, sink=np.bool_(True)).controls["sink"] is True


def test_an_unknown_name_is_refused_when_assigned(session):
    view = HeadGrid(session)
    with pytest.raises(UnknownNameError, match="Did you mean 'gamma'"):
        view.controls = {"gama": 1}
    with pytest.raises(UnknownNameError, match=r"PruningBoard has no controls\.$"):
        make("PruningBoard", session, mode="value")


def test_what_a_browser_may_not_send_is_said_and_put_right(session):
    view = HeadZoom(session)
    browser = Browser(view)
    browser.set("controls", gamma=9)
    assert "gamma is 9" in view.status
    assert view.controls["gamma"] == 1
    browser.set("controls", gamma=2)
    assert view.controls["gamma"] == 2
    browser.set("place", layer=77)
    assert view.place["layer"] == session.selection.layer == 0
