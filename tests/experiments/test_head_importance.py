"""Scores of heads, against loops over single examples and transformers' own BLOOM."""

import pytest
import torch

from bloomlab.errors import InputError, NumericalError, UnknownNameError
from bloomlab.experiments import ablate_heads
from bloomlab.experiments.head_importance import KINDS, head_importance
from bloomlab.experiments.head_search import prune_order
from tests.experiments.naive import cross_entropy, z_edited
from tests.planted import linear_model
from tests.tiny import pair, tokens

IDS = tokens(4, 7)
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1] * 7, [1] * 7])


def options_of(kind):
    return {"node": "k"} if kind == "atp_qk_fix" else {"steps": 3} if "ig_" in kind else {}


@pytest.fixture(scope="module")
def models():
    return pair(dtype=torch.float64)


@pytest.fixture(scope="module")
def slopes(models):
    """Gradients through transformers' model, one example at a time: [example layer head]."""
    theirs, _ = models
    found, by_token = [], []
    for row, mask in zip(IDS, MASK, strict=True):
        row = row[mask.bool()][None]
        gates = [
            torch.ones(row.shape[1], 6, dtype=torch.float64, requires_grad=True) for _ in range(2)
        ]
        edits = {
            i: lambda z, i=i, gates=gates: z.mul_(gates[i][None, :, :, None]) for i in range(2)
        }
        with z_edited(theirs, edits):
            loss = cross_entropy(theirs(row).logits, row).sum()
        each = torch.autograd.grad(loss, gates)
        found.append(torch.stack([g.sum(0) for g in each]))
        by_token.append(torch.stack([g.abs().sum(0) for g in each]))
    return torch.stack(found), torch.stack(by_token)


