"""Control labels, online code, intervals: laws and closed forms."""

import math

import pytest
import torch
from sklearn.metrics import f1_score

from bloomlab.analysis.linear_probe import ProbeFitter
from bloomlab.analysis.probes import control_labels, online_code, resampled_interval
from bloomlab.errors import InputError


def ids(n, top, seed=0):
    return torch.randint(top, (n,), generator=torch.Generator().manual_seed(seed))


def coder(strength=0.1):
    def code(features, labels, after):
        fitter = ProbeFitter(features, features[:0], strengths=[strength])
        one = fitter.fit(labels, labels[:0], 4)
        return one.logits(after).log_softmax(-1) / math.log(2)

    return code


def test_control_labels_depend_on_the_type_alone_and_keep_the_marginal():
    types = ids(20000, 5000)
    labels = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 20000, replacement=True)
    control = control_labels(types, labels, seed=1)
    for kind in range(50):
        assert len(control[types == kind].unique()) == 1
    share = torch.bincount(control).double() / 20000
    torch.testing.assert_close(share, torch.tensor([0.6, 0.3, 0.1]).double(), rtol=0, atol=0.03)
    assert torch.equal(control, control_labels(types, labels, seed=1))
    assert not torch.equal(control, control_labels(types, labels, seed=2))


def test_labels_that_are_linear_in_the_features_have_a_short_code():
    features = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    labels = features[:, :4].argmax(1)
    code = online_code(features, labels, 4, coder(10.0))
    assert code.compression > 6
    assert sum(code.blocks) == pytest.approx(code.bits)
    assert code.ends == (3, 6, 12, 24, 48, 96, 188, 375, 750, 1500, 3000)
    assert code.blocks[0] == 3 * 2


def test_random_labels_cost_the_uniform_code():
    features = torch.randn(3000, 8, generator=torch.Generator().manual_seed(0))
    code = online_code(features, ids(3000, 4), 4, coder(1e-3))
    assert code.uniform == 6000
    assert 0.97 < code.compression < 1.01


def test_the_code_of_a_known_coder_is_its_formula():
    def sure(features, labels, after):
        logs = torch.full((len(after), 2), -3.0)
        logs[:, 1] = math.log2(7 / 8)
        return logs

    labels = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1])
    code = online_code(torch.zeros(8, 1), labels, 2, sure, percent=(25, 50, 100))
    first, second = [(p * 2 + 0.5) / 3 for p in (7 / 8, 7 / 8)]
    last, miss = (7 / 8 * 4 + 0.5) / 5, (1 / 8 * 4 + 0.5) / 5
    bits = 2 - math.log2(first) - math.log2(second) - math.log2(miss) - 3 * math.log2(last)
    assert code.bits == pytest.approx(bits)
    assert code.compression == pytest.approx(8 / bits)


def test_a_class_that_was_never_seen_costs_a_finite_number_of_bits():
    def never(features, labels, after):
        return torch.tensor([0.0, -math.inf]).expand(len(after), 2)

    code = online_code(torch.zeros(4, 1), torch.tensor([0, 0, 1, 1]), 2, never, percent=(50, 100))
    assert code.bits == pytest.approx(2 + 2 * math.log2(6))


@pytest.mark.parametrize("percent", [(), (50,), (0, 100), (50, 25, 100)])
def test_blocks_that_are_none_are_refused(percent):
    with pytest.raises(InputError, match="rising numbers that end in 100"):
        online_code(torch.zeros(4, 1), torch.tensor([0, 1, 1, 1]), 2, coder(), percent=percent)
    with pytest.raises(InputError, match="1 classes has nothing to tell"):
        online_code(torch.zeros(4, 1), torch.zeros(4).long(), 1, coder())


def test_the_interval_of_a_mean_is_the_normal_one():
    values = torch.randn(400, 1, generator=torch.Generator().manual_seed(0))
    low, high = resampled_interval(
        torch.cat([values, torch.ones(400, 1)], 1), lambda sums: sums[:, 0] / sums[:, 1], draws=4000
    )
    half = 1.96 * values.std().item() / 20
    assert low == pytest.approx(values.mean().item() - half, abs=0.01)
    assert high == pytest.approx(values.mean().item() + half, abs=0.01)


def test_texts_are_drawn_whole():
    """Two labels a text that are both right or both wrong: as few draws as texts."""
    right = ids(200, 2).double()[:, None]
    one, two = torch.cat([right, right * 0 + 1], 1), torch.cat([2 * right, right * 0 + 2], 1)

    def ratio(sums):
        return sums[:, 0] / sums[:, 1]

    assert resampled_interval(one, ratio) == pytest.approx(resampled_interval(two, ratio))
    with pytest.raises(InputError, match="level is 95"):
        resampled_interval(one, ratio, 95.0)


def test_macro_f1_is_scikit_learns():
    from bloomlab.experiments.probe_scores import Tested

    labels, predicted, text = ids(300, 4), ids(300, 5, seed=1), ids(300, 20, seed=2).sort().values
    tested = Tested(labels=labels, control=None, text=text, n_class=6, majority=0.0, embedding=0.0)
    row = tested.scores(predicted, None, predicted, level=0.9, draws=100, seed=0)
    theirs = f1_score(labels, predicted, labels=range(4), average="macro", zero_division=0)
    assert row["f1"] == pytest.approx(theirs)
    assert row["f1_low"] < row["f1"] < row["f1_high"]
    assert math.isnan(row["selectivity"])
