"""Text, masks, generation, lens, ALiBi, streams, comparison and pruning, in a real browser."""

import pytest

from tests.browser.jupyter import DARK, LIGHT
from tests.browser.views import START, Views

TOLD = '<b>bold</b> & "quotes" <script>alert(1)</script> 🙂👩‍👩‍👧 مرحبا بالعالم नमस्ते दुनिया 你好'
CURVE = """
import pandas as pd

class Curve:  # as experiments.prune_curve gives it
    metric = "cross_entropy"
    frame = pd.DataFrame([("English", name, kept, 9 - kept / 12 + shift) for name, shift in
        (("exact", 0), ("random", 1), ("random", 2)) for kept in (0, 24, 48)],
        columns=["dataset", "ranking", "kept", "value"])
    def keep(self, ranking, kept):
        import numpy as np
        return (np.arange(48) < kept).reshape(6, 8)

widgets.PruningBoard(session, Curve())
"""


@pytest.fixture
def show(lab_page):
    def show(*cells, **options):
        views = Views(lab_page([START, *cells], **options))
        views.settled()
        return views

    return show


def test_tokens_are_coloured_by_what_they_attend_to(show):
    views = show("widgets.TokenStrip(session)")
    tokens = views.root("strip").locator(".bl-token")
    sent = views.sent("strip")
    tokens.nth(20).hover()
    views.says("strip", "20 ␣green → ␣t")  # L2H7 finds what followed “green” the first time
    strongest = "els => els.map(e => getComputedStyle(e).backgroundColor)"
    assert len(set(tokens.evaluate_all(strongest))) > 4
    views.root("strip").get_by_label("colours show").select_option("to")
    tokens.nth(9).hover()
    views.says("strip", "9 ␣t ← ")
    assert views.sent("strip") == sent
    tokens.nth(9).click()
    tokens.nth(9).press("ArrowRight")
    views.says("strip", "10 urtle ←")
    assert views.lab.ask("session.selection.query") == "9"
    for flow in ("value", "mean", "rollout"):
        views.root("strip").get_by_label("by", exact=True).select_option(flow)
        views.settled()
    views.says("strip", "layer 2")


def test_any_text_is_text(show):
    views = show(
        f"session.prompt = {TOLD!r}\nwidgets.TokenStrip(session)",
        "widgets.HeadGrid(session)",
        "widgets.HeadZoom(session)",
    )
    assert views.page.locator(".bl script, .bl b").count() == 0
    text = "".join(views.root("strip").locator(".bl-token").all_text_contents())
    assert "<b>" in text
    assert "script" in text
    assert "مرحبا" in text.replace("\u2068", "").replace("\u2069", "").replace("␣", " ")
    views.lab.shot("scripts", of=".bl[data-kind=strip]")
    views.lab.shot("scripts zoom", of=".bl[data-kind=zoom]")
    views.lab.ask("setattr(session, 'prompt', '')")
    for kind in ("strip", "grid", "zoom"):
        views.says(kind, "empty")
    views.lab.ask("setattr(session, 'prompt', 'the cat')")
    views.page.wait_for_function("document.querySelectorAll('.bl-token').length === 2")
    views.settled()
    assert views.status("grid").get_attribute("class") == "bl-status"


def test_masks_change_the_next_token(show):
    views = show("widgets.HeadMaskLab(session)")
    mask, facts = views.root("mask"), views.root("mask").locator(".bl-facts")
    facts.filter(has_text="KL(all heads ‖ edited) 0 nats").wait_for()
    mask.get_by_role("gridcell", name="L1H0: on").click()
    mask.get_by_role("gridcell", name="L1H0: off").wait_for()
    facts.filter(has_text="from layer 1").wait_for()
    value = float(views.lab.ask("session.next_tokens()['kl']"))
    assert f"edited) {value:.3g} nats" in facts.text_content()
    assert "drawing" in facts.text_content()
    assert "click to picture" in facts.text_content()
    views.page.keyboard.press("5")
    mask.get_by_role("gridcell", name="L1H0: ×0.5").wait_for()
    views.page.keyboard.press("a")
    mask.get_by_role("gridcell", name="L1H0: mean").wait_for()
    assert views.lab.ask("session.edits.mean.nonzero()") == "(array([1]), array([0]))"
    for state in ("×0.5", "off", "on"):
        views.page.keyboard.press("u")
        mask.get_by_role("gridcell", name=f"L1H0: {state}").wait_for()
    mask.get_by_label("heads that are off").fill("L2H4-7")
    mask.get_by_label("heads that are off").press("Enter")
    mask.get_by_role("gridcell", name="L2H6: off").wait_for()
    mask.get_by_label("heads that are off").fill("L9H9")
    mask.get_by_label("heads that are off").press("Enter")
    views.says("mask", "L9H9")
    mask.get_by_role("button", name="prune greedily").click()
    views.page.wait_for_function("document.querySelectorAll('[data-state=off]').length > 4")
    views.settled()
    assert float(views.lab.ask("session.next_tokens()['kl']")) <= 0.1
    assert views.page.locator(".jp-Cell").count() == 2  # no key reached the notebook
    views.root("mask").get_by_label("preset").select_option("invert")
    views.settled()


