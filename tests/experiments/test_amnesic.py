"""Erasing at hooks: equals plain hooked forwards, in any padding, beside random directions."""

import pytest
import torch
from torch.nn import functional as F

from bloomlab.analysis.erasure import Eraser, leace, random_eraser
from bloomlab.analysis.intervals import bootstrap_mean
from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments import tasks
from bloomlab.experiments.activations import collect
from bloomlab.experiments.amnesic import FAR, METRICS, amnesic_effect
from bloomlab.experiments.probe_labels import label_examples, without_rare
from tests.tiny import pair, tokens

SITES = (
    "hook_embed",
    "blocks.0.hook_resid_pre",
    "blocks.0.attn.hook_z",
    "blocks.1.hook_attn_out",
    "blocks.1.hook_resid_post",
    "blocks.1.mlp.hook_post",
    "ln_final.hook_normalized",
)


@pytest.fixture(scope="module")
def model():
    return pair(dtype=torch.float64)[1]


def drawn(d, rank=3, seed=0):
    source = torch.Generator().manual_seed(seed)
    mean = torch.randn(d, generator=source, dtype=torch.float64)
    empty = Eraser(weights=torch.eye(d, dtype=torch.float64), mean=mean, rank=rank)
    return random_eraser(empty, seed=seed)


def erasers(model, sites=SITES):
    return {name: drawn(192 if "mlp" in name else 48, seed=i) for i, name in enumerate(sites)}


def plain(model, ids, given):
    """Metrics of one text, by a whole forward with hooks that multiply by hand."""

    def hook(eraser):
        def edit(value, hook):
            flat = value.flatten(2)
            return (flat @ eraser.weights.T + eraser.bias).view_as(value)

        return edit

    with torch.no_grad(), model.hooks(fwd_hooks=[(name, hook(e)) for name, e in given.items()]):
        logits = model(ids[None], return_type="logits")[0, :-1]
    right = (logits.argmax(-1) == ids[1:]).double().mean()
    return torch.stack([F.cross_entropy(logits, ids[1:]), right])


def test_equals_hooked_forwards_at_every_site(model):
    ids, given = tokens(3, 9), erasers(model)
    got = amnesic_effect(model, ids, given, controls=2, seed=5)
    assert got.hooks == SITES
    assert got.layers == (None, 0, 0, 1, 1, 1, None)
    clean = torch.stack([plain(model, row, {}) for row in ids], 1)
    assert torch.allclose(got.clean, clean, atol=1e-9)
    for case, (name, eraser) in enumerate(given.items()):
        expected = torch.stack([plain(model, row, {name: eraser}) for row in ids], 1)
        assert torch.allclose(got.erased[case], expected, atol=1e-9)
        assert not torch.allclose(expected[0], clean[0], atol=1e-3)
        for draw in range(2):
            control = {name: random_eraser(eraser, seed=5 * FAR + draw)}
            expected = torch.stack([plain(model, row, control) for row in ids], 1)
            assert torch.allclose(got.control[case, draw], expected, atol=1e-9)


def test_together_is_one_run_with_all_hooks(model):
    ids, given = tokens(2, 9), erasers(model, SITES[2:6])
    got = amnesic_effect(model, ids, given, together=True, controls=1)
    expected = torch.stack([plain(model, row, given) for row in ids], 1)
    assert torch.allclose(got.erased[0], expected, atol=1e-9)
    assert got.ranks == (12,)
    assert got.layers == (None,)
    assert got.frame.hook.tolist() == [" + ".join(SITES[2:6])] * 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_rows_change_nothing(model, side):
    rows, given = [tokens(n, seed=n) for n in (4, 9, 6)], erasers(model, SITES[:6:2])
    padded, mask = torch.full((3, 11), 3), torch.zeros(3, 11, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(11 - len(row), None) if side == "left" else slice(0, len(row))
        padded[i, place], mask[i, place] = row, 1
    got = amnesic_effect(model, padded, given, mask, controls=1, rows=2)
    for i, row in enumerate(rows):
        alone = amnesic_effect(model, row[None], given, controls=1)
        assert torch.allclose(got.erased[..., i], alone.erased[..., 0], atol=1e-9)
        assert torch.allclose(got.control[..., i], alone.control[..., 0], atol=1e-9)
        assert torch.allclose(got.clean[..., i], alone.clean[..., 0], atol=1e-9)


def test_frame_holds_means_over_texts_and_their_intervals(model):
    got = amnesic_effect(model, tokens(6, 7), erasers(model, SITES[1:3]), controls=3, level=0.9)
    frame = got.frame
    assert frame.metric.tolist() == [*METRICS] * 2
    assert frame["rank"].tolist() == [3] * 4
    effect = got.erased[1, 0] - got.clean[0]
    control = (got.control[1, :, 0] - got.clean[0]).mean(0)
    row = frame.iloc[2]
    low, high = bootstrap_mean(effect, 0.9)
    assert row.clean == pytest.approx(float(got.clean[0].mean()))
    assert (row.effect, row.effect_low, row.effect_high) == pytest.approx(
        (float(effect.mean()), float(low), float(high))
    )
    assert row.control == pytest.approx(float(control.mean()))
    assert row.beyond == pytest.approx(row.effect - row.control)
    spread = got.control[1, :, 0].mean(-1).std(correction=0)
    assert row.control_spread == pytest.approx(float(spread))


@pytest.mark.slow
def test_the_demo_needs_its_parts_of_speech(demo):
    words = tasks.part_of_speech("en")
    labels = without_rare(words.labels)
    name = "blocks.2.hook_resid_post"
    given = label_examples(demo, words.texts, labels, spans=words.spans)
    vectors = collect(demo, given.data, [name], spans=given.spans)[name]
    eraser = leace(vectors, given.labels)
    got = amnesic_effect(demo, list(words.texts[:12]), {name: eraser}, controls=2)
    loss = got.frame.iloc[0]
    assert loss.beyond_low > 0.1
    assert abs(loss.control) < 0.2 * loss.effect
    alone = amnesic_effect(demo, words.texts[3], {name: eraser}, controls=2)
    assert torch.allclose(alone.erased[..., 0], got.erased[..., 3], atol=1e-4)


def test_wrong_input_is_refused(model):
    ids = tokens(2, 5)
    with pytest.raises(InputError, match="no erasers"):
        amnesic_effect(model, ids, {})
    with pytest.raises(UnknownNameError, match="resid_psot"):
        amnesic_effect(model, ids, {"blocks.0.hook_resid_psot": drawn(48)})
    with pytest.raises(InputError, match="stands for 2 hooks"):
        amnesic_effect(model, ids, {"resid_post": drawn(48)})
    with pytest.raises(ShapeError, match=r"eraser of 'blocks.0.hook_resid_post'.*48, 48"):
        amnesic_effect(model, ids, {"blocks.0.hook_resid_post": drawn(47)})
    with pytest.raises(InputError, match="controls is 0"):
        amnesic_effect(model, ids, erasers(model), controls=0)
    with (
        model.hooks(fwd_hooks=[("hook_embed", lambda value, hook: value)]),
        pytest.raises(InputError, match="hooks are attached"),
    ):
        amnesic_effect(model, ids, erasers(model))