EXPECTED = {
    "example_abs": lambda g, t: g.abs().mean(0),
    "token_abs": lambda g, t: t.mean(0),
    "batch_abs": lambda g, t: g.mean(0).abs(),
    "signed": lambda g, t: -g.mean(0),
    "fisher": lambda g, t: (g**2).mean(0),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_gate_gradients_equal_a_loop_over_single_examples_of_transformers(kind, models, slopes):
    got = head_importance(models[1], IDS, kind, attention_mask=MASK)
    expected = EXPECTED[kind](*slopes)
    # transformers' softmax is in float32
    assert (got.matrix - expected).abs().max() < 1e-5 * expected.abs().max()
    assert got.approximate
    assert list(got.frame.columns) == ["layer", "head", "score"]
    assert got.frame.score.tolist() == got.matrix.flatten().tolist()


def test_gradients_equal_central_differences(models):
    _, ours = models

    def loss(gates):
        with torch.no_grad():
            return cross_entropy(
                ours(IDS, attention_mask=MASK, head_mask=gates).logits, IDS, MASK
            ).mean()

    first = head_importance(ours, IDS, "signed", attention_mask=MASK).matrix
    second = head_importance(ours, IDS, "taylor2", attention_mask=MASK).matrix
    for head in ((0, 1), (0, 5), (1, 0), (1, 4)):
        one = torch.zeros(2, 6, dtype=torch.float64)
        one[head] = 1
        up, down = (loss(1 + sign * 1e-5 * one) for sign in (1, -1))
        assert abs(first[head] + (up - down) / 2e-5) < 1e-8 * first.abs().max()
        up, middle, down = (loss(1 + step * 1e-3 * one) for step in (1, 0, -1))
        bend = (up - 2 * middle + down) / 1e-6
        assert abs(second[head] - first[head] - bend / 2) < 1e-5 * second.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_neither_padding_nor_rows_change_a_score(kind, models):
    _, ours = models
    options = options_of(kind)
    whole = head_importance(ours, IDS, kind, attention_mask=MASK, **options)
    parts = [
        head_importance(ours, row[mask.bool()][None], kind, **options).examples
        for row, mask in zip(IDS, MASK, strict=True)
    ]
    scale = whole.examples.abs().max()
    assert (whole.examples - torch.cat(parts)).abs().max() < 1e-10 * scale
    few = head_importance(ours, IDS, kind, attention_mask=MASK, rows=3, **options)
    assert (whole.matrix - few.matrix).abs().max() < 1e-10 * scale
    batches = [{"tokens": IDS[:1], "attention_mask": MASK[:1]}]
    batches += [{"input_ids": IDS[1:], "attention_mask": MASK[1:]}]
    several = head_importance(ours, batches, kind, **options)
    same = (whole.matrix - several.matrix).abs().max() < 1e-10 * scale
    assert bool(same) == (kind != "batch_abs")


def test_the_model_is_left_as_it_was():
    _, ours = pair()
    asking = [p.requires_grad for p in ours.parameters()]
    frozen = pair()[1].requires_grad_(False)
    for kind in KINDS:
        got = head_importance(ours, IDS, kind, **options_of(kind)).matrix
        other = head_importance(frozen, IDS, kind, **options_of(kind)).matrix
        assert torch.allclose(got, other, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in ours.parameters())
    assert [p.requires_grad for p in ours.parameters()] == asking
    assert not any(point.fwd_hooks for point in ours.hook_dict.values())


def test_a_search_scores_by_importance(models):
    order = prune_order(models[1], IDS, "example_abs", search="iterative", per_step=5)
    first = head_importance(models[1], IDS).frame.sort_values("score").head(5)
    expected = list(zip(first["layer"], first["head"], strict=True))
    assert list(order.heads[:5]) == expected
    assert order.metrics[-1] == order.metrics[-1]


def test_a_layer_norm_makes_layers_comparable_and_skips_masked_heads(models):
    mask = torch.ones(2, 6)
    mask[0, 2] = 0
    plain = head_importance(models[1], IDS, head_mask=mask).matrix
    by_layer = head_importance(models[1], IDS, norm="layer", head_mask=mask).matrix
    assert plain[0, 2] == by_layer[0, 2] == 0
    assert torch.allclose(by_layer, plain / plain.norm(dim=1, keepdim=True))
    stretched = head_importance(models[1], IDS, norm="global").matrix
    assert stretched.min() == 0
    assert stretched.max() == 1


def test_first_order_kinds_are_exact_in_a_linear_regime():
    model = linear_model()
    ids = torch.randint(11, (3, 6), generator=torch.Generator().manual_seed(0))
    answers = torch.tensor([[1, 2], [3, 4], [5, 6]])
    task = {"metric": "logit_difference", "positions": -1, "answers": answers}
    exact = ablate_heads(model, ids, **task)
    for kind in ("signed", "taylor2", "atp", "ig_single", "exact"):
        got = head_importance(model, ids, kind, **options_of(kind), **task)
        assert (got.matrix + exact.matrix).abs().max() < 1e-10 * exact.matrix.abs().max()
        assert got.against(exact)[:2] == pytest.approx((1, 1))


def test_fisher_interactions_are_the_sum_of_outer_products(models, slopes):
    got = head_importance(models[1], IDS, "fisher", attention_mask=MASK)
    expected = sum(torch.outer(g, g) for g in slopes[0].flatten(1)) / 4
    matrix = got.interactions.reshape(12, 12)
    assert (matrix - expected).abs().max() < 1e-5 * expected.abs().max()
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12 * matrix.abs().max()
    assert torch.allclose(matrix.diagonal().view(2, 6), got.matrix)


def test_bad_input(models):
    _, ours = models
    with pytest.raises(UnknownNameError, match="example_abs"):
        head_importance(ours, IDS, "example_ab")
    with pytest.raises(UnknownNameError, match="layer"):
        head_importance(ours, IDS, norm="layers")
    for empty in ([], IDS[:0]):
        with pytest.raises(InputError, match="empty"):
            head_importance(ours, empty)
    with pytest.raises(InputError, match="kind='exact'"):
        head_importance(ours, IDS, metric="accuracy")
    with pytest.raises(InputError, match="zero gradient"):
        head_importance(ours, IDS, metric="kl")

    def broken(logits, ids):
        return logits.sum((1, 2)) * torch.where(ids[:, 0] == IDS[3, 0], torch.nan, 1.0)

    with pytest.raises(NumericalError, match="example 3"):
        head_importance(ours, [IDS[:2], IDS[2:]], metric=broken)
