import html
import json
import re

import numpy as np
import pytest

from bloomlab.errors import InputError
from bloomlab.widgets import GenScrubber, HeadGrid
from bloomlab.widgets.page import asked
from tests.widgets.asking import (
    NAMES,
    READERS,
    SCRIPT,
    STATE,
    TEXTS,
    Browser,
    canonical,
    inflated,
    make,
    saved_states,
)

OUTSIDE = re.compile(r"""(?:src|href)\s*=|https?://(?!www\.w3\.org/2000/svg)|@import|url\(""")
PLACES = [
    {},
    {"layer": 4, "head": 6, "query": 3, "run": "clean"},
    {"query": 10_000, "layer": 5},
]


def first_asked(state):
    """What a page asks before anybody touches it, as its script does."""
    place, controls, n = state["place"], state["controls"], len(state["facts"]["tokens"])
    at = {name: place[name] for name in ("layer", "head", "run")}
    query = n - 1 if place["query"] < 0 else min(n - 1, place["query"])
    tiles = {"op": "tiles", "mode": controls.get("mode"), "run": place["run"]}
    generation = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p")
    found = {
        "alibi": lambda: [
            {"op": "slopes", "layer": at["layer"], "run": at["run"]},
            {"op": "scores", **at, "query": query},
            {"op": "next", "k": 3},
        ],
        "compare": lambda: [
            {"op": "compare", "layer": at["layer"], "head": at["head"], "values": False}
        ],
        "grid": lambda: [{**tiles, "size": size} for size in (48, 64)],
        "hidden": lambda: [
            {"op": "stream", "run": at["run"]},
            {"op": "parts", "position": query, "run": at["run"]},
        ],
        "lens": lambda: [{"op": "lens", "positions": list(range(n)), "run": at["run"]}],
        "mask": lambda: [{"op": "next", "k": controls["k"]}],
        "pruning": list,
        "scrub": lambda: [{"op": "open", **{c: controls[c] for c in generation}}],
        "strip": lambda: [{"op": "flow", "flow": controls["flow"], **at}],
        "zoom": lambda: [{"op": "head", "mode": controls["mode"], **at}],
    }
    return [canonical({n: _whole(v) for n, v in q.items()}) for q in found[state["kind"]]()]


def _whole(value):
    return int(value) if isinstance(value, float) and value == int(value) else value


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", NAMES)
def test_a_page_holds_the_answers_to_what_it_asks_first(name, place, session, tmp_path):
    session.selection.set(**place)
    view = make(name, session)
    for state in saved_states(view.to_html(tmp_path / "page.html")):
        questions = first_asked(state)
        assert set(questions) <= set(state["answers"])
        assert not any("error" in state["answers"][q][0] for q in questions)


@pytest.mark.parametrize("name", READERS)
def test_answers_in_a_page_are_those_of_the_view(name, session, tmp_path):
    view = make(name, session)
    (state, *_) = saved_states(view.to_html(tmp_path / "page.html"))
    browser = Browser(view)
    for question in first_asked(state):
        facts, arrays = state["answers"][question]
        answer = browser.ask(**json.loads(question))
        for one in (answer, facts):
            one.pop("forward_ms", None)
        for at, one in enumerate(answer.pop("buffers")):
            np.testing.assert_array_equal(inflated(arrays[at]), one)
        if name != "GenScrubber":  # times differ
            assert facts == {n: v for n, v in answer.items() if n not in ("id", "version")}


