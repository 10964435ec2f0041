"""Language neurons of a model: counted text by text, planted, deactivated by hand."""

import pytest
import torch

from bloomlab.errors import InputError, UnknownNameError, UnsupportedError
from bloomlab.experiments.language_effects import _random, language_effects
from bloomlab.experiments.language_neurons import deactivate, language_neurons
from bloomlab.model.prune_parts import prune_neurons
from tests.tiny import pair, tokens

D_MLP = 4 * 48


def texts():
    """Texts of unequal length in three languages: ids from different ranges."""
    source = torch.Generator().manual_seed(3)
    return {
        name: [torch.randint(low, low + 30, (1, n), generator=source) for n in lengths]
        for name, low, lengths in [("en", 5, (6, 9, 4)), ("fr", 36, (7, 5)), ("zh", 66, (8, 3, 5))]
    }


def padded(some, side):
    n = max(ids.shape[1] for ids in some)
    ids, mask = torch.full((len(some), n), 3), torch.zeros(len(some), n, dtype=torch.long)
    for row, one in enumerate(some):
        where = slice(n - one.shape[1], n) if side == "left" else slice(one.shape[1])
        ids[row, where], mask[row, where] = one[0], 1
    return {"input_ids": ids, "attention_mask": mask}


def plant(model, low):
    """Make neuron 11 of layer 0 active at ids from `low` to `low` + 29 alone."""
    with torch.no_grad():
        model.W_E[:, 0], model.W_E[low : low + 30, 0] = -4, 4
        block = model.blocks[0]
        block.attn.o.weight.zero_()  # the MLP sees the token alone
        block.mlp.fc_in.weight[11] = 0
        block.mlp.fc_in.weight[11, 0], block.mlp.fc_in.bias[11] = 1, -block.ln2.bias[0]


def test_probabilities_are_shares_of_attended_tokens():
    _, model = pair(dtype=torch.float64)
    given = texts()
    found = language_neurons(
        model, {name: padded(some, "left") for name, some in given.items()}, top=0.1, rows=2
    )
    for place, some in enumerate(given.values()):
        active, n = torch.zeros(2, D_MLP), 0
        for ids in some:
            _, cache = model.run_with_cache(ids)
            for layer in range(2):
                active[layer] += (cache[f"blocks.{layer}.mlp.hook_pre"][0] > 0).sum(0)
            n += ids.shape[1]
        assert torch.equal(found.probability[place], active.double() / n)
        assert found.n_token[place] == n
    right = language_neurons(
        model, {name: padded(some, "right") for name, some in given.items()}, top=0.1
    )
    assert torch.equal(right.probability, found.probability)
    assert torch.equal(right.selected, found.selected)


def test_a_planted_neuron_is_its_languages():
    _, model = pair(dtype=torch.float64)
    plant(model, 36)
    found = language_neurons(
        model, {name: padded(some, "left") for name, some in texts().items()}, top=0.1, bar=0.8
    )
    assert found.probability[:, 0, 11].tolist() == [0, 1, 0]
    assert (0, 11) in found.of("fr")
    assert (0, 11) not in found.of("en") + found.of("zh")
    frame = found.frame
    assert len(frame) == int(found.selected.sum())
    one = frame[(frame.layer == 0) & (frame.neuron == 11)].iloc[0]
    assert (one.language, one.entropy) == ("fr", found.entropy[0, 11].item())
    assert one.probability == found.probability[1, 0, 11]
    assert found.counts.sum().to_dict() == {
        name: len(found.of(name)) for name in ("en", "fr", "zh")
    }


