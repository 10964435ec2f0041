import numpy as np
import pytest
import torch

from bloomlab.widgets import LensTable
from tests.widgets.asking import Browser, as_floats, ask


def expected_lens(session, position):
    """Ids and probabilities of the likeliest token after each layer."""
    run = session.run()
    with torch.no_grad():
        streams = torch.stack([resid[0, position] for resid in run.resid[1:]])
        normal = torch.nn.functional.layer_norm(
            streams, streams.shape[-1:], run.model.ln_final.w, run.model.ln_final.b
        )
        return (normal @ run.model.embed.weight.T).float().softmax(-1)


def test_a_column_is_what_each_layer_would_predict(session):
    answer = ask(LensTable(session), "lens", positions=[7, 2], run="edited")
    probability = as_floats(answer["buffers"][0]).reshape(6, 2)
    for column, position in enumerate((7, 2)):
        best = expected_lens(session, position).max(-1)
        assert [row[column] for row in answer["ids"]] == best.indices.tolist()
        np.testing.assert_allclose(probability[:, column], best.values, atol=1e-4)
        labels = session.run().labels(best.indices)
        assert [row[column] for row in answer["labels"]] == labels


def test_the_last_layer_predicts_what_the_model_does(session):
    answer = ask(LensTable(session), "lens", positions=[len(session.run()) - 1], run="clean")
    labels, probability = session.run("clean").next_tokens(1)
    assert answer["labels"][-1] == labels
    assert as_floats(answer["buffers"][0])[-1] == pytest.approx(probability[0], abs=1e-5)


def test_ranks_count_the_likelier_tokens(session):
    expected = expected_lens(session, 4)
    ids = [int(expected[-1].argmax()), 100, 200]
    answer = ask(LensTable(session), "ranks", position=4, ids=ids, run="edited")
    ranks = as_floats(answer["buffers"][0]).reshape(6, 3)
    for column, token in enumerate(ids):
        likelier = (expected > expected[:, [token]]).sum(-1)
        assert ranks[:, column].tolist() == likelier.tolist()
    assert ranks[-1, 0] == 0
    assert answer["labels"] == session.run().labels(ids)


def test_edits_change_the_columns_of_the_edited_run_alone(session):
    browser = Browser(LensTable(session))
    ask_for = {"positions": [5], "run": "clean"}
    before = browser.ask("lens", **ask_for)["buffers"][0].tolist()
    browser.ask("edit", heads=[[3, head] for head in range(8)], scale=0)
    clean = browser.ask("lens", **ask_for)["buffers"][0].tolist()
    edited = browser.ask("lens", positions=[5], run="edited")["buffers"][0].tolist()
    assert clean == before
    assert edited[:12] == clean[:12]  # float32 of layers 0 to 2
    assert edited[12:] != clean[12:]


@pytest.mark.parametrize("positions", [[10_000], [-1], [0, 500], []])
def test_columns_that_a_shorter_text_lacks_are_refused(positions, session):
    view = LensTable(session)
    answer = ask(view, "lens", positions=positions, run="edited")
    assert answer["error"] == view.status
    assert "unexpected" not in answer["error"]
    if positions:
        answer = ask(view, "ranks", position=positions[-1], ids=[1], run="edited")
        assert str(positions[-1]) in answer["error"]


def test_value_is_a_row_a_layer_and_token(session):
    view = LensTable(session)
    frame, n = view.value, len(session.run())
    assert len(frame) == 6 * n
    answer = ask(view, "lens", positions=list(range(n)), run="edited")
    assert frame["predicted"].tolist() == [one for row in answer["labels"] for one in row]
    np.testing.assert_allclose(frame["probability"], as_floats(answer["buffers"][0]))
    assert frame["token"].tolist() == session.run().tokens * 6


def test_a_page_that_compares_holds_both_runs(session):
    session.edits = session.edits.with_heads([(0, 0)], scale=0.0)
    runs = [question["run"] for question in LensTable(session, compare=True).exported()]
    assert runs == ["edited", "clean"]
    assert [q["run"] for q in LensTable(session).exported()] == ["edited"]
