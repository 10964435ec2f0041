import json

import numpy as np
import pytest
import torch

from bloomlab.errors import InputError
from bloomlab.experiments import prune_curve
from bloomlab.widgets import HeadGrid, PruningBoard
from tests.widgets.asking import Browser, Curve, ask


@pytest.fixture
def board(session):
    return PruningBoard(session, Curve())


def test_rankings_are_lines_and_random_orders_a_band(board):
    facts = board.facts
    assert facts["metric"] == "cross entropy"
    assert facts["picked"] is None
    names = [(one["dataset"], one["ranking"]) for one in facts["curves"]]
    assert names == [("English", "exact"), ("French", "exact")]
    assert facts["curves"][0]["kept"] == [0, 24, 48]
    assert facts["curves"][0]["value"] == [9, 7, 5]
    band = facts["bands"][0]
    assert band["kept"] == [0, 24, 48]
    assert band["mean"] == [10.5, 8.5, 6.5]
    np.testing.assert_allclose(band["low"], [10.05, 8.05, 6.05])
    np.testing.assert_allclose(band["high"], [10.95, 8.95, 6.95])


def test_a_point_is_the_mask_of_every_view(board, session):
    grid = HeadGrid(session)
    ask(board, "load", ranking="exact", kept=24)
    assert session.edits.scale.sum() == 24
    assert session.edits.scale.reshape(-1).tolist() == [1] * 24 + [0] * 24
    assert grid.facts["scale"] == session.edits.scale.tolist()
    assert board.picked == board.facts["picked"] == {"ranking": "exact", "kept": 24}


def test_the_point_of_all_heads_is_picked_too(board, session):
    ask(board, "load", ranking="exact", kept=48)
    assert session.edits.is_none
    assert board.facts["picked"] == {"ranking": "exact", "kept": 48}


def test_another_mask_is_no_longer_the_point(board, session):
    browser = Browser(board)
    browser.ask("load", ranking="exact", kept=24)
    browser.ask("edit", heads=[[0, 0]], scale=0)
    assert board.picked is None
    assert board.facts["picked"] is None
    browser.ask("load", ranking="exact", kept=0)
    session.prompt = "another text"
    assert board.facts["picked"] == {"ranking": "exact", "kept": 0}


def test_numbers_that_are_missing_are_json(session):
    curve = Curve()
    curve.frame.loc[0, "value"] = np.nan
    board = PruningBoard(session, curve)
    json.dumps(board.facts, allow_nan=False)
    assert board.facts["curves"][0]["value"][0] is None
    assert board.still()


@pytest.mark.parametrize("rankings", [("exact",), ("random", "random"), ("a", "b", "random")])
def test_any_rankings_can_be_drawn(rankings, session):
    board = PruningBoard(session, Curve(rankings))
    assert "image/png" in board._repr_mimebundle_()[0]
    assert len(board.facts["bands"]) == 2 * ("random" in rankings)


def test_value_is_the_frame(board):
    assert board.value is board.curve.frame


def test_a_measured_curve_is_drawn_and_its_points_loaded(demo, session):
    score = torch.arange(48.0).reshape(6, 8)
    options = {"kept": [0, 24, 48], "n_random": 2, "progress": False}
    curve = prune_curve(demo, ["The cat sat on the mat."], {"number": score}, **options)
    board = PruningBoard(session, curve)
    assert [one["ranking"] for one in board.facts["curves"]] == ["number"]
    browser = Browser(board)
    browser.ask("load", ranking="number", kept=24)
    assert session.edits.scale.sum() == 24
    for wrong in ({"ranking": "luck", "kept": 24}, {"ranking": "number", "kept": 49}):
        answer = browser.ask("load", **wrong)
        assert answer["error"] == board.status
        assert "unexpected" not in answer["error"]
    assert board.picked == {"ranking": "number", "kept": 24}


def test_what_is_no_curve_is_refused(session):
    with pytest.raises(InputError, match="prune_curve"):
        PruningBoard(session, Curve().frame)
    curve = Curve()
    curve.frame = curve.frame.drop(columns="kept")
    with pytest.raises(InputError, match="kept"):
        PruningBoard(session, curve)
