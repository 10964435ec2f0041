"""Edits of keys and values: `replace` and `splice` against the same edit by hooks or by hand."""

import pytest
import torch

import bloomlab as bl
from bloomlab.errors import CacheError, ShapeError
from tests.tiny import distance_in_eps, make_hf, pair, tokens

N = 8


def run(ours, rows=2, seed=1):
    return ours(tokens(rows, N, seed=seed)).past_key_values


def contents(past):
    """Everything a cache says, copied."""
    layers = range(len(past._layers))
    held = [get(layer).clone() for layer in layers for get in (past.keys, past.values)]
    return [*held, past.positions.clone(), past.valid.clone(), past.next_position.clone()]


def same(past, before):
    return all(map(torch.equal, contents(past), before))


@pytest.mark.parametrize("which", ["k", "v"])
@pytest.mark.parametrize("forked", [False, True])
def test_an_edit_equals_the_same_edit_by_hand(which, forked):
    _, ours = pair()
    past = run(ours)
    past = past.fork(2) if forked else past
    before = contents(past)
    rows, heads, columns = [1, 0], [4, -1], [6, 2, 3]
    value = torch.randn(2, 2, 3, 8)
    new = past.replace(1, **{which: value}, rows=rows, heads=heads, columns=columns)
    index = 2 + (which == "v")  # the layers' keys and values in turn
    expected = [t.clone() for t in before]
    for i, row in enumerate(rows):
        for j, head in enumerate(heads):
            for m, column in enumerate(columns):
                expected[index][row, head, column] = value[i, j, m]
    assert same(new, expected)
    assert same(past, before)
    double = past.replace(1, **{which: lambda old: 2 * old}, columns=slice(2, 5))
    expected = [t.clone() for t in before]
    expected[index][:, :, 2:5] *= 2
    assert same(double, expected)
    zero = past.replace(1, **{which: 0}, rows=0)
    assert not contents(zero)[index][0].any()
    assert torch.equal(contents(zero)[index][1], before[index][1])


@pytest.mark.parametrize("name", ["k", "v"])
def test_an_edited_cache_equals_a_forward_with_the_edit_at_the_hook(name):
    _, ours = pair()
    ids, new = tokens(2, N), tokens(2, 2, seed=3)
    value = torch.randn(8)

    def edit(held, hook):
        held[:, 3, 5] = value
        return held

    past = run(ours).replace(1, **{name: value}, heads=5, columns=3)
    expected = ours.run_with_hooks(
        torch.cat([ids, new], 1), fwd_hooks=[(f"blocks.1.attn.hook_{name}", edit)]
    )[:, -2:]
    assert distance_in_eps(ours(new, past_key_values=past).logits, expected) < 200


def test_untouched_layers_and_pieces_stay_shared():
    _, ours = pair()
    past = run(ours, rows=1).fork(64)
    ours(tokens(64, 1), past_key_values=past)
    size = past.replace(0, k=1.0, columns=N).nbytes
    assert size < past.nbytes + 64 * 48 * 4 * 2 * 20  # the last piece's room at most
    shared = {one.room.k.data_ptr() for one in past._layers[0][:1] + past._layers[1]}
    edited = past.replace(0, k=1.0, columns=N)
    assert shared <= {one.room.k.data_ptr() for pieces in edited._layers for one in pieces}
    alike = past.replace(0, v=torch.zeros(6, 1, 8), columns=slice(0, N))
    assert alike._layers[0][0].rows == 1  # the same for all rows: stored once still
    assert alike._layers[0][0].room.k.data_ptr() == past._layers[0][0].room.k.data_ptr()
    assert not alike.values(0)[:, :, :N].any()


@pytest.mark.parametrize("one_row", [False, True])
def test_a_splice_takes_the_other_runs_columns(one_row):
    _, ours = pair()
    past, other = run(ours), run(ours, rows=1 if one_row else 2, seed=9)
    before, donor = contents(past), contents(other)
    new = past.splice(other, columns=[1, 5], layers=1, heads=[0, 2], rows=[1], what="v")
    expected = [t.clone() for t in before]
    for head in (0, 2):
        for column in (1, 5):
            expected[3][1, head, column] = donor[3][0 if one_row else 1, head, column]
    assert same(new, expected)
    assert same(past, before)
    assert same(other, donor)


def test_a_splice_of_all_columns_is_the_other_run():
    _, ours = pair()
    past, other = run(ours), run(ours, seed=9)
    new = tokens(2, 2, seed=3)
    got = ours(new, past_key_values=past.splice(other, columns=slice(None))).logits
    assert torch.equal(got, ours(new, past_key_values=other).logits)


