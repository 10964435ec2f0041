"""LAPE against closed forms, a loop in plain numbers, and a planted neuron."""

import math

import pytest
import scipy.stats
import torch

from bloomlab.analysis.language_neurons import activation_entropy, select_language_neurons
from bloomlab.errors import InputError, ShapeError


def drawn(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(probability, top, bar):
    """The rule of Tang et al. in plain numbers: {language: [(layer, neuron)]}."""
    n_language, n_layer, n_neuron = probability.shape
    every = sorted(probability.flatten().tolist())
    limit = every[round(len(every) * bar) - 1]
    entropies = []
    for layer in range(n_layer):
        for neuron in range(n_neuron):
            p = [probability[k, layer, neuron].item() for k in range(n_language)]
            if max(p) > limit:
                h = -sum(x / sum(p) * math.log(x / sum(p)) for x in p if x > 0)
                entropies.append((h, layer, neuron))
    entropies.sort()
    found = {k: set() for k in range(n_language)}
    for _, layer, neuron in entropies[: round(n_layer * n_neuron * top)]:
        for k in range(n_language):
            if probability[k, layer, neuron] > limit:
                found[k].add((layer, neuron))
    return found


@pytest.mark.parametrize(("top", "bar"), [(0.01, 0.95), (0.1, 0.8), (0.3, 0.95)])
@pytest.mark.parametrize("n_language", [2, 5])
def test_selection_equals_a_loop_in_plain_numbers(n_language, top, bar):
    probability = drawn(n_language, 3, 101) ** 3
    found = select_language_neurons(probability, top=top, bar=bar)
    expected = by_hand(probability, top, bar)
    for k in range(n_language):
        assert set(map(tuple, found[k].nonzero().tolist())) == expected[k]
    assert any(expected.values())


def test_entropy_equals_scipys_and_its_closed_forms():
    probability = drawn(4, 2, 7)
    expected = scipy.stats.entropy(probability.numpy(), axis=0)
    assert activation_entropy(probability).numpy() == pytest.approx(expected, abs=1e-12)
    same = torch.full((5, 1, 1), 0.3, dtype=torch.float64)
    assert activation_entropy(same).item() == pytest.approx(math.log(5))
    alone = torch.tensor([0.4, 0.0, 0.0], dtype=torch.float64).view(3, 1, 1)
    assert activation_entropy(alone).item() == 0
    assert activation_entropy(torch.zeros(3, 1, 1)).isnan().all()


def test_planted_neurons_are_found_and_no_others():
    """A neuron of one language, one of two, and a dead one, whose entropy must not count."""
    probability = 0.2 + 0.01 * drawn(3, 2, 50)
    probability[:, 0, 7] = torch.tensor([0.9, 0.001, 0.002], dtype=torch.float64)
    probability[:, 1, 4] = torch.tensor([0.001, 0.8, 0.9], dtype=torch.float64)
    probability[:, 1, 9] = 0
    found = select_language_neurons(probability, top=0.02)
    assert found.nonzero().tolist() == [[0, 0, 7], [1, 1, 4], [2, 1, 4]]


def test_the_same_whatever_the_order_of_languages_and_the_scale_of_others():
    probability = drawn(4, 2, 80) ** 2
    found = select_language_neurons(probability, top=0.1)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(select_language_neurons(probability[order], top=0.1), found[order])
    halved = activation_entropy(probability / 2)
    assert (halved - activation_entropy(probability)).abs().max() < 1e-12


def test_bad_probabilities_are_refused():
    with pytest.raises(ShapeError, match="language layer neuron"):
        select_language_neurons(torch.rand(3, 0, 4))
    with pytest.raises(InputError, match="between 0 and 1"):
        activation_entropy(torch.full((2, 1, 1), 1.5))
    with pytest.raises(InputError, match="between 0 and 1"):
        activation_entropy(torch.full((2, 1, 1), torch.nan))
    with pytest.raises(InputError, match="at least two languages"):
        select_language_neurons(torch.rand(1, 2, 100))
    with pytest.raises(InputError, match="top"):
        select_language_neurons(torch.rand(2, 2, 100), top=1.0)
    with pytest.raises(InputError, match="none; raise it"):
        select_language_neurons(torch.rand(2, 1, 4))