@pytest.mark.parametrize("controls", [{"sort": "importance"}, {"filter": "importance > 1"}])
def test_a_page_sorted_by_importance_holds_it(controls, session, tmp_path):
    session.prompt = "the cat"
    state, _ = saved_states(HeadGrid(session, **controls).to_html(tmp_path / "page.html"))
    assert canonical({"op": "importance"}) in state["answers"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", [TEXTS["html"], "".join(TEXTS.values()), ""])
def test_no_text_becomes_markup(name, text, session, tmp_path):
    session.prompt = text
    view = make(name, session)
    path = view.to_html(tmp_path / "page.html")
    page = path.read_text("utf-8")
    assert SCRIPT not in page
    assert "<script>alert" not in page
    assert page.count("<script") == page.count("</script>") == 2 * len(saved_states(path))
    assert f"<title>{html.escape(f'{name}: {text}'[:120])}</title>" in page
    for state in saved_states(path):
        assert state["facts"]["tokens"] == view.facts["tokens"]
        assert state["facts"]["prompt"] == text
        assert state["status"] == view.status


@pytest.mark.parametrize("name", READERS)
def test_a_page_of_no_text_says_so(name, session, tmp_path):
    session.prompt = ""
    (state, *_) = saved_states(make(name, session).to_html(tmp_path / "page.html"))
    assert "empty" in state["status"]
    said = [facts["error"] for facts, _ in state["answers"].values() if "error" in facts]
    assert all("empty" in one for one in said)
    assert said


def test_a_page_is_small_and_asks_the_network_for_nothing(session, tmp_path):
    session.prompt = "The silver parrot met a green turtle. " * 12
    for name in NAMES:
        path = make(name, session).to_html(tmp_path / "page.html")
        assert path.stat().st_size < 2_000_000
        page = STATE.sub("", path.read_text("utf-8"))
        assert not OUTSIDE.findall(page)
        assert "default-src 'none'" in page


def test_a_page_of_broken_weights_is_json(broken, tmp_path):
    for name in NAMES:
        saved_states(make(name, broken).to_html(tmp_path / "page.html"))


def test_a_page_of_a_closed_session_is_refused(session, tmp_path):
    view = HeadGrid(session)
    session.close()
    with pytest.raises(InputError, match="closed"):
        view.to_html(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_a_grid_has_a_head_beside_it_that_ends_with_the_page(session, tmp_path):
    view = HeadGrid(session)
    heard = len(session._trait_notifiers["prompt"]["change"])
    states = saved_states(view.to_html(str(tmp_path / "page.html")))
    assert [state["kind"] for state in states] == ["grid", "zoom"]
    assert len(session._trait_notifiers["prompt"]["change"]) == heard


def test_a_page_shows_the_branch_on_screen_and_generates_nothing(session, tmp_path):
    view = GenScrubber(session, max_new_tokens=4, do_sample=True)
    browser = Browser(view)
    browser.ask("generate", max_new_tokens=4, do_sample=True, temperature=2, top_k=0, top_p=1)
    browser.ask("branch", parent="main", step=1, token=7, max_new_tokens=3)
    before = dict(session.generations)
    (state,) = saved_states(view.to_html(tmp_path / "page.html"))
    assert session.generations == before
    (question,) = first_asked(state)
    facts, _ = state["answers"][question]
    steps = session.generations["branch 1"].steps
    assert [step["token"] for step in facts["steps"]] == [step.token for step in steps]
    places = [*((0, head) for head in range(8)), (0, -1)]  # of the chosen layer; the mean of all
    rows = [
        canonical({"name": "branch 1", "op": "rows", "layer": layer, "head": head})
        for layer, head in places
    ]
    assert set(state["answers"]) == {question, *rows}


def test_a_question_is_written_as_javascript_does():
    question = {"op": "head", "b": 1.0, "a": [0, 2], "c": 0.5, "text": "é🙂"}
    assert asked(question) == '{"a":[0,2],"b":1,"c":0.5,"op":"head","text":"é🙂"}'


@pytest.mark.parametrize("name", ["page", "page.txt", "", "no/page.html", "x.html"])
def test_where_no_page_can_be_written_is_said(name, session, tmp_path):
    (tmp_path / "x.html").mkdir()
    view = make("HeadZoom", session)
    target = tmp_path / name if name else None
    with pytest.raises(InputError, match=r"page|x\.html"):
        view.to_html(target)
    assert view.to_html(tmp_path / "page.HTM").is_file()
