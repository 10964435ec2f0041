import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bloomlab.widgets.pack import floats, lower, plain, quantised, signed, trouble
from tests.widgets.asking import as_floats, error_bound, square, value_of

TOPS = st.floats(1e-3, 1e3)
SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array)


@given(SHARES, TOPS)
def test_a_byte_is_as_near_as_its_rounded_root(shares, top):
    values = shares * top
    error = np.abs(value_of(quantised(values, top), top) - values)
    assert (error <= error_bound(values, top)).all()


@given(SHARES, TOPS, st.integers(0))
def test_a_signed_byte_is_as_near_as_its_rounded_root(shares, top, seed):
    values = shares * top * np.random.default_rng(seed).choice((-1, 1), shares.shape)
    error = np.abs(value_of(signed(values, top), top, signed=True) - values)
    assert (error <= error_bound(values, top, levels=127)).all()


@given(SHARES)
def test_order_is_kept(shares):
    data = quantised(np.sort(shares)).astype(int)
    assert (np.diff(data) >= 0).all()


def test_ends_are_exact():
    assert quantised(np.array([0.0, 1.0, 5.0, -1.0])).tolist() == [0, 255, 255, 0]
    assert signed(np.array([-2.0, 0.0, 2.0, 9.0]), 2.0).tolist() == [1, 128, 255, 255]


def test_a_small_weight_is_not_lost():
    assert quantised(np.array([1e-5])) == 1


def test_what_is_no_number_is_drawn_as_nothing():
    broken = np.array([np.nan, np.inf, -np.inf])
    assert quantised(broken).tolist() == [0, 255, 0]
    assert signed(broken, 1.0).tolist() == [128, 255, 1]
    assert quantised(np.zeros(2), 0.0).tolist() == [0, 0]


@pytest.mark.parametrize("n", [1, 2, 3, 17, 64])
def test_a_triangle_is_unpacked_to_what_it_was(n):
    values = np.random.default_rng(n).integers(0, 256, (n, n), dtype=np.uint8)
    data = lower(values)
    assert len(data) == n * (n + 1) // 2
    np.testing.assert_array_equal(square(np.frombuffer(data, np.uint8), n), np.tril(values))


def test_triangles_of_several_heads_follow_each_other():
    values = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    assert lower(values) == lower(values[0]) + lower(values[1])


def test_what_is_not_square_is_sent_whole():
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert lower(values) == bytes(range(6))


def test_numbers_arrive_as_float32():
    values = np.array([[0.1, -2.5], [np.nan, 1e-30]])
    data = floats(values[:, ::-1])
    np.testing.assert_array_equal(
        as_floats(np.frombuffer(data, np.uint8)), values[:, ::-1].astype(np.float32).reshape(-1)
    )


def test_trouble_counts_what_is_not_finite():
    assert trouble(np.ones(3), "it") == ""
    said = trouble(np.array([1, np.nan, np.inf, -np.inf]), "the attention")
    assert said.startswith("the attention holds 3 numbers")


def test_plain_facts_are_json_and_else_unchanged():
    facts = {"a": [1, 0.5, "x", None, True], "b": {"c": (1.0, float("nan"))}, "d": -float("inf")}
    assert json.loads(json.dumps(plain(facts), allow_nan=False)) == {
        "a": [1, 0.5, "x", None, True],
        "b": {"c": [1.0, None]},
        "d": None,
    }
