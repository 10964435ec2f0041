"""What stands in a head's place: each kind by its definition, in one loop of full forwards."""

import pytest
import torch

from bloomlab.experiments import ablate_heads
from tests.experiments.naive import (
    MASKS,
    SINGLES,
    N,
    double_pair,
    loop,
    mask_of,
    value_of,
)
from tests.tiny import tokens


@pytest.mark.parametrize("padding", ["none", "ragged"])
@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_sets_of_heads_across_layers(kind, padding):
    _, ours = double_pair(n_layer=3)
    ids, mask = tokens(3, N), mask_of(padding)
    sets = [((0, 1), (2, 3)), ((0, 0), (0, 5)), ((1, 2),), ((0, 4), (1, 1), (1, 5), (2, 0))]
    got = ablate_heads(ours, ids, kind=kind, heads=sets, attention_mask=mask)
    assert got.frame.heads[0] == "L0H1 L2H3"
    value = value_of(ours, ids, mask, kind)
    assert (got.effects - loop(ours, ids, mask, sets, value)).abs().max() < 1e-10


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize(
    ("kind", "options"), [("mean", {}), ("mean", {"per_position": True}), ("resample", {})]
)
def test_kinds_of_ablation_equal_their_definition(kind, options, padding):
    _, ours = double_pair(n_layer=3)
    ids, mask = tokens(3, N), mask_of(padding)
    got = ablate_heads(ours, ids, kind=kind, attention_mask=mask, **options)
    value = value_of(ours, ids, mask, kind, **options)
    assert (got.effects - loop(ours, ids, mask, SINGLES, value)).abs().max() < 1e-10


def test_means_and_donors_come_from_a_reference():
    _, ours = double_pair()
    ids, other = tokens(3, N), tokens(5, N, seed=8)
    mean = z_mean = ours.run_with_cache(other)[1]
    got = ablate_heads(ours, ids, kind="mean", reference=other)
    expected = loop(
        ours,
        ids,
        None,
        got.sets,
        lambda layer, head: (
            z_mean["z", layer][:, :, head].mean((0, 1))[None, None].expand(1, N, -1)
        ),
    )
    assert (got.effects - expected).abs().max() < 1e-10
    got = ablate_heads(ours, ids, kind="resample", reference=other, seed=4)
    chosen = torch.randint(0, 5, (3,), generator=torch.Generator().manual_seed(4))
    expected = loop(
        ours, ids, None, got.sets, lambda layer, head: mean["z", layer][chosen][:, :, head]
    )
    assert (got.effects - expected).abs().max() < 1e-10


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize("positions", [None, -1, [2, 6]])
def test_late_columns_share_the_prefix(kind, padding, positions):
    _, ours = double_pair(n_layer=3)
    ids, mask = tokens(3, N), mask_of(padding)
    sets = [*SINGLES, ((0, 1), (2, 3)), ((0, 2), (1, 2))]
    columns = [5, 7, 8]
    at = torch.arange(N) if positions is None else torch.tensor(positions).reshape(-1)
    # queries of leading padding see all keys of their own forward, so prefixes differ there
    attended = (torch.ones_like(ids) if mask is None else mask)[:, at]

    def metric(logits, _):
        return ((logits[..., 5] - logits[..., 8]) * attended).sum(-1)

    got = ablate_heads(
        ours, ids, metric, kind, sets, positions, attention_mask=mask, columns=columns, rows=3
    )
    value = value_of(ours, ids, mask, kind)
    with torch.no_grad():
        clean = metric(ours(ids, attention_mask=mask).logits[:, at], ids)
        for one, effect in zip(sets, got.effects, strict=True):

            def hook(layer, one=one):
                def edit(z, hook):
                    for at_layer, head in one:
                        if at_layer == layer:
                            new = 0.0 if value is None else value(layer, head)[:, columns]
                            z[:, columns, head] = new

                return edit

            hooks = [(f"blocks.{layer}.attn.hook_z", hook(layer)) for layer in range(3)]
            logits = ours.run_with_hooks(
                ids, attention_mask=mask, fwd_hooks=hooks, return_type="logits"
            )
            assert (effect - (metric(logits[:, at], ids) - clean)).abs().max() < 1e-10
