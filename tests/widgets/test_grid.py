import numpy as np
import pytest

import bloomlab as bl
from bloomlab.errors import InputError
from bloomlab.widgets import HeadGrid
from tests.widgets.asking import LONG, Browser, as_floats, ask, error_bound, square, value_of

N_LAYER, N_HEAD, N_STAT = 6, 8, 6


def unpacked(answer):
    """Thumbnails [layer head row column], first columns and statistics of an answer."""
    n, top, ground = answer["n"], answer["top"], 128 if answer["signed"] else 0
    tiles, sinkless, stats = answer["buffers"]
    each = tiles.reshape(N_LAYER, N_HEAD, -1)
    whole = np.array([[square(one, n, ground) for one in row] for row in each])
    first = sinkless.reshape(N_LAYER, N_HEAD, n)
    return (
        *(value_of(part, top, answer["signed"]) for part in (whole, first)),
        as_floats(stats).reshape(N_LAYER, N_HEAD, N_STAT),
    )


def max_pooled(values, size):
    """The largest of each block; blocks of a size that does not divide overlap."""
    n = len(values)
    edges = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
    return np.array([[values[a:b, c:d].max() for c, d in edges] for a, b in edges])


@pytest.fixture
def long(demo):
    return bl.Session(demo, LONG)


def test_thumbnails_of_a_short_text_are_the_patterns(session):
    answer = ask(HeadGrid(session), "tiles", mode="pattern", size=48, run="edited")
    tiles, _, _ = unpacked(answer)
    patterns = session.run().patterns()
    assert answer["n"] == len(session.run())
    assert (np.abs(tiles - patterns) <= error_bound(patterns)).all()


@pytest.mark.parametrize("size", [48, 64])
def test_thumbnails_of_a_long_text_are_its_maxima(size, long):
    tiles, _, _ = unpacked(ask(HeadGrid(long), "tiles", mode="pattern", size=size, run="clean"))
    for layer, head in ((0, 0), (2, 7), (5, 3)):
        expected = max_pooled(long.attention("pattern", layer, head, which="clean"), size)
        within = np.tril(np.ones_like(expected)) > 0  # blocks cut by the diagonal are on it
        error = np.abs(tiles[layer, head] - expected)
        assert (error <= error_bound(expected))[within].all()


def test_first_columns_can_do_without_the_first_token(long):
    _, first, _ = unpacked(ask(HeadGrid(long), "tiles", mode="pattern", size=48, run="edited"))
    pattern = long.attention("pattern", 1, 1).copy()
    pattern[:, 0] = 0
    expected = max_pooled(pattern, 48)[:, 0]
    assert (np.abs(first[1, 1] - expected) <= error_bound(expected)).all()


@pytest.mark.parametrize("size", [48, 64])
def test_bytes_are_half_a_byte_a_cell_and_little_more(size, long):
    answer = ask(HeadGrid(long), "tiles", mode="pattern", size=size, run="edited")
    heads = N_LAYER * N_HEAD
    expected = heads * (size * (size + 1) // 2 + size + 4 * N_STAT)
    assert sum(map(len, answer["buffers"])) == expected
    assert expected * (24 * 16) / heads <= {48: 0.9e6, 64: 1.6e6}[size]


@pytest.mark.parametrize("mode", ["value", "content", "alibi"])
def test_other_quantities_are_those_of_the_session(mode, session):
    tiles, _, stats = unpacked(ask(HeadGrid(session), "tiles", mode=mode, size=48, run="edited"))
    expected = session.run().patterns(quantity=mode)
    top = expected.max() if mode == "value" else 1.0
    assert (np.abs(tiles - expected) <= error_bound(expected, top)).all()
    expected = np.stack([session.run().tiles(layer, 48)[2] for layer in range(6)])
    np.testing.assert_array_equal(stats, expected)  # what heads look at, whatever is shown


def test_differences_have_signs(session):
    browser = Browser(HeadGrid(session))
    question = {"mode": "difference", "size": 48, "run": "edited"}
    answer = browser.ask("tiles", **question)
    assert (answer["buffers"][0] == 128).all()
    browser.ask("edit", heads=[[0, 0], [1, 3]], scale=0)
    answer = browser.ask("tiles", **question)
    change = session.run("edited").patterns() - session.run("clean").patterns()
    tiles, _, _ = unpacked(answer)
    assert answer["top"] == pytest.approx(np.abs(change).max())
    assert (np.abs(tiles - change) <= error_bound(change, answer["top"], levels=127)).all()
    assert tiles.min() < 0 < tiles.max()
    assert not tiles[0].any()  # nothing before the first edit


def test_clean_and_edited_runs_are_told_apart(session):
    browser = Browser(HeadGrid(session))
    browser.ask("edit", heads=[[0, head] for head in range(8)], scale=0)
    runs = [
        browser.ask("tiles", mode="pattern", size=48, run=run)["buffers"][0]
        for run in ("clean", "edited")
    ]
    assert not np.array_equal(*runs)


def test_importance_is_the_sessions(session):
    session.prompt = "the cat sat"
    (data,) = ask(HeadGrid(session), "importance")["buffers"]
    np.testing.assert_array_equal(as_floats(data), session.importance().reshape(-1))


def test_value_is_a_row_a_head(session):
    view = HeadGrid(session)
    _, _, stats = unpacked(ask(view, "tiles", mode="pattern", size=48, run="edited"))
    frame = view.value
    assert frame["layer"].tolist() == np.repeat(range(N_LAYER), N_HEAD).tolist()
    assert frame["head"].tolist() == list(range(N_HEAD)) * N_LAYER
    np.testing.assert_array_equal(frame.iloc[:, 2:], stats.reshape(-1, N_STAT))
    patterns = session.run().patterns().reshape(N_LAYER * N_HEAD, *2 * [len(session.run())])
    bits = -np.log2(np.where(patterns > 0, patterns, 1)) * patterns
    np.testing.assert_allclose(frame["entropy"], bits.sum(-1).mean(-1), atol=1e-4)


def test_heads_that_were_pruned_are_empty(demo):
    pruned = bl.Session(bl.prune_heads(demo, [(2, head) for head in range(8)]), "the cat sat")
    view = HeadGrid(pruned)
    tiles, _, stats = unpacked(ask(view, "tiles", mode="pattern", size=48, run="edited"))
    assert not tiles[2].any()
    assert np.isnan(stats[2]).all()
    assert tiles[3].any()
    assert view.facts["kept"][2] == []


@pytest.mark.parametrize("size", [0, 47, 1024])
def test_another_size_is_refused(size, session):
    view = HeadGrid(session)
    with pytest.raises(InputError, match=str(size)):
        view.answer_tiles("pattern", size, "edited")
    assert "error" in ask(view, "tiles", mode="nonsense", size=48, run="edited")
    assert "nonsense" in view.status


def test_progress_is_said_and_ends(session):
    view = HeadGrid(session)
    said = []
    view.observe(lambda change: said.append(change["new"]), "status")
    ask(view, "tiles", mode="pattern", size=48, run="edited")
    assert said == ["layer 4 of 6", ""]