def test_a_generation_is_scrubbed_and_branches(show):
    views = show("widgets.GenScrubber(session, max_new_tokens=12)")
    scrub = views.root("scrub")
    scrub.locator(".bl-new").nth(11).wait_for()
    main = views.lab.ask("[s.token for s in session.generations['main'].steps]")
    assert main == views.lab.ask(
        "model.generate(session.prompt, max_new_tokens=12)[0, 21:].tolist()"
    )
    views.slide("scrub", "step", 5)
    views.settled()
    assert "step 5" in scrub.locator(".bl-facts").text_content()
    sent = views.sent("scrub")
    bars = scrub.locator(".bl-bars").text_content()
    shown = float(scrub.locator("[aria-selected=true] .bl-value").text_content())
    probability = float(views.lab.ask("session.generations['main'].steps[5].probability"))
    assert shown == pytest.approx(probability, rel=6e-3)  # the model's own, of all tokens
    views.slide("scrub", "temperature", 0.3)
    scrub.get_by_label("sample").check()
    views.slide("scrub", "top-k", 3)
    assert scrub.locator(".bl-bar-row").count() == 3
    assert scrub.locator(".bl-bars").text_content() != bars
    assert views.sent("scrub") == sent
    scrub.get_by_label("sample").uncheck()
    scrub.locator(".bl-bar-row").nth(1).click()
    scrub.get_by_label("branch", exact=True).locator("option").nth(1).wait_for(state="attached")
    views.settled()
    assert views.lab.ask("list(session.generations)") == "['main', 'branch 1']"
    ours = "session.generations['branch 1']"
    assert views.lab.ask(f"[s.token for s in {ours}.steps][:5] == {main}[:5]") == "True"
    assert views.lab.ask(f"{ours}.steps[5].token == {main}[5]") == "False"
    scrub.get_by_label("branch", exact=True).select_option("main")
    scrub.press("ArrowRight")
    views.settled()
    views.lab.ask("setattr(session, 'edits', session.edits.with_heads([(1, 0)], scale=0))")
    scrub.get_by_role("button", name="branch with edits").click()
    scrub.get_by_label("branch", exact=True).locator("option").nth(2).wait_for(state="attached")


def test_lens_slopes_and_streams_answer(show):
    views = show(
        "widgets.LensTable(session)", "widgets.AlibiView(session)", "widgets.HiddenStates(session)"
    )
    lens, alibi, hidden = (views.root(kind) for kind in ("lens", "alibi", "hidden"))
    lens.locator("[data-at='5.3']").click()
    lens.locator("svg[aria-label='rank by layer']").wait_for()
    top = views.lab.ask("session.run().labels([session.run().logits(3).argmax()])[0]").strip("'")
    assert lens.locator("[data-at='5.3']").text_content() == top
    lens.get_by_role("grid").press("ArrowRight")
    assert "at r:" in lens.locator(".bl-twin").text_content()
    views.slide("alibi", "slope × ", 3)
    alibi.locator(".bl-status", has_text="(×8)").wait_for()
    views.settled()
    assert views.lab.ask("session.edits.slopes[5, 7]") == "np.float32(8.0)"
    facts = alibi.locator(".bl-facts").filter(has_not_text="unedited 0 nats")
    facts.wait_for()
    lens.get_by_label("mark what the edits change").check()
    views.settled()
    alibi.get_by_role("button", name="as trained").click()
    alibi.locator(".bl-facts", has_text="unedited 0 nats").wait_for()
    seen = views.ink("hidden")
    for sight in ("cosines", "paths"):
        hidden.get_by_label("show").select_option(sight)
        seen = views.changed("hidden", seen)
    hidden.get_by_label("show").select_option("parts")
    hidden.get_by_text("nothing left out").wait_for()
    hidden.locator(".bl-bar-row", has_text="H").first.click()
    views.settled()


def test_runs_are_compared_and_pruned_models_looked_at(show):
    views = show(
        "other = bl.Session(model, 'The golden parrot met a green')",
        "widgets.CompareRuns(session, other, layout='6')",
        CURVE,
    )
    compare = views.root("compare")
    assert "of 21 and" in compare.locator(".bl-tag").text_content()
    assert compare.locator("figure").count() == 6
    compare.get_by_label("layout").select_option("1")
    views.page.wait_for_function("document.querySelectorAll('.bl-compare figure').length === 1")
    views.root("pruning").get_by_role("button", name="exact: 24").press("Enter")
    views.says("pruning", "24 heads kept")
    assert views.lab.ask("int(session.edits.scale.sum())") == "24"


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_every_view_in_both_themes(show, theme):
    views = show(
        "session.edits = session.edits.with_heads([(1, 0)], scale=0)\nsession.selection.query = 20",
        "widgets.TokenStrip(session)",
        "widgets.HeadMaskLab(session)",
        "widgets.GenScrubber(session)",
        "widgets.LensTable(session)",
        "widgets.AlibiView(session)",
        "widgets.HiddenStates(session)",
        "widgets.CompareRuns(session)",
        CURVE,
        theme=theme,
    )
    views.page.wait_for_timeout(500)
    views.settled()
    name = theme.split()[1].lower()
    for kind in ("strip", "mask", "scrub", "lens", "alibi", "hidden", "compare", "pruning"):
        assert views.status(kind).get_attribute("class") == "bl-status"
        views.lab.shot(f"{kind} {name}", of=f".bl[data-kind={kind}]")