def test_deactivating_equals_rows_of_the_weights_set_to_zero():
    theirs, model = pair(dtype=torch.float64)
    ids = tokens(2, 9)
    neurons = [(0, 3), (1, 0), (1, 191), (0, 100)]
    got = model.run_with_hooks(ids, fwd_hooks=deactivate(neurons))
    pruned = prune_neurons(model, {0: [3, 100], 1: [0, 191]})
    assert (got - pruned(ids).logits).abs().max() < 1e-10
    with torch.no_grad():
        for layer, neuron in neurons:
            theirs.transformer.h[layer].mlp.dense_4h_to_h.weight[:, neuron] = 0
        assert (got - theirs(ids).logits).abs().max() < 1e-5  # their softmax is in float32
    generated = model.generate(
        ids, interventions=deactivate(neurons), max_new_tokens=5, eos_token_id=[]
    )
    assert torch.equal(generated, theirs.generate(ids, max_new_tokens=5, eos_token_id=None))
    assert deactivate([]) == []


def test_effects_are_differences_of_losses():
    _, model = pair(dtype=torch.float64)
    given = texts()
    batches = {name: padded(some, "left") for name, some in given.items()}
    found = language_neurons(model, batches, top=0.1, bar=0.9)
    effects = language_effects(model, found, batches, n_random=3, rows=2)
    frame = effects.frame.set_index(["neurons", "texts"])
    for (neurons, language), row in frame.iterrows():
        losses = []
        for ids in given[language]:
            clean, without = (
                torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:])
                for logits in (
                    model(ids).logits,
                    model.run_with_hooks(ids, fwd_hooks=deactivate(found.of(neurons))),
                )
            )
            losses.append(torch.stack([clean, without - clean]).detach())
        clean, effect = torch.stack(losses).unbind(-1)
        assert row.clean == pytest.approx(clean.mean().item(), abs=1e-10)
        assert row.effect == pytest.approx(effect.mean().item(), abs=1e-10)
        assert row.stderr == pytest.approx(effect.std().item() / len(effect) ** 0.5, abs=1e-10)
        assert row.excess == pytest.approx(row.effect - row.random, abs=1e-10)
        assert row.random_std > 0
    again = language_effects(model, found, batches, n_random=3)
    assert again.frame.random.to_numpy() == pytest.approx(frame.random.to_numpy(), abs=1e-10)


def test_random_neurons_are_as_many_in_each_layer_and_others():
    chosen = [(0, 1), (0, 5), (1, 2)]
    drawn = [_random(chosen, 6, torch.Generator().manual_seed(i)) for i in range(20)]
    for some in drawn:
        assert [layer for layer, _ in some] == [0, 0, 1]
        assert not set(some) & set(chosen)
    assert len({tuple(some) for some in drawn}) > 5


def test_bad_neurons_and_texts_are_refused():
    _, model = pair()
    with pytest.raises(InputError, match=r"neuron is 3.*\(layer, number\)"):
        deactivate([3])
    with pytest.raises(InputError, match="neuron is"):
        deactivate([(0, -1)])
    with pytest.raises(UnknownNameError, match="neuron 192"):
        model.run_with_hooks(tokens(1, 4), fwd_hooks=deactivate([(0, 192)]))
    with pytest.raises(UnknownNameError, match="hook point"):
        model.run_with_hooks(tokens(1, 4), fwd_hooks=deactivate([(7, 1)]))
    with pytest.raises(InputError, match="two languages"):
        language_neurons(model, {"en": tokens(2, 4)})
    with pytest.raises(UnsupportedError, match="differ in neurons"):
        language_neurons(
            prune_neurons(model, {0: [1, 2]}), {"en": tokens(2, 4), "fr": tokens(2, 4, seed=2)}
        )
    found = language_neurons(
        model, {"en": tokens(2, 4), "fr": tokens(2, 4, seed=2)}, top=0.1, bar=0.9
    )
    with pytest.raises(UnknownNameError, match="'de'"):
        found.of("de")
    with pytest.raises(InputError, match="n_random"):
        language_effects(model, found, {"en": tokens(2, 4)}, n_random=0)
    with pytest.raises(InputError, match="no texts"):
        language_effects(model, found, {})
