import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomlab.errors import BloomlabError
from bloomlab.widgets.heads import heads_off, mask_without


@given(st.integers(1, 5), st.integers(1, 13), st.integers(0))
def test_text_of_a_mask_gives_the_mask_back(n_layer, n_head, seed):
    mask = np.random.default_rng(seed).integers(0, 2, (n_layer, n_head)).astype(np.float32)
    np.testing.assert_array_equal(mask_without(heads_off(mask), n_layer, n_head), mask)


def test_neighbours_are_joined():
    mask = np.ones((2, 8))
    mask[0, 0] = mask[1, 4:8] = mask[1, 2] = 0
    assert heads_off(mask) == "L0H0 L1H2 L1H4-7"


def test_any_case_comma_or_space_will_do():
    np.testing.assert_array_equal(mask_without(" l0h1,L1H0-1 ", 2, 3), [[1, 0, 1], [0, 0, 1]])


def test_no_text_leaves_all_heads_on():
    assert mask_without("", 2, 3).all()


@pytest.mark.parametrize("text", ["L2H0", "L0H3", "L0H1-3", "L0H2-1", "H0", "L0", "L0H1-", "x"])
def test_what_is_no_head_is_refused_by_name(text):
    with pytest.raises(BloomlabError, match=text):
        mask_without(f"L0H0 {text}", 2, 3)
