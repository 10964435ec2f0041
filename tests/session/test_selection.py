"""A selection tells its observers what changed, once, and stays as it was when refused."""

import pytest

from bloomlab.errors import InputError
from bloomlab.session import Selection


@pytest.fixture
def selection():
    found = Selection(6, 8)
    found.heard = []
    found.observe(lambda change: found.heard.append((change.name, change.old, change.new)))
    return found


def places(selection):
    return {name: getattr(selection, name) for name in sorted(selection.trait_names())}


START = {"head": 0, "key": -1, "layer": 0, "query": -1, "run": "edited", "step": -1}


def test_it_starts_at_the_first_head_and_nothing_else(selection):
    assert places(selection) == START


def test_each_place_that_differs_is_told_once(selection):
    selection.set(layer=3, head=0, query=2, run="clean")
    assert sorted(selection.heard) == [
        ("layer", 0, 3),
        ("query", -1, 2),
        ("run", "edited", "clean"),
    ]
    selection.set(layer=3, query=2)
    assert len(selection.heard) == 3


def test_observers_see_all_the_new_places(selection):
    seen = []
    selection.observe(lambda _: seen.append((selection.layer, selection.head)))
    selection.set(layer=3, head=7)
    assert seen == [(3, 7), (3, 7)]


@pytest.mark.parametrize(
    "wrong",
    [{"heads": 2}, {"head": "x"}, {"head": None}, {"head": 8}, {"layer": -1}, {"run": "other"}],
)
def test_a_refused_change_changes_nothing(selection, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        selection.set(**{"layer": 3, "query": 2, **wrong})
    assert places(selection) == START
    assert selection.heard == []
