"""Predicted effects of edges: derivatives by another way, exact where all is linear; circuits."""

import pytest
import torch

from bloomlab.errors import InputError, UnknownNameError, UnsupportedError
from bloomlab.experiments import attribute_edges, evaluate_circuits, find_circuit, patch_paths
from bloomlab.experiments.graph import Edge, Graph, connected
from tests.experiments.naive_edges import writes
from tests.planted import FIRM, SOFT, induction_circuit, linear_model
from tests.straight import straight
from tests.tiny import pair, tokens

N_LAYER, N_HEAD, LENGTH = 2, 3, 6
RIGHT, WRONG = 5, 9
QUIET = {"answers": torch.tensor([[RIGHT, WRONG]] * 2), "progress": False}
PLANTED = {
    *(Edge("embed", f"L0H0.{read}") for read in "qkv"),
    *(Edge("embed", f"L1H7.{read}") for read in "qv"),
    Edge("L0H0", "L1H7.k"),
    Edge("L1H7", "logits"),
}


@pytest.fixture(scope="module")
def models():
    return pair(hidden_size=24, n_head=N_HEAD, n_layer=N_LAYER, dtype=torch.float64)


@pytest.fixture(scope="module")
def texts():
    clean = tokens(2, LENGTH)
    corrupted = clean.clone()
    corrupted[:, 3] = torch.tensor([11, 12])
    return clean, corrupted


def by_forks(hf, clean, corrupted, shares):
    """Scores by derivatives at every reader's own copy of the stream, [receiver][sender][row]."""
    base, other = (straight(hf, ids, gated=True)[1] for ids in (clean, corrupted))
    ours, theirs = (writes(values, N_LAYER, N_HEAD) for values in (base, other))
    heads = [[f"L{layer}H{head}" for head in range(N_HEAD)] for layer in range(N_LAYER)]
    points = {}
    for layer in range(N_LAYER):
        for read in "qkv":
            names = [f"{head}.{read}" for head in heads[layer]]
            points[f"blocks.{layer}.attn.hook_{read}_input"] = names
        points[f"blocks.{layer}.hook_mlp_in"] = [f"MLP{layer}"]
    points[f"blocks.{N_LAYER - 1}.hook_resid_post"] = ["logits"]
    total = {name: 0 for names in points.values() for name in names}
    for share in shares:
        leaves = {}

        def fork(value, name, leaves=leaves):
            leaves[name] = torch.zeros_like(value, requires_grad=True)
            return value + leaves[name]

        edits = {name: lambda value, name=name, fork=fork: fork(value, name) for name in points}
        start = theirs["embed"] + share * (ours["embed"] - theirs["embed"])
        edits["hook_embed"] = lambda value, start=start: start.detach()
        logits = straight(hf, clean, edits=edits, gated=True)[0]
        difference = (logits[:, -1, RIGHT] - logits[:, -1, WRONG]).sum()
        slopes = torch.autograd.grad(difference, list(leaves.values()))
        for point, slope in zip(leaves, slopes, strict=True):
            each = slope.unbind(2) if slope.ndim == 4 else [slope]
            for name, one in zip(points[point], each, strict=True):
                total[name] = total[name] + one / len(shares)
    return {
        Edge(sender, name): ((theirs[sender] - ours[sender]) * slope).sum((1, 2)).detach()
        for name, slope in total.items()
        for sender in ours
    }


@pytest.mark.parametrize("direction", ["noise", "denoise"])
@pytest.mark.parametrize(
    ("options", "shares"),
    [
        ({"kind": "eap"}, [1.0]),
        ({"kind": "eap_ig", "steps": 1}, [1.0]),
        ({"kind": "eap_ig"}, [0.2, 0.4, 0.6, 0.8, 1.0]),
    ],
)
def test_scores_are_the_derivatives_at_each_readers_input(
    models, texts, direction, options, shares
):
    hf, ours = models
    found = attribute_edges(ours, *texts, direction=direction, **options, **QUIET)
    expected = by_forks(hf, *(texts if direction == "noise" else texts[::-1]), shares)
    assert found.edges == Graph.of(ours).edges
    expected = torch.stack([expected[edge] for edge in found.edges])
    torch.testing.assert_close(found.values, expected, atol=1e-9, rtol=1e-9)
    assert not found.values.requires_grad
    assert found.frame.score.tolist() == pytest.approx(expected.mean(1).tolist())


def test_predictions_are_exact_where_all_is_linear():
    model = linear_model(n_layer=2, n_head=3)
    clean = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(3))
    corrupted = (clean + 4) % 11
    options = {"answers": torch.tensor([[1, 2], [3, 4]]), "progress": False}
    exact = patch_paths(model, clean, corrupted, **options)
    for kind in ("eap", "eap_ig"):
        found = attribute_edges(model, clean, corrupted, kind=kind, **options)
        assert found.edges == exact.edges
        torch.testing.assert_close(found.values, exact.effects, atol=1e-10, rtol=0)
        assert found.circuit(5) == exact.circuit(5)


