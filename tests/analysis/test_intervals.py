"""Bootstrap intervals cover what they should."""

import pytest
import torch

from bloomlab.analysis.intervals import bootstrap_mean


def test_intervals_of_a_mean_cover_it_as_often_as_they_say():
    torch.manual_seed(0)
    samples = torch.randn(400, 60, dtype=torch.float64) + 3
    low, high = bootstrap_mean(samples, 0.9, draws=500)
    covered = ((low <= 3) & (high >= 3)).double().mean()
    assert 0.84 < covered < 0.95
    normal = 1.645 / 60**0.5
    assert (high - low).mean() / 2 == pytest.approx(normal, rel=0.1)


def test_intervals_repeat_and_shrink_to_a_point_without_spread():
    values = torch.tensor([[1.0, 2, 3], [4, 4, 4]])
    first, again = bootstrap_mean(values, seed=3), bootstrap_mean(values, seed=3)
    assert all(torch.equal(*two) for two in zip(first, again, strict=True))
    assert first[0][1] == first[1][1] == 4
    with pytest.raises(ValueError, match="expected a share"):
        bootstrap_mean(values, 95.0)
