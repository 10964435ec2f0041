"""Tokens that heads promote, against whole circuits and against heads' results."""

import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bloomlab.errors import InputError, UnknownNameError, UnsupportedError
from bloomlab.experiments.attribution import attribute_logits
from bloomlab.experiments.head_circuits import ov_circuit
from bloomlab.experiments.head_tokens import head_tokens, written_tokens
from bloomlab.model.prune import prune_heads
from tests.planted import induction_circuit
from tests.tiny import pair, tokens

ENDS = ("promoted", "suppressed")


@pytest.fixture(scope="module")
def models():
    return pair(dtype=torch.float64)


@pytest.mark.parametrize("at_once", [2**24, 48 * 20])
def test_rows_are_the_ends_of_the_ov_circuit(models, monkeypatch, at_once):
    _, model = models
    monkeypatch.setattr(sys.modules["bloomlab.experiments.head_tokens"], "LOGITS_AT_ONCE", at_once)
    found = head_tokens(model, [5, 60], k=4)
    assert len(found) == 2 * 6 * 2 * 2 * 4
    for (layer, head, source), some in found.groupby(["layer", "head", "source"]):
        row = ov_circuit(model, layer, head, sources=source, targets=range(97))[0]
        order = row.argsort()
        ends = {"promoted": order.flip(0)[:4], "suppressed": order[:4]}
        for effect in ENDS:
            end = some[some.effect == effect]
            assert end["rank"].tolist() == [0, 1, 2, 3]
            assert end.token.tolist() == ends[effect].tolist()
            assert end.value.to_numpy() == pytest.approx(row[ends[effect]].numpy(), abs=1e-10)


def test_a_planted_copying_head_promotes_what_it_sees():
    circuit = induction_circuit()
    found = head_tokens(circuit.model, range(16), heads=circuit.matchers, k=1)
    promoted = found[found.effect == "promoted"]
    assert promoted.token.tolist() == promoted.source.tolist() == list(range(16))
    ids = circuit.ids(rows=3)
    written = written_tokens(circuit.model, ids[:, :-1], heads=circuit.matchers, k=1)
    assert written[written.effect == "promoted"].token.tolist() == ids[:, -1].tolist()


def test_what_heads_write_adds_to_logits_as_attribution_says(models):
    _, model = models
    ids = tokens(2, 5)
    found = written_tokens(model, ids, positions=[0, -1], heads=[(1, 3), (0, 2)], k=97)
    assert found[["layer", "head"]].drop_duplicates().to_numpy().tolist() == [[1, 3], [0, 2]]
    for token in (5, 96):
        exact = attribute_logits(model, ids, answers=[token] * 2, positions=[0, -1]).frame
        exact = exact.set_index(["layer", "head", "text", "pos"]).contribution
        some = found[(found.token == token) & (found.effect == "promoted")]
        assert len(some) == 8
        for row in some.itertuples():
            expected = exact[row.layer, row.head, row.text, row.pos]
            assert row.value == pytest.approx(expected, abs=1e-10)
    both = found.set_index(["layer", "head", "text", "pos", "token", "effect"]).value.unstack()
    np.testing.assert_allclose(both.promoted, both.suppressed, atol=1e-10)


def test_padding_and_pruning_change_no_row(models):
    _, model = models
    ids = tokens(2, 5)
    alone = written_tokens(model, ids, k=3)
    rows, mask = F.pad(ids, (3, 1), value=3), F.pad(torch.ones_like(ids), (3, 1))
    again = written_tokens(model, rows, mask, k=3)
    assert again.drop(columns="value").equals(alone.drop(columns="value"))
    np.testing.assert_allclose(again.value, alone.value, atol=1e-10)
    pruned = head_tokens(prune_heads(model, {0: [0, 1]}), 5, k=3)
    whole = head_tokens(model, 5, k=3)
    kept = whole[(whole.layer == 1) | (whole["head"] > 1)].reset_index(drop=True)
    assert pruned.drop(columns="value").equals(kept.drop(columns="value"))
    np.testing.assert_allclose(pruned.value, kept.value, atol=1e-10)


def test_tokens_have_names_where_there_is_a_tokenizer(demo):
    found = head_tokens(demo, " the", heads=[(3, 1)], k=2)
    assert found.columns.tolist() == [
        *("layer", "head", "source", "effect", "rank", "token", "label", "value")
    ]
    assert found.label.str.len().min() > 0


def test_wrong_requests_are_refused(models):
    _, model = models
    for k in (0, 98):
        with pytest.raises(InputError, match="expected 1 to 97"):
            head_tokens(model, 5, k=k)
    with pytest.raises(InputError, match="sources is empty"):
        head_tokens(model, [])
    with pytest.raises(InputError, match="pairs"):
        head_tokens(model, 5, heads=[3])
    with pytest.raises(InputError, match="no heads to look at"):
        head_tokens(model, 5, heads=[])
    with pytest.raises(InputError, match="there is no L0H6"):
        head_tokens(model, 5, heads=[(0, 6)])
    with pytest.raises(UnknownNameError, match="no layer 7"):
        written_tokens(model, tokens(1, 4), heads=[(7, 0)])
    with pytest.raises(InputError, match="every text needs"):
        written_tokens(model, tokens(1, 4), positions=4)
    _, post = pair(apply_residual_connection_post_layernorm=True)
    with pytest.raises(UnsupportedError, match="head_tokens: with apply"):
        head_tokens(post, 5)
