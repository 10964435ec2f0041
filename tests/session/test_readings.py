"""Readings of a run's stream against the experiments, whole forwards and numbers by hand."""

import dataclasses

import numpy as np
import pytest
import torch

from bloomlab.errors import InputError
from bloomlab.experiments.logit_lens import logit_lens
from bloomlab.printable import printable_tokens
from bloomlab.session.readings import (
    next_difference,
    read_contributions,
    read_lens,
    read_stream,
)
from bloomlab.session.run import run_text
from tests.session.oracles import EDITS, edits_of, is_untouched, streams_of, whole
from tests.tiny import pair, tokens

IDS = tokens(1, 9)


def run_of(model, edits=None):
    clean = run_text(model, IDS, edits_of())
    return clean if edits is None else run_text(model, IDS, edits, clean)


def test_the_lens_is_the_logit_lens_after_each_layer():
    _, model = pair()
    positions, chosen = [0, 5, 8], [5, 90]
    found = read_lens(run_of(model), positions, k=4, chosen=chosen)
    expected = logit_lens(model, IDS, k=4, tokens_of_interest=chosen, sites="post").reading
    for field in ("top", "last_rank"):
        assert torch.equal(getattr(found, field), getattr(expected, field)[:, positions])
    for field in ("top_logprob", "last_logprob", "entropy", "kl"):
        wanted = getattr(expected, field)[:, positions]
        torch.testing.assert_close(getattr(found, field), wanted, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.last, expected.last[positions])
    assert torch.equal(found.chosen_rank, expected.chosen_rank[:, positions, :2])
    wanted = expected.chosen_logprob[:, positions, :2]
    torch.testing.assert_close(found.chosen_logprob, wanted, atol=1e-4, rtol=1e-4)


def test_the_lens_of_edits_reads_the_edited_stream():
    theirs, model = pair()
    found = read_lens(run_of(model, EDITS["all"]), range(9), k=3, chosen=[7])
    logits, cache = whole(model, IDS, EDITS["all"])
    for layer, stream in enumerate(streams_of(cache, model)[1:]):
        with torch.no_grad():
            logprob = theirs.lm_head(theirs.transformer.ln_f(stream))[0].log_softmax(-1)
        torch.testing.assert_close(
            found.top_logprob[layer], logprob.topk(3).values, atol=1e-4, rtol=1e-4
        )
        wanted = logprob[:, 7]
        torch.testing.assert_close(found.chosen_logprob[layer, :, 0], wanted, atol=1e-4, rtol=1e-4)
        entropy = -(logprob.exp() * logprob).sum(-1)
        torch.testing.assert_close(found.entropy[layer], entropy, atol=1e-4, rtol=1e-4)
        final = logits[0].log_softmax(-1)
        kl = (final.exp() * (final - logprob)).sum(-1)
        torch.testing.assert_close(found.kl[layer], kl, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.last, logits[0].argmax(-1))


def test_the_lens_does_not_depend_on_how_many_rows_are_read_at_once(monkeypatch):
    _, model = pair()
    expected = read_lens(run_of(model), range(9))
    monkeypatch.setattr("bloomlab.session.readings.ROWS_AT_ONCE", 2 * 97)
    found = read_lens(run_of(model), range(9))
    torch.testing.assert_close(found.top_logprob, expected.top_logprob)
    assert torch.equal(found.top, expected.top)


@pytest.mark.parametrize("positions", [[], [9], [-10], ["x"], 3])
def test_the_lens_reads_columns_of_the_text(positions):
    _, model = pair()
    with pytest.raises(InputError, match="expected some of 0 to 8"):
        read_lens(run_of(model), positions)


@pytest.mark.parametrize("token", [-1, 97, 1.5, "x"])
def test_the_lens_follows_tokens_of_the_vocabulary(token):
    _, model = pair()
    with pytest.raises(InputError, match="some of 0 to 96|integer"):
        read_lens(run_of(model), [0], chosen=[5, token])


@pytest.mark.parametrize("edits", [None, EDITS["all"]])
def test_norms_and_cosines_are_of_the_stream(edits):
    _, model = pair()
    found = read_stream(run_of(model, edits))
    cache = whole(model, IDS, edits)[1]
    states = np.stack([stream[0].numpy().astype(float) for stream in streams_of(cache, model)])
    assert found.norms.shape == (3, 9)
    assert found.cosines.shape == (2, 9)
    for layer in range(3):
        for pos in range(9):
            vector = states[layer, pos]
            length = np.sqrt((vector**2).sum())
            assert found.norms[layer, pos] == pytest.approx(length, rel=1e-4)
            if layer:
                below = states[layer - 1, pos]
                cosine = vector @ below / length / np.sqrt((below**2).sum())
                assert found.cosines[layer - 1, pos] == pytest.approx(cosine, abs=1e-5)


