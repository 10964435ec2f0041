"""Pruning curves are what transformers' model gives with the heads silenced."""

import pandas as pd
import pytest
import torch

from bloomlab.errors import InputError, NumericalError, ResultsError, ShapeError
from bloomlab.experiments import ablate_heads
from bloomlab.experiments.head_importance import head_importance
from bloomlab.experiments.head_pruning import prune_curve, random_orders
from bloomlab.experiments.head_search import prune_order
from bloomlab.experiments.results import read_results, read_run
from bloomlab.model.prune import prune_heads
from tests.experiments.naive import cross_entropy, logits_of, mask_of, zeroed
from tests.tiny import pair, tokens

SCORES = torch.arange(12.0).view(2, 6)
HEADS = [(layer, head) for layer in range(2) for head in range(6)]


@pytest.fixture(scope="module")
def both():
    return pair(dtype=torch.float64)


def curve(model, data=None, rankings=None, **options):
    data = tokens(3, 9) if data is None else data
    return prune_curve(model, data, rankings, **{"progress": False, "n_random": 2} | options)


@pytest.mark.parametrize("mask", ["none", "left", "ragged"])
def test_every_point_is_transformers_with_the_heads_silenced(mask):
    theirs, ours = pair()  # in float64 theirs gives NaN at padding
    ids, attended = tokens(3, 9), mask_of(mask)
    data = {"input_ids": ids, "attention_mask": torch.ones(3, 9) if attended is None else attended}
    scores = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    found = curve(ours, data, {"mine": scores}, kept=[0, 3, 7, 12])
    assert len(found.frame) == 4 * 3
    for row in found.frame.itertuples():
        name = row.ranking if row.seed is pd.NA else f"random {row.seed}"
        stay = found.keep(name, row.kept)
        assert int(stay.sum()) == row.kept
        gone = [head for head in HEADS if not stay[head]]
        values = cross_entropy(logits_of(theirs, ids, attended, zeroed(gone)), ids, attended)
        clean = cross_entropy(logits_of(theirs, ids, attended), ids, attended)
        assert row.value == pytest.approx(values.mean().item(), abs=1e-5)
        assert row.effect == pytest.approx((values - clean).mean().item(), abs=1e-5)
        assert row.stderr == pytest.approx(((values - clean).std() / 3**0.5).item(), abs=1e-5)


def test_a_point_is_the_pruned_model(both):
    _, ours = both
    found = curve(ours, rankings={"mine": HEADS}, kept=5, n_random=0)
    assert found.frame.kept.tolist() == [5]
    smaller = prune_heads(ours, HEADS[:7])
    logits = smaller(tokens(3, 9)).logits
    value = cross_entropy(logits, tokens(3, 9), None).mean().item()
    assert found.frame.value[0] == pytest.approx(value, abs=1e-9)
    assert found.keep("mine", 5).nonzero().tolist() == [list(head) for head in HEADS[7:]]


def test_every_kind_of_ranking_is_read(both):
    _, ours = both
    ids = tokens(3, 9)
    sweep = ablate_heads(ours, ids, "probability", progress=False)
    order = prune_order(ours, ids, "ablation", metric="probability", progress=False)
    importance = head_importance(ours, ids, kind="signed")
    rankings = {
        "order": order,
        "sweep": sweep,
        "importance": importance,
        "matrix": importance.matrix.numpy(),
        "listed": [list(head) for head in order.heads],
    }
    found = curve(ours, ids, rankings, n_random=0, metric="probability")
    values = {name: part.value.tolist() for name, part in found.frame.groupby("ranking")}
    assert values["order"] == values["sweep"] == values["listed"]
    assert values["importance"] == values["matrix"] != values["order"]
    assert found.metric == "probability"