def test_a_batch_gives_what_its_texts_give(models, texts):
    ours = models[1]
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
    clean, corrupted = ({"input_ids": one, "attention_mask": mask} for one in texts)
    both = attribute_edges(ours, clean, corrupted, **QUIET).values
    for row, start in ((0, 2), (1, 0)):
        alone = [one[row : row + 1, start:] for one in texts]
        one = attribute_edges(ours, *alone, answers=QUIET["answers"][:1], progress=False).values
        torch.testing.assert_close(both[:, row], one[:, 0], atol=1e-9, rtol=0)
    small = attribute_edges(ours, clean, corrupted, rows=1, **QUIET).values
    torch.testing.assert_close(small, both, atol=1e-12, rtol=0)


def planted(strengths):
    circuit = induction_circuit(strengths)
    options = {"positions": circuit.positions, "metric": "cross_entropy", "progress": False}
    return circuit.model, (circuit.ids(4), circuit.ids(4, seed=9)), options


@pytest.mark.parametrize(
    ("strengths", "close"), [pytest.param(SOFT, 0.05, marks=pytest.mark.slow), (FIRM, 1e-3)]
)
def test_patched_edges_and_removed_ones_find_the_planted_circuit(strengths, close):
    """Precision and recall are 1 at the right size; faithfulness runs from 0 to 1."""
    model, texts, options = planted(strengths)
    paths = patch_paths(model, *texts, **options)
    found = find_circuit(model, *texts, 1.0, **options)
    assert set(paths.circuit(len(PLANTED))) == set(found.edges) == PLANTED
    scores = evaluate_circuits(
        model, *texts, {"planted": PLANTED, "all": paths.edges, "none": []}, **options
    ).frame.set_index("circuit")
    assert scores.faithfulness.tolist() == pytest.approx([1, 1, 0], abs=close)
    assert scores.completeness.tolist() == pytest.approx([0, 0, 1], abs=0.1)
    assert found.value == pytest.approx(scores.value["planted"])
    assert found.clean == pytest.approx(scores.value["all"])


def test_derivatives_miss_the_circuit_behind_a_sharp_softmax():
    """They are small everywhere; a path through other embeddings sees more, not all."""
    model, texts, options = planted(FIRM)
    exact = patch_paths(model, *texts, **options).effects.mean(1).abs().max()
    eap, ig = (attribute_edges(model, *texts, kind=k, **options) for k in ("eap", "eap_ig"))
    assert eap.values.mean(1).abs().max() < 1e-3 * exact
    assert ig.values.mean(1).abs().max() > 0.5 * exact
    assert set(ig.circuit(len(PLANTED))) != PLANTED


@pytest.mark.slow
def test_what_is_kept_changes_the_metric_and_what_is_removed_does_not(models, texts):
    ours, graph = models[1], Graph.of(models[1])
    options = QUIET | {"metric": "logit_difference"}
    found = find_circuit(ours, *texts, 0.05, **options)
    assert 0 < len(found.edges) < len(graph.edges)
    frame = found.frame
    assert (frame.change.abs() >= 0.05).tolist() == frame.kept.tolist()
    alone = evaluate_circuits(ours, *texts, found.edges, **QUIET)
    assert alone.inside.values.mean().item() == pytest.approx(found.value, abs=1e-10)
    nothing = find_circuit(ours, *texts, 1e6, **options)
    assert nothing.edges == []
    everything = find_circuit(ours, *texts, 0.0, **options)
    assert everything.edges == graph.edges
    assert everything.value == everything.clean


def test_edges_that_lead_nowhere_are_dropped():
    edges = [
        Edge("embed", "L0H0.v"),
        Edge("L0H0", "L1H0.k"),  # L1H0 is read by nothing
        Edge("L0H1", "logits"),  # L0H1 reads nothing
        Edge("L0H0", "logits"),
    ]
    assert connected(edges) == [edges[0], edges[3]]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"kind": "acdc"}, UnknownNameError, "kind 'acdc'"),
        ({"steps": 0}, InputError, "steps is 0"),
        ({"metric": "kl", "answers": None, "kind": "eap"}, InputError, "is 0 at the clean run"),
        ({"metric": "kl", "answers": None, "steps": 1}, InputError, "is 0 at the clean run"),
        ({"metric": "accuracy", "answers": None}, InputError, "no next token there"),
        (
            {"metric": "accuracy", "answers": torch.tensor([1, 2])},
            InputError,
            "'accuracy' has no derivative",
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(models, texts, options, error, match):
    with pytest.raises(error, match=match):
        attribute_edges(models[1], *texts, **(QUIET | options))


def test_wrong_sizes_and_models_are_refused(models, texts):
    found = attribute_edges(models[1], *texts, kind="eap", **QUIET)
    with pytest.raises(InputError, match="n_edge is 1000"):
        found.circuit(1000)
    with pytest.raises(InputError, match="threshold is -1"):
        find_circuit(models[1], *texts, -1, **QUIET)
    post = pair(apply_residual_connection_post_layernorm=True, dtype=torch.float64)[1]
    with pytest.raises(UnsupportedError, match="the stream is no sum"):
        attribute_edges(post, *texts, **QUIET)
