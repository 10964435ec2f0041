import json

import numpy as np
import pytest
import torch

import bloomlab as bl
from bloomlab.widgets import HeadMaskLab
from tests.widgets.asking import PROMPT, Browser, ask


def off(session):
    return set(map(tuple, np.argwhere(session.edits.scale == 0).tolist()))


@pytest.fixture
def view(session):
    return HeadMaskLab(session)


def test_no_edit_changes_nothing(view, demo):
    answer = ask(view, "next", k=5)
    with torch.no_grad():
        expected = demo(PROMPT).logits[0, -1].float().softmax(-1).topk(5)
    assert answer["ids"] == expected.indices.tolist()
    np.testing.assert_allclose(answer["before"], expected.values, atol=1e-5)
    assert answer["before"] == answer["after"]
    assert answer["logits"] == [0.0] * 5
    assert answer["kl"] == 0
    assert answer["forward_ms"] > 0
    assert answer["trouble"] == ""


def test_a_head_that_is_off_writes_nothing(view, demo):
    browser = Browser(view)
    browser.ask("edit", heads=[[1, 0], [2, 7]], scale=0)
    answer = browser.ask("next", k=8)

    def silence(head):
        def hook(z, hook):
            z[:, :, head] = 0
            return z

        return hook

    hooks = [("blocks.1.attn.hook_z", silence(0)), ("blocks.2.attn.hook_z", silence(7))]
    with torch.no_grad():
        clean = demo(PROMPT).logits[0, -1].float()
        with demo.hooks(fwd_hooks=hooks):
            edited = demo(PROMPT).logits[0, -1].float()
    ids = answer["ids"]
    np.testing.assert_allclose(answer["after"], edited.softmax(-1)[ids], atol=1e-5)
    np.testing.assert_allclose(answer["logits"], (edited - clean)[ids], atol=1e-4)
    before, after = (one.log_softmax(-1) for one in (clean, edited))
    assert answer["kl"] == pytest.approx(float((before.exp() * (before - after)).sum()), abs=1e-5)
    assert answer["first"] == 1


def test_value_is_the_answer_as_a_table(view):
    ask(view, "edit", heads=[[1, 0]], scale=0.5)
    answer, frame = ask(view, "next", k=10), view.value
    assert list(frame) == ["id", "label", "before", "after", "logit_change"]
    assert frame["label"].tolist() == answer["labels"]
    np.testing.assert_allclose(frame["after"], answer["after"])


def test_a_mask_is_written_as_text(view, session):
    browser = Browser(view)
    browser.ask("mask", text="L0H0 l1h4-7")
    assert off(session) == {(0, 0), (1, 4), (1, 5), (1, 6), (1, 7)}
    assert view.facts["off"] == "L0H0 L1H4-7"
    assert "L9H9" in browser.ask("mask", text="L9H9")["error"]
    assert len(off(session)) == 5
    browser.ask("mask", text="")
    assert session.edits.is_none


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("layer", {(3, head) for head in range(8)}),
        ("head", {(layer, 2) for layer in range(6)}),
        ("others", {(3, head) for head in range(8) if head != 2}),
        ("invert", {(layer, head) for layer in range(6) for head in range(8)}),
    ],
)
def test_presets_switch_what_they_say(what, expected, view, session):
    ask(view, "preset", what=what, layer=3, head=2)
    assert off(session) == expected


@pytest.mark.parametrize("what", ["layer", "head", "others"])
def test_presets_leave_other_heads_as_they_are(what, view, session):
    session.edits = session.edits.with_heads([(0, 0)], mean=True).with_heads([(1, 1)], scale=0.5)
    ask(view, "preset", what=what, layer=3, head=2)
    assert session.edits.mean[0, 0]
    assert session.edits.scale[1, 1] == 0.5


def test_inverting_twice_changes_nothing(view, session):
    ask(view, "mask", text="L1H1 L2H0-3")
    before = session.edits
    ask(view, "preset", what="invert", layer=0, head=0)
    assert session.edits != before
    ask(view, "preset", what="invert", layer=0, head=0)
    assert session.edits == before


@pytest.mark.parametrize("question", [("moon", 0, 0), ("layer", 6, 0), ("others", 0, 8)])
def test_what_is_no_preset_or_place_is_refused(question, view, session):
    what, layer, head = question
    answer = ask(view, "preset", what=what, layer=layer, head=head)
    assert (what == "moon") == ("moon" in answer["error"])
    assert answer["error"] == view.status
    assert "unexpected" not in answer["error"]
    assert session.edits.is_none


def test_earlier_edits_are_restored_and_slopes_stay(view, session):
    session.edits = session.edits.with_heads([(0, 1)], scale=0.3).with_heads([(0, 2)], mean=True)
    before = json.loads(json.dumps({name: view.facts[name] for name in ("scale", "mean")}))
    ask(view, "mask", text="L5H5")
    session.edits = session.edits.with_slope(1, 1, 2.0)
    ask(view, "restore", **before)
    np.testing.assert_array_equal(session.edits.scale, np.float32(before["scale"]))
    np.testing.assert_array_equal(session.edits.mean, before["mean"])
    assert session.edits.slopes[1, 1] == 2


def test_pruning_stays_within_its_limit(view, session):
    session.prompt = "The cat sat"
    ask(view, "prune", limit=0.05)
    assert off(session)
    assert session.next_tokens()["kl"] <= 0.05
    assert view.status == ""
    ask(view, "prune", limit=-1)
    assert off(session) == set()


def test_a_mask_is_taken_from_the_next_cell(view, session):
    mask = np.ones((6, 8))
    mask[4, 4] = 0
    view.head_mask = mask
    assert off(session) == {(4, 4)}
    np.testing.assert_array_equal(view.head_mask, mask)
    assert view.facts["off"] == "L4H4"


def test_a_pruned_head_stays_away(demo):
    session = bl.Session(bl.prune_heads(demo, [(1, 4)]), "the cat sat")
    view = HeadMaskLab(session)
    assert 4 not in view.facts["kept"][1]
    ask(view, "preset", what="layer", layer=1, head=0)
    assert ask(view, "next", k=3)["kl"] > 0
