"""What a view asks of a model."""

import numpy as np
import pytest
import torch

import bloomlab as bl
from bloomlab.errors import InputError, TokenizerError
from tests.tiny import make_hf

PROMPT = "the cat and the cat"
SHAPE = (6, 8)  # layers and heads of the demo


def test_patterns_are_those_of_the_hooks(demo):
    session = bl.Session(demo)
    _, cache = demo.run_with_cache(PROMPT)
    expected = torch.cat([cache["pattern", layer] for layer in range(SHAPE[0])])
    np.testing.assert_allclose(session.patterns(PROMPT), expected.numpy(), atol=1e-5)
    np.testing.assert_allclose(session.pattern(PROMPT, 2, 3), expected[2, 3].numpy(), atol=1e-5)


def test_next_tokens_are_the_likeliest_before_and_after(demo):
    session, mask = bl.Session(demo), np.ones(SHAPE, dtype=np.float32)
    mask[0, 0] = 0
    labels, before, after = session.next_tokens(PROMPT, mask, k=5)
    assert len(labels) == len(before) == len(after) == 5
    for masked, got in ((None, before), (torch.tensor(mask), after)):
        probabilities = demo(PROMPT, head_mask=masked).logits[0, -1].softmax(-1)
        assert probabilities.max().item() == pytest.approx(got.max(), abs=1e-5)
    _, first, second = session.next_tokens(PROMPT)
    np.testing.assert_array_equal(first, second)


def test_a_masked_head_upstream_changes_a_pattern(demo):
    session, mask = bl.Session(demo), np.ones(SHAPE, dtype=np.float32)
    mask[0, 0] = 0
    assert np.abs(session.pattern(PROMPT, 2, 7) - session.pattern(PROMPT, 2, 7, mask)).max() > 0.1


@pytest.mark.parametrize(
    ("ask", "text"),
    [
        (lambda s: s.tokens(["a", "b"]), "one text"),
        (lambda s: s.pattern(PROMPT, 9, 0), "layers 0 to 5"),
        (lambda s: s.pattern(PROMPT, 0, 9), "heads 0 to 7"),
        (lambda s: s.tokens(""), "empty"),
    ],
)
def test_impossible_questions_are_refused(demo, ask, text):
    with pytest.raises(InputError, match=text):
        ask(bl.Session(demo))


def test_a_session_and_a_view_need_what_they_look_through(demo):
    for wrong in ("demo", bl.BloomForCausalLM.from_hf(make_hf())):
        with pytest.raises(InputError, match=r"bl\.load"):
            bl.Session(wrong)
    with pytest.raises(InputError, match=r"bl\.Session\(model\)"):
        bl.widgets.AttentionView(demo, PROMPT)
    view = bl.widgets.AttentionView(bl.Session(demo), PROMPT)
    np.testing.assert_allclose(view.value, bl.Session(demo).pattern(PROMPT, 0, 0), atol=1e-5)


def test_a_model_without_tokenizer_says_so():
    with pytest.raises(TokenizerError, match="BloomTokenizer"):
        bl.BloomForCausalLM.from_hf(make_hf())("text")
