"""A frozen LayerNorm as a linear map, against torch's LayerNorm."""

import torch
from torch.nn import functional as F

from bloomlab.analysis.attribution import head_contributions, norm_scale, through_norm


def test_the_frozen_norm_is_the_norm():
    source = torch.Generator().manual_seed(0)
    x, columns = (
        torch.randn(5, 12, generator=source, dtype=torch.float64) * 2 + 1 for _ in range(2)
    )
    gain, bias = torch.randn(2, 12, generator=source, dtype=torch.float64)
    expected = (F.layer_norm(x, (12,), gain, bias, eps=0.1) * columns).sum(-1)
    got = (x * through_norm(columns, gain)).sum(-1) / norm_scale(x, 0.1) + columns @ bias
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_heads_are_read_as_their_results_would_be():
    source = torch.Generator().manual_seed(0)
    z, W_O = torch.randn(5, 3, 4, generator=source), torch.randn(3, 4, 12, generator=source)
    directions = torch.randn(5, 12, generator=source)
    results = torch.stack([z[:, head] @ W_O[head] for head in range(3)], 1)
    expected = (results * directions[:, None]).sum(-1)
    torch.testing.assert_close(head_contributions(z, W_O, directions), expected)
