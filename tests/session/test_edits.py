"""Edits are values: equal, read-only, refused when they are none."""

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError

from bloomlab.errors import InputError, ShapeError
from bloomlab.session import Edits
from tests.session.oracles import EDITS, WRONG_TYPE, edits_of

NONE = Edits.none(2, 6)


def arrays(edits):
    return [edits.scale, edits.mean, edits.slopes]


def test_no_edits_are_ones_and_no_means():
    assert [one.tolist() for one in arrays(NONE)] == [[[1] * 6] * 2, [[0] * 6] * 2, [[1] * 6] * 2]
    assert NONE.is_none
    assert not any(edits.is_none for edits in EDITS.values())


def test_heads_are_set_and_no_others():
    edits = NONE.with_heads([(0, 1), (1, 5)], scale=0.5)
    assert np.argwhere(edits.scale != 1).tolist() == [[0, 1], [1, 5]]
    assert edits.scale[0, 1] == edits.scale[1, 5] == 0.5
    averaged = edits.with_heads([(1, 5)], mean=True)
    assert np.argwhere(averaged.mean).tolist() == [[1, 5]]
    assert averaged.scale[1, 5] == 1
    assert averaged.with_heads([(1, 5)], scale=0.5) == edits
    leaned = edits.with_slope(1, 2, 3)
    assert np.argwhere(leaned.slopes != 1).tolist() == [[1, 2]]
    assert (leaned.scale == edits.scale).all()


def test_a_mask_keeps_the_slopes_and_drops_the_means():
    mask = torch.rand(2, 6, requires_grad=True)
    edits = EDITS["all"].with_mask(mask.bfloat16())
    assert (edits.scale == mask.detach().bfloat16().float().numpy()).all()
    assert not edits.mean.any()
    assert (edits.slopes == EDITS["all"].slopes).all()


def test_edits_are_equal_exactly_if_all_their_factors_are():
    assert edits_of(scale={(0, 1): 0, (1, 4): 0}) == NONE.with_heads([(1, 4), (0, 1)], scale=0)
    for name, edits in EDITS.items():
        assert [other for other in EDITS if EDITS[other] == edits] == [name]
    assert NONE.with_heads([(0, 1)]).with_heads([(0, 1)], scale=1) == NONE
    assert Edits.none(2, 6) != Edits.none(3, 4)
    assert NONE != 0


def test_edits_do_not_change():
    scale = np.ones((2, 6), dtype=np.float32)
    edits = Edits(scale=scale, mean=scale == 0, slopes=scale)
    scale[:] = 0
    assert edits == NONE
    for array in arrays(edits):
        with pytest.raises(ValueError, match="read-only"):
            array[0, 0] = 0
    edits.with_heads([(0, 0)], scale=0)
    edits.with_slope(0, 0, 0)
    assert edits == NONE


@pytest.mark.parametrize("first", EDITS)
@pytest.mark.parametrize("second", EDITS)
def test_the_first_difference_is_the_first_layer_that_differs(first, second):
    pairs = list(zip(arrays(EDITS[first]), arrays(EDITS[second]), strict=True))
    layers = [i for i in range(2) if any((a[i] != b[i]).any() for a, b in pairs)]
    assert EDITS[first].first_difference(EDITS[second]) == min(layers, default=2)


@pytest.mark.parametrize("seed", range(5))
def test_code_makes_the_edits_again(seed):
    rng, edits = np.random.default_rng(seed), NONE
    for layer, head in np.argwhere(rng.random((2, 6)) < 0.6).tolist():
        edits = edits.with_heads([(layer, head)], scale=float(rng.random() * rng.integers(2, 10)))
    edits = edits.with_heads([(0, seed)], mean=True).with_heads([(1, seed)], scale=0)
    edits = edits.with_slope(1, seed, rng.random()).with_slope(0, 0, 1e-9)
    assert eval("edits" + edits.code(), {"edits": NONE}) == edits
    assert NONE.code() == ""


def test_code_is_short():
    assert NONE.with_heads([(0, 1)], scale=0.1).code() == ".with_heads([(0, 1)], scale=0.1)"
    assert NONE.with_slope(0, 1, 0).with_slope(1, 0, 2).code() == (
        ".with_slope(0, 1, 0).with_slope(1, 0, 2)"
    )


@pytest.mark.parametrize("factor", [-1, 10.1, np.nan, np.inf, "x", None])
def test_a_factor_is_a_number_from_0_to_10(factor):
    mask = [[factor] * 6] * 2
    with pytest.raises(InputError, match="scale"):
        NONE.with_mask(mask)
    with pytest.raises(WRONG_TYPE, match="slopes"):
        Edits(scale=NONE.scale, mean=NONE.mean, slopes=np.array(mask, dtype=object))
    with pytest.raises(InputError, match="scale"):
        NONE.with_heads([(0, 0)], scale=factor)
    with pytest.raises(InputError, match="slopes"):
        NONE.with_slope(0, 0, factor)


@pytest.mark.parametrize("place", [(2, 0), (-1, 0), (0, 6), (0, -1)])
def test_a_head_that_is_not_there_is_named(place):
    layer, head = place
    for make in (lambda: NONE.with_heads([place]), lambda: NONE.with_slope(layer, head, 0)):
        with pytest.raises(InputError, match=f"no head L{layer}H{head}: layers are 0 to 1, heads"):
            make()


@pytest.mark.parametrize("shape", [(2, 5), (3, 6), (6,), (1, 2, 6), ()])
def test_a_mask_has_a_factor_for_each_head(shape):
    with pytest.raises(ShapeError, match="expected"):
        NONE.with_mask(torch.ones(shape))
    with pytest.raises((ShapeError, TypeCheckError), match="as the others|slopes"):
        Edits(scale=NONE.scale, mean=NONE.mean, slopes=np.ones(shape, dtype=np.float32))
