"""Scores of continuations: what one full forward of each says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bloomlab.errors import BloomlabError, InputError
from tests.tiny import distance_in_eps, pair, tokens

_, OURS = pair()


def full(model, prompt, continuation, **arguments):
    """Log-probabilities by a forward of prompt and continuation together."""
    text = torch.cat([prompt, continuation])[None]
    with torch.no_grad():
        logits = model(text, return_type="logits", **arguments)[0]
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = wide.log_softmax(-1)[len(prompt) - 1 : -1]
    return scores.gather(-1, continuation[:, None])[:, 0]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    n_prompt=st.integers(1, 7),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=7),
    batch_size=st.integers(1, 8),
    kind=st.sampled_from(["tensors", "lists"]),
)
def test_scores_equal_full_forwards(n_prompt, lengths, batch_size, kind):
    prompt = tokens(n_prompt)
    rows = [tokens(n, seed=i + 2) for i, n in enumerate(lengths)]
    asked = [row.tolist() for row in rows] if kind == "lists" else rows
    got = OURS.score_continuations(prompt, asked, batch_size=batch_size)
    assert got.log_probs.shape == got.mask.shape == (len(rows), max(lengths))
    assert got.mask.sum(-1).tolist() == lengths
    for i, row in enumerate(rows):
        expected = full(OURS, prompt, row)
        assert torch.equal(got.tokens[i, got.mask[i]], row)
        assert distance_in_eps(got.log_probs[i, got.mask[i]], expected) < 300
        assert torch.isclose(got.sums[i], expected.sum(), rtol=1e-4)
        assert torch.isclose(got.means[i], expected.mean(), rtol=1e-4)
        assert not got.log_probs[i, ~got.mask[i]].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_scores_in_other_formats_and_with_a_head_mask(dtype):
    _, ours = pair(dtype=dtype)
    prompt, rows, heads = tokens(5), tokens(4, 6, seed=2), torch.rand(2, 6)
    got = ours.score_continuations(prompt[None], rows, head_mask=heads)
    expected = torch.stack([full(ours, prompt, row, head_mask=heads) for row in rows])
    assert got.log_probs.dtype == torch.promote_types(dtype, torch.float32)
    assert distance_in_eps(got.log_probs, expected, dtype) < (
        30 if dtype == torch.bfloat16 else 300
    )


def test_the_prompt_is_read_once():
    seen = []
    hook = ("hook_embed", lambda value, hook: seen.append(tuple(value.shape[:2])))
    with OURS.hooks(fwd_hooks=[hook]):
        OURS.score_continuations(tokens(50), tokens(5, 3), batch_size=2)
    assert seen == [(1, 50), (2, 2), (2, 2), (1, 2)]


def test_texts_are_scored_and_the_likelier_one_wins(demo):
    prompt, texts = "The government of", [" the", " xylophone quartz"]
    got = demo.score_continuations(prompt, texts)
    start = demo.to_tokens(prompt)[0]
    for i, text in enumerate(texts):
        expected = full(demo, start, demo.to_tokens(text)[0])
        assert torch.isclose(got.sums[i], expected.sum(), rtol=1e-4)
    assert got.sums[0] > got.sums[1]


def test_a_forced_stream_sees_the_same_probabilities():
    prompt, row = tokens(6), tokens(4, seed=5)
    steps = OURS.stream(prompt[None], forced=row)
    streamed = [float(step.logits.log_softmax(-1)[0, step.token]) for step in steps]
    got = OURS.score_continuations(prompt, [row])
    assert torch.allclose(got.log_probs[0], torch.tensor(streamed), rtol=1e-4)


@pytest.mark.parametrize(
    ("prompt", "continuations", "options", "said"),
    [
        (tokens(2, 5), [[4]], {}, "2 prompts"),
        (torch.zeros(0, dtype=torch.long), [[4]], {}, "at least one token"),
        (tokens(5), [], {}, "several texts"),
        (tokens(5), "text", {}, "several texts"),
        (tokens(5), [[4], []], {}, "continuation 1"),
        (tokens(5), [[97]], {}, "0 to 96"),
        (tokens(5), [[0.5]], {}, "integer"),
        (tokens(5), [[4]], {"batch_size": 0}, "batch_size"),
        (tokens(5), [" a"], {}, "no tokenizer"),
    ],
)
def test_bad_questions_are_refused(prompt, continuations, options, said):
    with pytest.raises(BloomlabError, match=said) as error:
        OURS.score_continuations(prompt, continuations, **options)
    assert isinstance(error.value, InputError) or "tokenizer" in said
