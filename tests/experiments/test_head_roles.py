"""Roles of heads: those of a planted circuit, and of patterns taken by hand."""

import math

import pytest
import torch

from bloomlab.analysis.roles import content_free_pattern
from bloomlab.errors import InputError
from bloomlab.experiments.head_roles import COLUMNS, head_roles
from bloomlab.model.prune import prune_heads
from tests.planted import induction_circuit
from tests.tiny import pair, tokens

COPIED = torch.tensor([[4, 5, 6, 7, 4, 5, 6, 7], [9, 4, 9, 5, 9, 8, 8, 4]])


@pytest.fixture(scope="module")
def planted():
    return induction_circuit()


def test_planted_heads_are_found_by_their_roles(planted):
    found = head_roles(planted.model, planted.ids()).set_index(["layer", "head"])
    assert found.induction.idxmax() == planted.matchers[0]
    assert found.induction[planted.matchers[0]] > 0.95
    assert found.previous.idxmax() == planted.previous
    assert found.positional[planted.previous] > 0.95
    assert found.positional_distance[planted.previous] == 1
    others = found.drop([planted.matchers[0]]).induction_excess
    assert others.max() < 0.3


def test_every_column_is_what_the_pattern_says():
    _, model = pair()
    _, cache = model.run_with_cache(COPIED)
    found = head_roles(model, COPIED, delimiters=[9]).set_index(["layer", "head"])
    assert tuple(found.columns) == COLUMNS
    for layer, head in [(0, 0), (1, 4)]:
        pattern, row = cache["pattern", layer][:, head], found.loc[layer, head]
        alike = content_free_pattern(model.blocks[layer].attn.slopes[head][None], COPIED > 0)[:, 0]

        def mean(targets, patterns):
            rows = {(b, i) for b, i, _ in targets}
            return sum(patterns[b, i, j].item() for b, i, j in targets) / len(rows)

        every = [(b, i, j) for b in range(2) for i in range(8) for j in range(i)]
        text = COPIED.tolist()
        targets = {
            "previous": [(b, i, j) for b, i, j in every if j == i - 1],
            "first": [(b, i, j) for b, i, j in every if j == 0],
            "duplicate": [(b, i, j) for b, i, j in every if text[b][i] == text[b][j]],
            "induction": [(b, i, j) for b, i, j in every if j and text[b][j - 1] == text[b][i]],
            "delimiter": [(b, i, j) for b, i, j in every if text[b][j] == 9],
        }
        for name, some in targets.items():
            assert row[name] == pytest.approx(mean(some, pattern), abs=1e-5)
            excess = mean(some, pattern) - mean(some, alike)
            assert row[f"{name}_excess"] == pytest.approx(excess, abs=1e-5)
        entropy = -(pattern.clamp(min=1e-30).log2() * pattern).sum(-1)[:, 1:].mean().item()
        assert row.entropy == pytest.approx(entropy, abs=1e-4)
        back = torch.arange(8)[:, None] - torch.arange(8)
        distance = (pattern * back).sum(-1)[:, 1:].mean().item()
        assert row.distance == pytest.approx(distance, abs=1e-4)


def test_padding_and_pruning_change_no_head_that_stays():
    _, model = pair()
    alone = head_roles(model, COPIED)
    padded = torch.cat([torch.full((2, 3), 3), COPIED], 1)
    attended = torch.ones_like(padded)
    attended[:, :3] = 0
    again = head_roles(model, {"input_ids": padded, "attention_mask": attended})
    assert again.drop(columns="positional_distance").to_numpy() == pytest.approx(
        alone.drop(columns="positional_distance").to_numpy(), abs=1e-5, nan_ok=True
    )
    pruned = head_roles(prune_heads(model, {0: [1, 2], 1: range(6)}), COPIED)
    assert pruned[["layer", "head"]].to_numpy().tolist() == [[0, 0], [0, 3], [0, 4], [0, 5]]
    kept = alone[(alone.layer == 0) & alone["head"].isin([0, 3, 4, 5])]
    assert pruned.to_numpy() == pytest.approx(kept.to_numpy(), abs=1e-5, nan_ok=True)


@pytest.mark.slow
def test_text_is_measured_and_its_punctuation_found(demo):
    found = head_roles(demo, ["Look, a cat. It sat; it ran, and it slept.", "Hé!"])
    assert len(found) == demo.config.n_layer * demo.config.n_head
    assert found.delimiter.between(0, 1).all()
    assert head_roles(demo, ["ab cd ef"]).delimiter.isna().all()
    assert head_roles(demo).induction.max() > 0.8
    assert not any(math.isnan(value) for value in head_roles(demo).entropy)


def test_wrong_input_is_refused():
    _, model = pair()
    with pytest.raises(InputError, match="expected token ids"):
        head_roles(model, tokens(1, 5), delimiters=[0.5])
    with pytest.raises(InputError, match="empty"):
        head_roles(model, torch.zeros(0, 3, dtype=torch.long))
