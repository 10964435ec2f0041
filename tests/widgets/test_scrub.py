import numpy as np
import pytest

import bloomlab as bl
from bloomlab.errors import BloomlabError, UnknownNameError
from bloomlab.widgets import GenScrubber
from tests.widgets.asking import PROMPT, Browser, as_floats, error_bound, value_of

GREEDY = {"max_new_tokens": 4, "do_sample": False, "temperature": 1.0, "top_k": 50, "top_p": 1.0}


@pytest.fixture
def scrubber(session):
    return Browser(GenScrubber(session, max_new_tokens=4))


def tokens(answer):
    return [step["token"] for step in answer["steps"]]


def test_a_generation_is_the_models_own(scrubber, session, demo):
    answer = scrubber.ask("generate", **GREEDY)
    prompt = demo.to_tokens(PROMPT)
    expected = demo.generate(PROMPT, max_new_tokens=4, do_sample=False)
    assert tokens(answer) == expected[0, prompt.shape[1] :].tolist()
    assert answer["n_prompt"] == len(answer["prompt"]) == prompt.shape[1]
    assert (answer["name"], answer["names"], answer["parent"]) == ("main", ["main"], "")
    assert answer["prompt"] == session.run().tokens


def test_candidates_of_a_step_are_its_likeliest_tokens(scrubber, session):
    answer = scrubber.ask("generate", **GREEDY)
    logits, ids = answer["buffers"]
    logits, ids = as_floats(logits).reshape(4, 512), np.frombuffer(ids.tobytes(), "<i4")
    ids = ids.reshape(4, 512)
    assert (np.diff(logits, axis=1) <= 0).all()
    for at, step in enumerate(answer["steps"]):
        assert ids[at, 0] == step["token"]
        assert step["labels"][0] == step["label"]
        assert 0 < step["probability"] <= 1
        assert step["ms"] > 0
    expected = session.run("clean").logits()
    np.testing.assert_allclose(logits[0], expected[ids[0].tolist()], atol=1e-4)
    probability = float(expected.softmax(-1).max())
    assert answer["steps"][0]["probability"] == pytest.approx(probability, abs=1e-5)


def test_rows_are_what_made_the_token(scrubber, session, demo):
    answer = scrubber.ask("generate", **GREEDY)
    ids = [*demo.to_tokens(PROMPT)[0].tolist(), *tokens(answer)]
    n = answer["n_prompt"]
    lengths = n + np.arange(4)
    wholes = [bl.Session(demo, demo.tokenizer.decode(ids[:k])).run() for k in lengths]
    assert [whole.ids[0].tolist() for whole in wholes] == [ids[:k] for k in lengths]
    patterns = [whole.patterns()[:, :, -1] for whole in wholes]
    for layer, head, expected in (
        (2, 7, [rows[2, 7] for rows in patterns]),
        (0, -1, [rows.mean((0, 1)) for rows in patterns]),
    ):
        rows = scrubber.ask("rows", name="main", layer=layer, head=head)
        assert rows["first"] == n
        found, wanted = value_of(rows["buffers"][0]), np.concatenate(expected)
        assert (np.abs(found - wanted) <= error_bound(wanted) + 1e-4).all()


def test_a_branch_takes_another_token_and_keeps_what_came_before(scrubber, session):
    main = tokens(scrubber.ask("generate", **GREEDY))
    other = next(i for i in range(5, 20) if i != main[2])
    branch = {"parent": "main", "step": 2, "token": other, "max_new_tokens": 5}
    answer = scrubber.ask("branch", **branch)
    assert tokens(answer)[:3] == [*main[:2], other]
    assert len(answer["steps"]) == 5
    assert (answer["name"], answer["parent"], answer["since"]) == ("branch 1", "main", 2)
    assert scrubber.view.value["token"].tolist() == tokens(answer)
    back = scrubber.ask("branch_of", name="main")
    assert tokens(back) == main
    assert back["names"] == ["main", "branch 1"]
    assert scrubber.view.value["token"].tolist() == main


def test_a_branch_goes_on_under_the_edits_of_now(scrubber, session):
    scrubber.ask("generate", **GREEDY)
    clean = session.generations["main"].steps[1]
    session.edits = session.edits.with_heads([(0, h) for h in range(8)], scale=0.0)
    answer = scrubber.ask("branch", parent="main", step=1, token=None, max_new_tokens=3)
    edited = session.generations[answer["name"]].steps[1]
    assert not np.allclose(clean.logits[:20], edited.logits[:20])


def test_sampling_obeys_its_options(scrubber):
    greedy = tokens(scrubber.ask("generate", **GREEDY))
    sampled = {**GREEDY, "do_sample": True, "top_k": 1}
    assert tokens(scrubber.ask("generate", **sampled)) == greedy


@pytest.mark.parametrize(
    ("op", "question", "said"),
    [
        ("rows", {"name": "main", "layer": 0, "head": 8}, "L0H8"),
        ("rows", {"name": "main", "layer": 6, "head": 0}, "L6H0"),
        ("rows", {"name": "twig", "layer": 0, "head": 0}, "twig"),
        ("branch_of", {"name": "twig"}, "twig"),
        ("branch", {"parent": "twig", "step": 0, "token": 1, "max_new_tokens": 2}, "twig"),
        ("branch", {"parent": "main", "step": 9, "token": 1, "max_new_tokens": 12}, "step 9"),
        ("branch", {"parent": "main", "step": 0, "token": 9999, "max_new_tokens": 2}, "9999"),
        ("generate", {**GREEDY, "max_new_tokens": 0}, "max_new_tokens"),
    ],
)
def test_what_is_not_there_is_refused_by_name(op, question, said, scrubber):
    scrubber.ask("generate", **GREEDY)
    answer = scrubber.ask(op, **question)
    assert said in answer["error"] == scrubber.view.status
    assert "unexpected" not in answer["error"]
    assert len(scrubber.ask("generate", **GREEDY)["steps"]) == 4


def test_value_is_a_row_a_step(scrubber):
    with pytest.raises(UnknownNameError, match="Generate first"):
        _ = scrubber.view.value
    answer = scrubber.ask("generate", **GREEDY)
    frame = scrubber.view.value
    assert list(frame) == ["token", "label", "probability", "entropy", "seconds"]
    assert frame["label"].tolist() == [step["label"] for step in answer["steps"]]


def test_a_new_prompt_forgets_the_branches(scrubber, session):
    scrubber.ask("generate", **GREEDY)
    session.prompt = "The cat"
    with pytest.raises(BloomlabError):
        _ = scrubber.view.value
    assert "branch" in scrubber.ask("rows", name="main", layer=0, head=0)["error"]
    assert scrubber.ask("generate", **GREEDY)["n_prompt"] == 2


def test_the_picture_holds_what_was_generated(scrubber):
    before = scrubber.view.still()
    scrubber.ask("generate", **GREEDY)
    assert scrubber.view.still() != before
