"""Orders of removal: sorted scores, nested masks, heads that every layer keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomlab.errors import InputError, NumericalError, ShapeError
from bloomlab.experiments.head_order import one_shot_order


@st.composite
def matrices(draw):
    """Scores [layer head] with ties, and heads that every layer keeps."""
    n_layer, n_head = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    row = st.lists(st.integers(-3, 3), min_size=n_head, max_size=n_head)
    rows = draw(st.lists(row, min_size=n_layer, max_size=n_layer))
    return torch.tensor(rows, dtype=torch.float64), draw(st.integers(0, n_head))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(matrices())
def test_the_order_is_the_sorted_scores_ties_by_layer_then_head(made):
    scores, _ = made
    order = one_shot_order(scores)
    frame = order.frame
    assert list(frame.columns) == ["rank", "layer", "head", "score", "metric"]
    assert frame["rank"].tolist() == list(range(scores.numel()))
    assert len(set(order.heads)) == scores.numel()
    rows = list(zip(frame.score, frame.layer, frame["head"], strict=True))
    assert rows == sorted(rows)
    assert all(scores[layer, head] == score for score, layer, head in rows)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(matrices())
def test_masks_hold_k_heads_nest_and_leave_enough_in_every_layer(made):
    scores, at_least = made
    order = one_shot_order(scores, at_least_k_per_layer=at_least)
    low = at_least * len(scores)
    before = None
    for k in range(low, scores.numel() + 1):
        mask = order.keep(k)
        assert mask.sum() == k
        assert (mask.sum(1) >= at_least).all()
        assert before is None or (mask | ~before).all()
        free = scores[~mask & (mask.sum(1) > at_least)[:, None]]
        if mask.any() and len(free):  # whoever went was no better than any that could have gone
            spare = mask & (mask.sum(1) > at_least)[:, None]
            assert not spare.any() or free.max() <= scores[spare].min()
        before = mask
    lowest = order.keep(low)
    for row, kept in zip(scores, lowest, strict=True):  # each layer's own best stay
        assert row[kept].sum() == row.sort().values[len(row) - at_least :].sum()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.permutations(range(6)), st.integers(0, 2))
def test_permuting_heads_permutes_the_order(permutation, at_least):
    scores = torch.randn(3, 6, generator=torch.Generator().manual_seed(3))
    order = one_shot_order(scores, at_least_k_per_layer=at_least)
    moved = one_shot_order(scores[:, permutation], at_least_k_per_layer=at_least)
    assert [(layer, permutation[head]) for layer, head in moved.heads] == list(order.heads)
    assert torch.equal(moved.keep(9), order.keep(9)[:, permutation])


@pytest.mark.parametrize("k", [1, 7, -1, 2.0, True, None])
def test_a_number_of_heads_that_cannot_stay_is_refused(k):
    order = one_shot_order(torch.rand(2, 3), at_least_k_per_layer=1)
    with pytest.raises(InputError, match="expected 2 to 6 heads that stay .2 heads are never"):
        order.keep(k)


@pytest.mark.parametrize(
    ("scores", "at_least", "error", "message"),
    [
        (torch.rand(6), 0, ShapeError, r"expected \[layer head\]"),
        (torch.rand(2, 3), 4, InputError, "is 4, expected 0 to 3"),
        (torch.rand(2, 3), -1, InputError, "is -1, expected 0 to 3"),
        (torch.rand(2, 3), 1.0, InputError, "is 1.0, expected 0 to 3"),
        (torch.tensor([[0, 1], [torch.nan, 1]]), 0, NumericalError, "score of L1H0 is nan"),
        (torch.tensor([[0, -torch.inf]]), 0, NumericalError, "score of L0H1 is -inf"),
    ],
)
def test_bad_scores_are_refused(scores, at_least, error, message):
    with pytest.raises(error, match=message):
        one_shot_order(scores, at_least_k_per_layer=at_least)