def test_points_are_the_two_largest_principal_components():
    _, model = pair()
    run = run_of(model)
    found = read_stream(run)
    unit = torch.cat(run.resid).double().flatten(0, 1)
    unit = unit / unit.norm(dim=-1, keepdim=True)
    centred = unit - unit.mean(0)
    u, sizes, _ = torch.linalg.svd(centred, full_matrices=False)
    expected = (u[:, :2] * sizes[:2]).numpy()
    points = found.points.reshape(-1, 2)
    signs = np.sign((points * expected).sum(0))
    np.testing.assert_allclose(points * signs, expected, atol=1e-4)
    shares = sizes.square() / sizes.square().sum()
    np.testing.assert_allclose(found.explained, shares[:2], atol=1e-5)


def test_a_massive_number_is_found_in_its_layer_channel_and_token():
    _, model = pair()
    run = run_of(model)
    resid = [state.clone() for state in run.resid]
    resid[1][0, 4, 17] = -1000.0
    found = read_stream(dataclasses.replace(run, resid=resid)).massive
    [one] = [one for one in found if one["layer"] == 1]
    assert (one["token"], one["channel"], one["value"]) == (4, 17, -1000)
    assert one["times"] == pytest.approx(1000 / resid[1].abs().median().item(), rel=1e-5)
    assert read_stream(dataclasses.replace(run, resid=[run.resid[0] * 0 + 1] * 3)).massive == []


def test_a_stream_that_is_not_finite_has_no_points():
    _, model = pair()
    run = run_of(model)
    found = read_stream(dataclasses.replace(run, resid=[*run.resid[:2], run.resid[2] * torch.nan]))
    assert not found.points.any()
    assert np.isnan(found.norms[2]).all()
    assert np.isfinite(found.norms[:2]).all()


@pytest.mark.parametrize("name", [None, *EDITS])
def test_contributions_sum_to_the_logits_of_the_edited_run(name):
    _, model = pair()
    edits = None if name is None else EDITS[name]
    run = run_of(model, edits)
    logits = whole(model, IDS, edits)[0][0]
    for position, column in ((-1, 8), (3, 3), (-9, 0)):
        found = read_contributions(run, position)
        best = int(logits[column].argmax())
        assert found.answers.tolist() == [[best]]
        assert found.contributions.sum() == pytest.approx(logits[column, best].item(), abs=1e-3)
        found = read_contributions(run, position, 42)
        assert found.contributions.sum() == pytest.approx(logits[column, 42].item(), abs=1e-3)
        off = edits_of().scale == 0 if edits is None else (edits.scale == 0) & ~edits.mean
        frame = found.frame[found.frame.kind == "head"]
        for row in frame.itertuples():
            assert (row.contribution == 0) == off[row.layer, row.head]
    assert is_untouched(model)


def test_contributions_are_of_a_position_and_a_token_that_are_there():
    run = run_of(pair()[1])
    for position in (9, -10):
        with pytest.raises(InputError, match="expected some of 0 to 8"):
            read_contributions(run, position)
    with pytest.raises(InputError, match="97"):
        read_contributions(run, 0, 97)


@pytest.mark.parametrize("position", [-1, 3])
def test_differences_of_next_tokens_are_counted_by_hand(session, position):
    session.edits = EDITS["all"]
    found = next_difference(session.run("clean"), session.run(), 6, position)
    ids = session.run().ids
    before, after = (
        whole(session.model, ids, edits)[0][0, position].double() for edits in (None, EDITS["all"])
    )
    p, q = before.softmax(-1), after.softmax(-1)
    best = torch.maximum(p, q).topk(6).indices
    assert found["ids"] == best.tolist()
    assert found["before"] == pytest.approx(p[best].tolist(), abs=1e-5)
    assert found["after"] == pytest.approx(q[best].tolist(), abs=1e-5)
    assert found["logits"] == pytest.approx((after - before)[best].tolist(), abs=1e-3)
    assert found["kl"] == pytest.approx((p * (p.log() - q.log())).sum().item(), abs=1e-4)
    assert found["labels"] == [printable_tokens(session.model.tokenizer, [i])[0] for i in best]


def test_a_run_differs_from_itself_by_nothing(session):
    found = next_difference(session.run("clean"), session.run(), 6)
    assert found["kl"] == 0
    assert found["logits"] == [0] * 6
    assert found["before"] == found["after"]
