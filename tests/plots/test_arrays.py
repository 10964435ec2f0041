"""A figure takes arrays, tensors and lists alike, and refuses what it cannot mean."""

import numpy as np
import pytest
import torch

from bloomlab.errors import InputError, ShapeError
from bloomlab.plots import (
    bias_figure,
    comparison_figure,
    cosine_figure,
    generation_figure,
    head_grid_figure,
    lens_figure,
    next_token_figure,
    norm_figure,
    pattern_figure,
    rank_figure,
    score_figure,
    slopes_figure,
    trajectory_figure,
    window_figure,
)
from bloomlab.plots.arrays import check_labels, check_top

PATTERN = np.tril(np.ones((3, 3))) / np.arange(1, 4)[:, None]
TOKENS = ["a", "b", "c"]
DRAW = {
    "pattern": (lambda values: pattern_figure(values, TOKENS), PATTERN),
    "grid": (lambda values: head_grid_figure(values, TOKENS), PATTERN[None, None]),
    "next": (lambda values: next_token_figure(TOKENS, values), PATTERN[2]),
    "norms": (lambda values: norm_figure(values, TOKENS), PATTERN + 1),
    "slopes": (slopes_figure, np.array([0.5, 0.25])),
    "bias": (bias_figure, np.array([0.5, 0.25])),
    "window": (window_figure, np.array([0.5, 0.25])),
    "score": (lambda values: score_figure(values, values, TOKENS), PATTERN[2]),
    "comparison": (lambda values: comparison_figure(values, values, TOKENS), PATTERN),
    "lens": (lambda values: lens_figure(values, [TOKENS] * 3, tokens=TOKENS), PATTERN),
    "ranks": (lambda values: rank_figure(values, TOKENS), PATTERN),
    "cosines": (lambda values: cosine_figure(values, TOKENS), PATTERN),
    "points": (lambda values: trajectory_figure(values, TOKENS), PATTERN[..., None][:, :, [0, 0]]),
    "generation": (lambda values: generation_figure(TOKENS, values, values), PATTERN[2]),
}


@pytest.mark.parametrize("name", DRAW)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_tensor_draws_what_its_array_draws(name, dtype):
    draw, values = DRAW[name]
    tensor = torch.tensor(values, requires_grad=True, dtype=dtype)
    expected = draw(tensor.detach().float().numpy())
    assert draw(tensor).to_json() == expected.to_json()
    draw(values.tolist())


@pytest.mark.parametrize("name", DRAW)
def test_another_number_of_axes_is_refused(name):
    draw, values = DRAW[name]
    with pytest.raises(ShapeError, match="expected"):
        draw(values[None])


@pytest.mark.parametrize("wrong", [5.0, -3.0, float("nan")])
def test_scores_are_not_taken_for_a_pattern(wrong):
    values = PATTERN.copy()
    values[1, 0] = wrong
    with pytest.raises(InputError, match="hook_pattern"):
        pattern_figure(values, TOKENS)


def test_what_is_no_number_is_refused():
    with pytest.raises(InputError, match="slopes"):
        slopes_figure(["steep", "flat"])


@pytest.mark.parametrize("top", [0, -1, True])
def test_there_must_be_something_to_draw(top):
    with pytest.raises(InputError, match="top is"):
        check_top(top)
    with pytest.raises(InputError, match="nothing to draw"):
        check_labels("values", np.zeros((0, 2)), ["a", "b"])


def test_labels_are_counted_along_their_axis():
    check_labels("values", np.zeros((1, 2)), ["a"], along=0)
    with pytest.raises(ShapeError, match=r"values has shape \(1, 2\), expected \(3, 2\)"):
        check_labels("values", np.zeros((1, 2)), TOKENS, along=0)
