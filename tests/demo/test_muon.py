"""Muon against singular value decompositions and torch's own."""

import copy

import pytest
import torch
from einops import rearrange
from torch import nn

from bloomlab.demo.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 32, 8), (8, 32)])
def test_singular_values_move_close_to_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    x = torch.randn(*shape, dtype=torch.float64)
    got = orthogonalised(x, torch.float64)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    inside = u.mT @ got @ v.mT
    assert (inside - torch.diag_embed(inside.diagonal(dim1=-2, dim2=-1))).abs().max() < 1e-9
    values = inside.diagonal(dim1=-2, dim2=-1)
    assert 0.6 < values.min() < values.max() < 1.3


def stepped(optimizer_of, start, grads):
    weight = nn.Parameter(start.clone())
    optimizer = optimizer_of([weight])
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
    return weight.detach()


def test_a_matrix_moves_as_under_torchs_muon():
    torch.manual_seed(0)
    start, grads = torch.randn(24, 16), [torch.randn(24, 16) for _ in range(3)]
    ours = stepped(
        lambda w: Muon([{"params": w}], lr=0.02, weight_decay=0.1, precision=torch.bfloat16),
        start,
        grads,
    )
    theirs = stepped(
        lambda w: torch.optim.Muon(w, lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True),
        start,
        grads,
    )
    # bfloat16 products in another order
    assert (ours - theirs).abs().max() < 0.06 * (theirs - start).abs().max()


def test_fused_queries_keys_and_values_move_as_three_matrices():
    torch.manual_seed(0)
    start, grad = torch.randn(3 * 12, 12), torch.randn(3 * 12, 12)
    fused = stepped(lambda w: Muon([{"params": w, "n_head": 2}], lr=0.1), start, [grad])

    def parts(x):
        return rearrange(x, "(h three d) m -> three (h d) m", h=2, three=3)

    for i in range(3):
        alone = stepped(lambda w: Muon([{"params": w}], lr=0.1), parts(start)[i], [parts(grad)[i]])
        torch.testing.assert_close(parts(fused)[i], alone)
    whole = stepped(lambda w: Muon([{"params": w}], lr=0.1), start, [grad])
    assert (whole - fused).abs().max() > 1e-3


def test_parameters_without_a_gradient_stay_and_state_goes_on():
    torch.manual_seed(0)
    still, moving = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
    before = still.detach().clone()
    optimizer = Muon([{"params": [still, moving]}], lr=0.1)
    moving.grad = torch.randn(4, 4)
    optimizer.step()
    assert torch.equal(still, before)
    twin = nn.Parameter(moving.detach().clone())
    other = Muon([{"params": [nn.Parameter(before.clone()), twin]}], lr=0.3)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    moving.grad = torch.randn(4, 4)
    twin.grad = moving.grad.clone()
    optimizer.step()
    other.step()
    assert torch.equal(moving, twin)
