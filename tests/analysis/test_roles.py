"""Roles of patterns that are known, against closed forms, brute force and TransformerLens."""

import math

import pytest
import torch
from transformer_lens import head_detector

from bloomlab.analysis.roles import (
    at_distance,
    attention_distance,
    attention_entropy,
    content_free_pattern,
    duplicate_targets,
    first_targets,
    induction_targets,
    listed_targets,
    looks_at_distance,
    mean_over_rows,
    previous_targets,
    role_score,
    visible_keys,
)
from bloomlab.model.alibi import alibi_slopes

L = 6
TWICE = torch.tensor([[0, *range(1, L + 1), *range(1, L + 1)]])
ALL = torch.ones_like(TWICE, dtype=torch.bool)
N = TWICE.shape[1]
PADDED = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 1, 1, 0, 0]]).bool()
WORDS = torch.tensor([[9, 9, 5, 7, 5, 5, 7, 5], [5, 7, 8, 9, 7, 5, 9, 9]])


def targets_of(name, tokens=TWICE, attended=ALL):
    return {
        "induction": lambda: induction_targets(tokens, attended),
        "duplicate": lambda: duplicate_targets(tokens, attended),
        "previous": lambda: previous_targets(attended),
        "first": lambda: first_targets(attended),
    }[name]()


def looking(distance):
    """The pattern [1 1 key key] of a head that looks so far back, or at the first token."""
    pattern = torch.zeros(N, N, dtype=torch.float64)
    for i in range(N):
        pattern[i, max(i - distance, 0)] = 1
    return pattern[None, None]


UNIFORM = (
    torch.ones(N, N, dtype=torch.float64).tril().div(torch.arange(1.0, N + 1)[:, None])[None, None]
)
# distance a head looks back -> mean attention of the queries that have such a token
PURE = {
    1: {"previous": 1, "induction": 0, "duplicate": 0, "first": 1 / (N - 1)},
    L - 1: {"previous": 1 / (N - 1), "induction": 1, "duplicate": 0, "first": (L - 1) / (N - 1)},
    L: {"previous": 1 / (N - 1), "induction": 0, "duplicate": 1, "first": L / (N - 1)},
    N: {"previous": 1 / (N - 1), "induction": 0, "duplicate": 0, "first": 1},
}


@pytest.mark.parametrize("distance", PURE)
def test_pure_patterns_score_what_they_must(distance):
    got = {name: role_score(looking(distance), targets_of(name)).item() for name in PURE[distance]}
    assert got == pytest.approx(PURE[distance])
    assert attention_entropy(looking(distance)).abs().max() == 0
    back = torch.arange(N).clamp(max=distance)
    assert torch.equal(attention_distance(looking(distance), ALL)[0, 0], back.double())


def test_uniform_attention_scores_closed_forms():
    queries = range(L + 1, 2 * L + 1)
    once = sum(1 / (i + 1) for i in queries) / L
    assert role_score(UNIFORM, targets_of("induction")).item() == pytest.approx(once)
    assert role_score(UNIFORM, targets_of("duplicate")).item() == pytest.approx(once)
    harmonic = sum(1 / (i + 1) for i in range(1, N)) / (N - 1)
    assert role_score(UNIFORM, targets_of("previous")).item() == pytest.approx(harmonic)
    assert role_score(UNIFORM, targets_of("first")).item() == pytest.approx(harmonic)
    assert torch.allclose(
        attention_entropy(UNIFORM)[0, 0], torch.arange(1.0, N + 1).log2().double()
    )
    assert torch.allclose(attention_distance(UNIFORM, ALL)[0, 0], torch.arange(N).double() / 2)


@pytest.mark.parametrize("name", ["induction", "duplicate", "previous"])
def test_transformer_lens_agrees_once_its_dilution_is_undone(name):
    """Its "mul" score averages over all rows: a perfect induction head gets below 1/2."""
    theirs = {
        "induction": head_detector.get_induction_head_detection_pattern,
        "duplicate": head_detector.get_duplicate_token_head_detection_pattern,
        "previous": head_detector.get_previous_token_head_detection_pattern,
    }[name](TWICE)
    targets = targets_of(name)
    assert torch.equal(theirs.bool(), targets[0])
    drawn = torch.rand(N, N, generator=torch.Generator().manual_seed(0)).tril()
    drawn = drawn / drawn.sum(-1, keepdim=True)
    for pattern in (drawn, looking(L - 1)[0, 0].float()):
        score = head_detector.compute_head_attention_similarity_score(
            pattern, theirs, exclude_bos=False, exclude_current_token=False, error_measure="mul"
        )
        ours = role_score(pattern[None, None], targets).item()
        assert ours == pytest.approx(score * N / targets.any(-1).sum().item(), abs=1e-6)
    if name == "induction":
        assert score == pytest.approx(L / (2 * L + 1))
        assert ours == pytest.approx(1)


