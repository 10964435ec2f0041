import numpy as np
import pandas as pd
import pytest

from bloomlab.errors import InputError, ShapeError
from bloomlab.plots import branches_figure, generation_figure

TOKENS = ["a", "<b>", "a", "c"]
PROBABILITY = np.array([np.nan, 0.1, 0.9, 0.5])
ENTROPY = np.array([np.nan, 3.0, 0.5, 1.0])


def test_bars_of_probability_stand_over_a_line_of_entropy():
    figure = generation_figure(TOKENS, PROBABILITY, ENTROPY, n_prompt=2, title="text")
    prompt, generated, entropy = figure.data
    assert [list(bars.x) for bars in (prompt, generated)] == [[0, 1], [2, 3]]
    np.testing.assert_array_equal([*prompt.y, *generated.y], PROBABILITY)
    np.testing.assert_array_equal(entropy.y, ENTROPY)
    assert (prompt.name, generated.name) == ("prompt", "generated")
    assert prompt.marker.color != generated.marker.color
    assert (entropy.yaxis, figure.layout.xaxis.anchor) == ("y2", "y2")
    assert figure.layout.yaxis.range[0] == 0 < 1 <= figure.layout.yaxis.range[1]
    assert figure.layout.yaxis2.domain[1] < figure.layout.yaxis.domain[0]
    assert figure.layout.yaxis2.title.text == "entropy (nats)"
    assert figure.layout.shapes[0].x0 == 1.5
    assert figure.layout.title.text == "text"


def test_steps_are_named_by_their_tokens():
    figure = generation_figure(TOKENS, PROBABILITY, ENTROPY)
    assert list(figure.layout.xaxis.tickvals) == [0, 1, 2, 3]
    assert list(figure.layout.xaxis.ticktext) == ["a", "&lt;b&gt;", "a", "c"]
    names = [*figure.data[0].customdata]
    assert len(set(names)) == 4
    assert not any("<" in name for name in names)


@pytest.mark.parametrize("n_prompt", [0, 4])
def test_of_one_part_there_is_no_border(n_prompt):
    figure = generation_figure(TOKENS, PROBABILITY, ENTROPY, n_prompt=n_prompt)
    assert len(figure.data) == 2
    assert not figure.layout.shapes


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(ShapeError, match="probability has shape"):
        generation_figure(TOKENS, PROBABILITY[1:], ENTROPY)
    with pytest.raises(ShapeError, match="entropy has shape"):
        generation_figure(TOKENS, PROBABILITY, ENTROPY[1:])
    with pytest.raises(InputError, match="probabilities"):
        generation_figure(TOKENS, ENTROPY, ENTROPY)
    with pytest.raises(InputError, match="n_prompt is 5"):
        generation_figure(TOKENS, PROBABILITY, ENTROPY, n_prompt=5)
    with pytest.raises(InputError, match="nothing to draw"):
        generation_figure([], [], [])


def branches():
    rows = [
        {"branch": branch, "row": row, "step": step, "token": 7, "same": same, "kl": kl}
        for branch, row, same, kl in (
            ("plain", 0, True, 0.0),
            ("<i>", 0, True, 0.5),
            ("plain", 1, True, 0.0),
            ("<i>", 1, False, 1.5),
        )
        for step in (2, 1, 0)
    ]
    frame = pd.DataFrame(rows)
    frame.loc[frame["step"] == 0, "kl"] = np.nan  # the step in common
    frame.loc[frame["step"] == 1, "same"] = True
    return frame


def test_a_line_a_branch_is_the_mean_over_rows():
    figure = branches_figure(branches(), title="branches")
    plain, other, key = figure.data
    assert (plain.name, other.name) == ("plain", "&lt;i&gt;")
    assert list(other.x) == [1, 2]
    assert list(other.y) == [1.0, 1.0]
    assert list(other.customdata) == [1.0, 0.5]
    assert list(other.marker.symbol) == ["circle", "circle-open"]
    assert (plain.line.dash, other.line.dash) == ("dot", "solid")
    assert key.name == "other token"
    assert figure.layout.yaxis.title.text == "KL from the reference (nats)"


def test_tokens_that_are_all_the_same_need_no_key():
    assert len(branches_figure(branches().assign(same=True)).data) == 2


def test_frames_without_divergences_are_refused():
    with pytest.raises(InputError, match="no column 'kl'"):
        branches_figure(branches().drop(columns="kl"))
    with pytest.raises(InputError, match="empty"):
        branches_figure(branches()[:0])
    with pytest.raises(InputError, match="all steps in common"):
        branches_figure(branches().assign(kl=np.nan))