def test_edited_forks_grow_apart():
    _, ours = pair()
    past = run(ours, rows=1).fork(3)
    for _ in range(2):
        ours(tokens(3, 1), past_key_values=past)
    before = contents(past)
    edited = past.replace(0, k=0.0, rows=1, columns=2)
    ours(tokens(3, 1), past_key_values=edited)
    assert same(past, before)
    assert (len(edited), len(past)) == (N + 3, N + 2)
    assert torch.equal(edited.keys(0)[0, :, : N + 2], past.keys(0)[0])


def test_gradients_flow_into_an_edit():
    _, ours = pair()
    value = torch.randn(8, requires_grad=True)
    past = run(ours).replace(0, v=value, heads=1, columns=2)
    ours(tokens(2, 1), past_key_values=past).logits.square().sum().backward()
    assert value.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda p: p.replace(2, k=0.0), CacheError, "no layer 2"),
        (lambda p: p.replace(-1, k=0.0), CacheError, "no layer -1"),
        (lambda p: p.replace(0), CacheError, "nothing to replace"),
        (lambda p: p.replace(0, k=0.0, columns=[N]), CacheError, "columns 0 to 7"),
        (lambda p: p.replace(0, k=0.0, heads=6), CacheError, "heads 0 to 5"),
        (lambda p: p.replace(0, k=0.0, rows=[-3]), CacheError, "rows 0 to 1"),
        (lambda p: p.replace(0, k=0.0, rows=[0, -2]), CacheError, "once"),
        (lambda p: p.replace(0, k=0.0, rows=[True, False]), CacheError, "whole numbers"),
        (lambda p: p.replace(0, k=0.0, heads="L3H7"), CacheError, "whole numbers"),
        (lambda p: p.replace(0, k="zero"), CacheError, "expected a tensor"),
        (lambda p: p.replace(0, k=lambda old: None), CacheError, "expected a tensor"),
        (lambda p: p.replace(0, k=float("nan")), CacheError, "NaN"),
        (lambda p: p.replace(0, v=torch.zeros(8).double()), CacheError, "float64"),
        (lambda p: p.replace(0, v=torch.zeros(3, 8), columns=[0, 1]), ShapeError, "2, 8"),
        (lambda p: p.replace(0, v=torch.zeros(1, 1, 1, 1, 8)), ShapeError, "broadcasts"),
        (lambda p: p.splice(7, columns=0), CacheError, "KVCache"),
        (lambda p: p.splice(bl.KVCache(), columns=0), CacheError, "no layer 0"),
        (lambda p: p.splice(p, columns=8), CacheError, "columns 0 to 7"),
        (lambda p: p.splice(p.crop(3), columns=5), CacheError, "columns 0 to 2"),
        (lambda p: p.splice(p, columns=0, layers=2), CacheError, "layers 0 to 1"),
        (lambda p: p.splice(p, columns=0, heads=9), CacheError, "heads 0 to 5"),
        (lambda p: p.splice(p, columns=0, what="q"), CacheError, "'k', 'v'"),
        (lambda p: p.splice(p, columns=0, what=()), CacheError, "'k', 'v'"),
        (lambda p: p.splice(p.fork(2), columns=0), CacheError, "4 rows, expected 1 or 2"),
        (lambda p: p.gather([]), CacheError, "at least one row"),
        (lambda p: p.crop(-9), CacheError, "holds 8 tokens"),
        (lambda p: bl.KVCache().fork(), CacheError, "holds tokens"),
        (lambda p: bl.KVCache().keys(0), CacheError, "no layer 0"),
    ],
)
def test_impossible_edits_are_refused_and_change_nothing(change, error, text):
    _, ours = pair()
    past = run(ours)
    before = contents(past)
    with pytest.raises(error, match=text):
        change(past)
    assert same(past, before)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"n_layer": 3}, "3 layers"),
        ({"n_head": 3}, "head, d_head"),
        ({"dtype": torch.bfloat16}, "dtype"),
    ],
)
def test_a_splice_of_another_model_is_refused(fields, text):
    _, ours = pair()
    past = run(ours)
    other = run(bl.BloomForCausalLM.from_hf(make_hf(**fields)))
    with pytest.raises(CacheError, match=text):
        past.splice(other, columns=0)


def test_a_splice_of_padding_is_refused():
    _, ours = pair()
    mask = torch.ones(2, N, dtype=torch.long)
    mask[1, :3] = 0
    padded = ours(tokens(2, N), attention_mask=mask).past_key_values
    with pytest.raises(CacheError, match="padding"):
        run(ours).splice(padded, columns=2)
    run(ours).splice(padded, columns=3)
    padded.splice(run(ours), columns=2)
