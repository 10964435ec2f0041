"""Acceptance is what speculative decoding keeps."""

import pytest
import torch

from bloomlab.errors import InputError
from bloomlab.experiments.speculative import Acceptance, draft_acceptance
from bloomlab.model.prune import prune_heads
from tests.tiny import pair, tokens


@pytest.fixture(scope="module")
def target():
    return pair()[1]


@pytest.fixture(scope="module")
def draft(target):
    return prune_heads(target, [(0, 0), (0, 2), (1, 1), (1, 5)])


def test_a_drawn_token_is_kept_as_often_as_said(target, draft):
    theirs, smaller = pair()[0], draft.to_hf()
    ids = tokens(1, 6)
    p = theirs(ids).logits[0].softmax(-1).double()
    q = smaller(ids).logits[0].softmax(-1).double()
    generator = torch.Generator().manual_seed(0)
    n = 20_000  # the rejection rule itself: keep x ~ q if u < p(x) / q(x)
    drawn = torch.multinomial(q, n, replacement=True, generator=generator)
    u = torch.rand(drawn.shape, generator=generator, dtype=torch.float64)
    kept = (u < p.gather(-1, drawn) / q.gather(-1, drawn)).double().mean()
    found = draft_acceptance(target, draft, ids)
    assert found.sampled[0].item() == pytest.approx(kept.item(), abs=0.01)
    assert found.greedy[0] == (p.argmax(-1) == q.argmax(-1)).double().mean()


def test_greedy_drafts_are_kept_as_transformers_would(target, draft):
    theirs, smaller = pair()[0], draft.to_hf()
    written = theirs.generate(tokens(4, 5), max_new_tokens=12, min_new_tokens=12, do_sample=False)
    agreed = smaller(written).logits.argmax(-1) == theirs(written).logits.argmax(-1)
    found = draft_acceptance(target, draft, written)
    torch.testing.assert_close(found.greedy, agreed.float().mean(-1))
    assert 0 < found.greedy.mean() < 1


def test_a_mask_drafts_as_the_pruned_model_does_and_padding_changes_nothing(target, draft):
    mask = torch.ones(2, 6)
    for head in [(0, 0), (0, 2), (1, 1), (1, 5)]:
        mask[head] = 0
    ids = tokens(3, 8)
    plain = draft_acceptance(target, draft, ids)
    torch.testing.assert_close(draft_acceptance(target, mask, ids).sampled, plain.sampled)
    padded = torch.cat([torch.full((3, 2), 3), ids], 1)
    attended = torch.ones_like(padded)
    attended[:, :2] = 0
    again = draft_acceptance(target, draft, {"input_ids": padded, "attention_mask": attended})
    torch.testing.assert_close(again.sampled, plain.sampled)
    assert draft_acceptance(target, target, ids).sampled.tolist() == pytest.approx([1, 1, 1])


def test_tokens_for_each_call_of_the_target():
    rate, gamma = 0.6, 3
    found = Acceptance(sampled=torch.tensor([rate] * 2), greedy=torch.tensor([0.0, 1.0]))
    # the first rejection may come after 0, 1, 2 kept tokens; one more is always said
    by_hand = sum((k + 1) * rate**k * (1 - rate) for k in range(gamma)) + (gamma + 1) * rate**gamma
    assert found.tokens_per_call(gamma) == pytest.approx(by_hand)
    assert found.tokens_per_call(2, greedy=True) == pytest.approx(1 + 0.5 + 0.25)
    assert list(found.frame.columns) == ["sampled", "greedy"]


def test_what_cannot_be_compared_is_refused(target):
    with pytest.raises(InputError, match="vocabulary of 50 tokens, the target of 97"):
        draft_acceptance(target, pair(vocab_size=50)[1], tokens(1, 4))
    with pytest.raises(InputError, match="temperature is 0"):
        draft_acceptance(target, target, tokens(1, 4), temperature=0.0)
    with pytest.raises(InputError, match="gamma is 0"):
        draft_acceptance(target, target, tokens(1, 4)).tokens_per_call(0)