def test_the_band_is_over_seeds_and_the_seeds_are_those_of_any_number(both):
    _, ours = both
    found = curve(ours, n_random=20, kept=[4, 8])
    values = found.frame[found.frame.kept == 4].value
    band = found.band().set_index("kept")
    assert band.seeds.tolist() == [20, 20]
    assert band.low[4] == pytest.approx(values.quantile(0.05))
    assert band.high[4] == pytest.approx(values.quantile(0.95))
    assert values.nunique() > 10
    nine, three = random_orders((2, 6), 9, seed=5), random_orders((2, 6), 3, seed=5)
    assert [order.heads for order in three] == [order.heads for order in nine[:3]]
    assert random_orders((2, 6), 1, seed=6)[0].heads != nine[0].heads


def test_languages_have_curves_of_their_own_and_layers_keep_some_heads(both):
    _, ours = both
    data = {"one": tokens(2, 9, seed=1), "two": tokens(4, 7, seed=2)}
    found = curve(ours, data, {"mine": SCORES}, at_least_k_per_layer=1)
    assert found.frame.kept.min() == 2
    alone = curve(ours, data["two"], {"mine": SCORES}, at_least_k_per_layer=1)
    part = found.frame[found.frame.dataset == "two"].reset_index(drop=True)
    pd.testing.assert_frame_equal(part.drop(columns="dataset"), alone.frame.drop(columns="dataset"))
    assert found.keep("random 1", 2).sum(1).tolist() == [1, 1]


@pytest.mark.slow
def test_a_study_is_repeated_from_what_it_stored(both, tmp_path):
    _, ours = both
    data = {"one": tokens(2, 9, seed=1), "two": tokens(4, 7, seed=2)}
    first = curve(ours, data, {"mine": SCORES}, results=tmp_path, seed=4)
    run = read_run(tmp_path / "two")
    again = prune_curve(
        ours, data["two"], **run["arguments"], seed=run["seed"], results=tmp_path / "again"
    )
    pd.testing.assert_frame_equal(
        read_results(tmp_path / "again"), read_results(tmp_path / "two"), check_exact=True
    )
    part = first.frame[first.frame.dataset == "two"].reset_index(drop=True)
    pd.testing.assert_frame_equal(
        part.drop(columns="dataset"), again.frame.drop(columns="dataset"), check_exact=True
    )
    with pytest.raises(ResultsError, match=r"arguments.n_random was 2, is 3"):
        curve(
            ours,
            data,
            {"mine": SCORES},
            results=tmp_path,
            n_random=3,
            seed=4,
        )


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"rankings": None, "n_random": 0}, InputError, "nothing to measure"),
        ({"rankings": {"random walk": HEADS}}, InputError, "orders drawn by lot"),
        ({"rankings": [(0, 0), (0, 0)]}, InputError, "L0H0 is in the ranking twice"),
        ({"rankings": [(0, 9)]}, InputError, "no head L0H9"),
        ({"rankings": torch.rand(3, 6)}, ShapeError, "a ranking"),
        ({"rankings": torch.full((2, 6), torch.nan)}, NumericalError, "L0H0"),
        ({"kept": 13}, InputError, "k is 13, expected 0 to 12"),
        ({"kept": []}, InputError, "kept is empty"),
        ({"rankings": HEADS[:5], "kept": 3}, InputError, "expected 7 to 12"),
        ({"data": {}}, InputError, "data is empty"),
    ],
)
def test_what_cannot_be_measured_is_refused(both, changed, error, said):
    with pytest.raises(error, match=said):
        curve(both[1], **{"rankings": {"mine": HEADS}} | changed)


def test_a_ranking_of_another_model_is_refused(both):
    other = prune_order(pair(n_head=4)[1], tokens(2, 6), progress=False)
    with pytest.raises(InputError, match="2 layers x 4 heads, the model has 2 x 6"):
        curve(both[1], rankings=other)
    with pytest.raises(InputError, match="no ranking 'yours'; there are mine"):
        curve(both[1], rankings={"mine": HEADS}, kept=3).keep("yours", 3)