def brute(name, words, attended):
    """Targets, by looping over attended tokens as if nothing else were there."""
    found = torch.zeros(len(words), len(words), dtype=torch.bool)
    columns = attended.nonzero()[:, 0].tolist()
    text = [words[c].item() for c in columns]
    for i, query in enumerate(columns):
        for j, key in enumerate(columns[:i]):
            found[query, key] = {
                "induction": j > 0 and text[j - 1] == text[i],
                "duplicate": text[j] == text[i],
                "previous": j == i - 1,
                "first": j == 0,
                "listed": text[j] in (7, 8),
            }[name]
    return found


@pytest.mark.parametrize("name", ["induction", "duplicate", "previous", "first", "listed"])
def test_targets_with_padding_are_those_of_the_text_alone(name):
    if name == "listed":
        got = listed_targets(WORDS, PADDED, torch.tensor([8, 7]))
    else:
        got = targets_of(name, WORDS, PADDED)
    for row in range(2):
        assert torch.equal(got[row], brute(name, WORDS[row], PADDED[row]))
    assert got.any()


def test_padding_changes_no_content_free_pattern_nor_distance():
    slopes = alibi_slopes(6).double()
    got = content_free_pattern(slopes, PADDED)
    alone = content_free_pattern(slopes, torch.ones(1, 8).bool())[0]
    distance = attention_distance(got, PADDED)
    for row, attended in enumerate(PADDED):
        at = attended.nonzero()[:, 0]
        n = len(at)
        torch.testing.assert_close(got[row][:, at][:, :, at], alone[:, :n, :n])
        expected = attention_distance(alone[None, :, :n, :n], torch.ones(1, n).bool())
        torch.testing.assert_close(distance[row][:, at], expected[0])
    assert (got[0, :, :2] == 0).all()
    assert torch.equal(visible_keys(PADDED)[:, None].expand_as(got), got > 0)


@pytest.mark.parametrize("n_head", [8, 6, 16])
def test_a_content_free_head_has_the_closed_forms_of_its_slope(n_head):
    slopes, n = alibi_slopes(n_head).double(), 768
    rows = torch.ones(1, n).bool()
    for slope in slopes[slopes > 0.03]:
        r = math.exp(-slope)
        pattern = content_free_pattern(slope[None], rows)
        for i in (0, 1, 5, n - 1):
            d = torch.arange(i, -1, -1)
            expected = (1 - r) * r**d / (1 - r ** (i + 1))
            torch.testing.assert_close(pattern[0, 0, i, : i + 1], expected.double())
        last = pattern[..., -1:, :]
        far = attention_distance(pattern, rows)[0, 0, -1].item()
        assert far == pytest.approx(1 / (math.exp(slope) - 1), rel=1e-6)
        bits = (-math.log(1 - r) - r * math.log(r) / (1 - r)) / math.log(2)
        assert attention_entropy(last).item() == pytest.approx(bits, rel=1e-6)


def test_positional_heads_look_at_one_distance():
    for distance in (0, 1, 3):
        for asked in (0, 1, 3):
            rows = at_distance(ALL, asked).any(-1)
            assert rows.sum() == N - asked
            share = mean_over_rows(looks_at_distance(looking(distance), ALL, asked).double(), rows)
            expected = [min(i, distance) == asked for i in range(asked, N)]
            assert share.item() == pytest.approx(sum(expected) / len(expected))
    free = content_free_pattern(alibi_slopes(4), ALL)
    assert looks_at_distance(free, ALL, 0).all()


def test_scores_without_an_eligible_query_are_not_numbers():
    distinct = torch.arange(5)[None]
    targets = induction_targets(distinct, torch.ones(1, 5).bool())
    assert role_score(torch.rand(1, 3, 5, 5), targets).isnan().all()
