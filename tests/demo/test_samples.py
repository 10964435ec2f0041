"""Loops are found where they are."""

import pytest
import torch

from bloomlab.demo.samples import PROMPTS, greedy_samples, loop_period


@pytest.mark.parametrize(
    ("ids", "period"),
    [
        ([1, 2, 3, 4, 5] + [7] * 8, 1),
        ([1, 2, 3, 4, 5] + [7] * 7, None),
        ([9, 9, *([1, 2, 3] * 3)], 3),
        ([9, 9, 1, 2, 3, 1, 2, 3], None),
        ([5, *([1, 2, 3, 4, 5, 6, 7] * 3)], 7),
        ([5, *([1, 2, 3, 4, 5, 6, 7, 8] * 3)], None),
        ([1, 2] * 4 + [3], None),
        (list(range(40)), None),
    ],
)
def test_the_period_of_the_loop_at_the_end(ids, period):
    assert loop_period(ids) == period


def test_twenty_prompts_are_continued_by_the_likeliest_tokens(demo):
    assert sum(map(len, PROMPTS.values())) == 20
    samples = greedy_samples(demo, n_token=3)
    assert [one.prompt for one in samples] == [p for some in PROMPTS.values() for p in some]
    theirs = demo.to_hf()
    for one in samples[::7]:
        ids = demo.to_tokens(one.prompt)
        for _ in range(3):
            best = theirs(ids).logits[:, -1:].argmax(-1)
            ids = torch.cat([ids, best], 1)
        assert demo.tokenizer.decode(ids[0, -3:]) == one.text
