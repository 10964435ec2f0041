"""What must change no effect and no score, and how effects of examples add up."""

import pytest
import torch

from bloomlab.analysis.intervals import bootstrap_mean
from bloomlab.experiments import ablate_heads, head_importance, prune_curve
from tests.planted import SOFT, induction_circuit
from tests.tiny import make_hf, pair, tokens

KINDS = ("example_abs", "token_abs", "signed", "fisher", "taylor2", "ig_joint", "atp", "exact")
IDS = tokens(5, 8)


@pytest.fixture(scope="module")
def model():
    return pair(dtype=torch.float64)[1]


def scores(model, kind, ids=IDS):
    return head_importance(model, ids, kind).matrix


def changed(edit):
    """A model whose weights `edit` has changed, layer by layer."""
    hf = make_hf(dtype=torch.float64)
    with torch.no_grad():
        for block in hf.transformer.h:
            attention = block.self_attention
            n_head, width = hf.config.n_head, hf.config.hidden_size
            d_head = width // n_head
            edit(
                attention.query_key_value.weight.view(n_head, 3, d_head, width),
                attention.query_key_value.bias.view(n_head, 3, d_head),
                attention.dense.weight.view(width, n_head, d_head),
                attention.dense.bias,
            )
    return type(pair()[1]).from_hf(hf)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_in_another_order_score_in_that_order(model, kind):
    order = [3, 0, 5, 1, 4, 2]

    def permute(qkv, bias, out, _):
        qkv.copy_(qkv[order].clone())
        bias.copy_(bias[order].clone())
        out.copy_(out[:, order].clone())

    other = changed(permute)
    for block, own in zip(other.blocks, model.blocks, strict=True):
        block.attn.slopes.copy_(own.attn.slopes[order])
    torch.testing.assert_close(scores(other, kind), scores(model, kind)[:, order])


@pytest.mark.parametrize("kind", KINDS)
def test_larger_values_read_with_smaller_weights_change_nothing(model, kind):
    def scale(qkv, bias, out, _):
        qkv[:, 2] *= 4
        bias[:, 2] *= 4
        out /= 4

    torch.testing.assert_close(scores(changed(scale), kind), scores(model, kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_bias_on_keys_changes_nothing(model, kind):
    def shift(qkv, bias, out, _):
        bias[:, 1] += 0.7

    torch.testing.assert_close(scores(changed(shift), kind), scores(model, kind))


def test_a_bias_on_values_belongs_to_the_output_and_changes_what_zero_means(model):
    """Rows of a pattern sum to 1: a value's bias can move to the output bias."""

    def fold(qkv, bias, out, written):
        written += torch.einsum("hd,mhd->m", bias[:, 2], out)
        bias[:, 2] = 0

    other = changed(fold)
    torch.testing.assert_close(other(IDS).logits, model(IDS).logits)
    assert not torch.allclose(scores(other, "exact"), scores(model, "exact"), atol=1e-3)
    means = [ablate_heads(m, IDS, kind="mean", progress=False).matrix for m in (model, other)]
    torch.testing.assert_close(*means)


@pytest.mark.parametrize("kind", KINDS)
def test_examples_in_another_order_and_other_batches_change_nothing(model, kind):
    whole = scores(model, kind)
    torch.testing.assert_close(scores(model, kind, IDS[[4, 2, 0, 1, 3]]), whole)
    first, second = scores(model, kind, IDS[:2]), scores(model, kind, IDS[2:])
    torch.testing.assert_close((2 * first + 3 * second) / 5, whole)
    torch.testing.assert_close(scores(model, kind, [IDS[:2], IDS[2:]]), whole)


def test_bertology_depends_on_its_batches(model):
    whole = scores(model, "batch_abs")
    assert not torch.allclose(scores(model, "batch_abs", [IDS[:2], IDS[2:]]), whole)


def test_a_stream_shifted_in_its_mean_changes_nothing():
    hf, model = pair(dtype=torch.float64)
    with torch.no_grad():  # every LayerNorm takes the mean off, so what is written may carry one
        for block in hf.transformer.h:
            block.self_attention.dense.bias += 0.9
            block.mlp.dense_4h_to_h.bias -= 0.4
    other = type(model).from_hf(hf)
    torch.testing.assert_close(scores(other, "exact"), scores(model, "exact"))


def test_intervals_of_heads_that_do_nothing_hold_zero():
    circuit = induction_circuit(SOFT)
    found = ablate_heads(circuit.model, circuit.ids(), positions=circuit.positions)
    frame = found.intervals(draws=200).set_index(["layer", "head"])
    for head in circuit.dead:
        assert frame.low[head] == frame.high[head] == 0
    for head in circuit.alive:
        assert frame.low[head] > 0
    noise = torch.randn(200, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = bootstrap_mean(noise, 0.95, draws=500)  # effects of nothing, measured with noise
    assert ((low <= 0) & (high >= 0)).double().mean() >= 0.9


def test_a_ranking_by_lot_stays_in_the_random_band(model):
    lot = torch.rand(2, 6, generator=torch.Generator().manual_seed(123))
    found = prune_curve(model, IDS, {"lot": lot}, kept=[2, 4, 6, 8, 10], n_random=60)
    band = found.band(0.98).set_index("kept")
    values = found.frame[found.frame.ranking == "lot"].set_index("kept").value
    inside = (values >= band.low) & (values <= band.high)
    assert inside.sum() >= 4
