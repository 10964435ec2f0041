"""Edges patched alone and together equal a forward written straight down; a planted path is found.

The slow way is `naive_edges`.
"""

import pytest
import torch

from bloomlab.errors import InputError, ShapeError, UnknownNameError, UnsupportedError
from bloomlab.experiments import evaluate_circuits, patch_activations, patch_paths
from bloomlab.experiments.graph import Graph
from bloomlab.model.inflate import whole
from bloomlab.model.prune import prune_heads
from tests.experiments.naive_edges import patched_logits
from tests.planted import SHARP, induction_circuit, linear_model
from tests.tiny import pair, tokens

N_LAYER, N_HEAD, LENGTH = 2, 3, 6
RIGHT, WRONG = 5, 9
ANSWERS = torch.tensor([[RIGHT, WRONG]] * 2)
QUIET = {"answers": ANSWERS, "progress": False}
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


@pytest.fixture(scope="module")
def models():
    return pair(hidden_size=24, n_head=N_HEAD, n_layer=N_LAYER, dtype=torch.float64)


@pytest.fixture(scope="module")
def texts():
    clean = tokens(2, LENGTH)
    corrupted = clean.clone()
    corrupted[:, 3] = torch.tensor([11, 12])
    return clean, corrupted


def difference(logits):
    return logits[:, -1, RIGHT] - logits[:, -1, WRONG]


@pytest.mark.parametrize("norms", ["live", "frozen"])
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_every_edge_alone_equals_a_forward_of_its_own(models, texts, direction, norms):
    hf, ours = models
    found = patch_paths(ours, *texts, direction=direction, norms=norms, **QUIET)
    graph = Graph.of(ours)
    assert found.edges == graph.edges
    assert len(found.edges) == 3 * 3 + 4 + 3 * 3 * 5 + 8 + 9  # layer 0, layer 1, logits
    base, other = texts if direction == "noise" else texts[::-1]
    expected = [
        difference(patched_logits(hf, base, other, [edge], frozen=norms == "frozen"))
        for edge in found.edges
    ]
    torch.testing.assert_close(found.values, torch.stack(expected), atol=1e-10, rtol=0)
    assert found.effects.abs().amax(1).gt(1e-4).double().mean() > 0.8


@pytest.mark.parametrize("norms", ["live", "frozen"])
@pytest.mark.parametrize("seed", range(4))
def test_sets_of_edges_equal_a_forward(models, texts, seed, norms):
    hf, ours = models
    graph = Graph.of(ours)
    source = torch.Generator().manual_seed(seed)
    chosen = graph.exists & (torch.rand(graph.exists.shape, generator=source) < 0.2 + 0.2 * seed)
    edges = graph.named(chosen)
    found = evaluate_circuits(ours, *texts, edges, norms=norms, **QUIET)
    frozen = norms == "frozen"
    without = patched_logits(hf, *texts, edges, frozen=frozen)
    others = graph.named(graph.exists & ~chosen)
    alone = patched_logits(hf, *texts, others, frozen=frozen)
    torch.testing.assert_close(found.outside.values[0], difference(without), atol=1e-10, rtol=0)
    torch.testing.assert_close(found.inside.values[0], difference(alone), atol=1e-10, rtol=0)


def test_padding_changes_nothing(models, texts):
    hf, ours = models
    clean, corrupted = ({"input_ids": one, "attention_mask": LEFT} for one in texts)
    found = patch_paths(ours, clean, corrupted, **QUIET)
    for row, start in ((0, 2), (1, 0)):
        alone = [one[row : row + 1, start:] for one in texts]
        expected = patch_paths(ours, *alone, answers=ANSWERS[:1], progress=False)
        torch.testing.assert_close(found.values[:, row], expected.values[:, 0], atol=1e-10, rtol=0)
    edge = ("L0H1", "L1H2.k")
    expected = difference(patched_logits(hf, *texts, [edge], LEFT))
    at = found.edges.index(edge)
    torch.testing.assert_close(found.values[at], expected, atol=1e-10, rtol=0)


def test_frozen_norms_have_their_own_zero(models, texts):
    ours = models[1]
    given = {"all": Graph.of(ours).edges, "none": []}
    found = evaluate_circuits(ours, *texts, given, norms="frozen", **QUIET).frame
    assert found.faithfulness.tolist() == pytest.approx([1, 0], abs=1e-10)
    assert found.completeness.tolist() == pytest.approx([0, 1], abs=1e-10)


def test_an_answer_read_from_padding_is_refused(models, texts):
    right = LEFT.flip(1)
    clean, corrupted = ({"input_ids": one, "attention_mask": right} for one in texts)
    for metric in ({}, {"metric": "kl", "answers": None}):
        with pytest.raises(InputError, match="positions is -1, which is padding in example 0"):
            patch_paths(models[1], clean, corrupted, **(QUIET | metric))


def test_answers_may_be_texts(demo):
    clean, other = "The house has a red door. The", "The house has a green door. The"
    found = patch_paths(
        demo, clean, other, answers=[[" red", " green"]], senders="L0H0", receivers="logits",
        progress=False,
    )  # fmt: skip
    ids = [[demo.to_single_token(" red"), demo.to_single_token(" green")]]
    same = patch_paths(
        demo, clean, other, answers=ids, senders="L0H0", receivers="logits", progress=False
    )
    assert torch.equal(found.values, same.values)
    assert repr(found).startswith("PathPatching: .frame\n  sender receiver")


def test_many_rows_and_few_give_the_same(models, texts):
    ours = models[1]
    one, many = (patch_paths(ours, *texts, rows=rows, **QUIET).values for rows in (1, 40))
    torch.testing.assert_close(one, many, atol=1e-12, rtol=0)


def test_all_edges_of_a_writer_are_what_it_writes(models, texts):
    """All paths patched at once equal activation patching."""
    ours = models[1]
    graph, options = Graph.of(ours), QUIET | {"direction": "noise"}
    names = [name for name in graph.senders if name != "embed"]
    found = evaluate_circuits(ours, *texts, {n: graph.select(n) for n in names}, **QUIET)
    z = patch_activations(ours, *texts, "z", by="head", **options)
    mlp = patch_activations(ours, *texts, "mlp_out", by="layer", **options)
    expected = {f"L{c.layer}H{c.head}": v for c, v in zip(z.cells, z.values, strict=True)}
    expected |= {f"MLP{c.layer}": v for c, v in zip(mlp.cells, mlp.values, strict=True)}
    expected = torch.stack([expected[name] for name in names])
    torch.testing.assert_close(found.outside.values, expected, atol=1e-10, rtol=0)


def test_all_edges_are_the_other_run_and_none_this_one(models, texts):
    ours = models[1]
    found = evaluate_circuits(ours, *texts, {"all": Graph.of(ours).edges, "none": []}, **QUIET)
    ends = torch.stack([found.inside.clean, found.inside.corrupted])
    torch.testing.assert_close(found.inside.values, ends, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.outside.values, ends.flip(0), atol=1e-10, rtol=0)
    assert found.frame.faithfulness.tolist() == pytest.approx([1, 0], abs=1e-10)
    assert found.frame.completeness.tolist() == pytest.approx([0, 1], abs=1e-10)
    assert found.frame.edges.tolist() == [found.n_edge, 0]
    assert found.area == pytest.approx(0.5)


def test_edges_sum_to_the_whole_where_all_is_linear():
    model = linear_model(n_head=3)
    clean = torch.randint(0, 11, (2, 6), generator=torch.Generator().manual_seed(3))
    corrupted = (clean + 4) % 11
    options = {"answers": torch.tensor([[1, 2], [3, 4]]), "progress": False}
    whole = patch_activations(model, clean, corrupted, "z", by="head", direction="noise", **options)
    paths = patch_paths(model, clean, corrupted, **options).frame.groupby("sender").effect.sum()
    for cell, effect in zip(whole.cells, whole.effects.mean(1).tolist(), strict=True):
        assert paths[f"L{cell.layer}H{cell.head}"] == pytest.approx(effect, abs=1e-10)


def test_the_planted_path_carries_everything():
    """L0 -> L1.K all of what the first head does, Q and V nothing."""
    circuit = induction_circuit(SHARP)
    clean, corrupted = circuit.ids(4), circuit.ids(4)
    corrupted[:, 1 : circuit.length + 1] = circuit.ids(4, seed=9)[:, 1 : circuit.length + 1]
    options = {"positions": circuit.positions, "metric": "cross_entropy", "progress": False}
    (layer, head), (late, matcher) = circuit.previous, circuit.matchers[0]
    first, second = f"L{layer}H{head}", f"L{late}H{matcher}"
    paths = patch_paths(circuit.model, clean, corrupted, senders=first, **options)
    whole = patch_activations(
        circuit.model,
        *(clean, corrupted, "z"),
        layers=layer,
        heads=head,
        by="head",
        direction="noise",
        **options,
    )
    carried = paths.effects.mean(1) / whole.effects.mean()
    by_receiver = dict(zip((e.receiver for e in paths.edges), carried.tolist(), strict=True))
    assert whole.effects.mean() > 1
    assert by_receiver.pop(f"{second}.k") == pytest.approx(1, abs=1e-3)
    assert by_receiver[f"{second}.q"] == pytest.approx(0, abs=1e-6)
    assert by_receiver[f"{second}.v"] == pytest.approx(0, abs=1e-6)
    assert max(map(abs, by_receiver.values())) < 1e-3
    assert paths.table.loc[first, f"{second}.k"] == pytest.approx(
        paths.share[paths.edges.index((first, f"{second}.k"))].item()
    )


def test_a_pruned_model_is_patched_as_the_whole_one(models, texts):
    pruned = prune_heads(models[1], {0: [1]})
    with pytest.raises(UnsupportedError, match="heads of this model were pruned"):
        patch_paths(pruned, *texts, **QUIET)
    found = patch_paths(whole(pruned), *texts, senders=["L0H0", "L0H1"], **QUIET)
    frame = found.frame.groupby("sender").effect
    assert frame.max()["L0H1"] == pytest.approx(0, abs=1e-12)
    assert frame.min()["L0H1"] == pytest.approx(0, abs=1e-12)
    assert frame.max()["L0H0"] > 1e-3


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"senders": "L9H0"}, UnknownNameError, "sender 'L9H0'"),
        ({"receivers": "L1H0.z"}, UnknownNameError, "receiver 'L1H0.z'"),
        ({"senders": "L1H0", "receivers": "L0H1.q"}, InputError, "no edge goes from"),
        ({"direction": "both"}, UnknownNameError, "direction 'both'"),
        ({"norms": "warm"}, UnknownNameError, "norms 'warm'"),
        ({"rows": 0}, InputError, "rows is 0"),
        ({"rows": -1}, InputError, "rows is -1"),
        ({"answers": None}, InputError, "logit_difference needs answers"),
        ({"answers": torch.tensor([1, 2])}, ShapeError, "answers"),
    ],
)
def test_what_is_not_there_is_named(models, texts, options, error, match):
    with pytest.raises(error, match=match):
        patch_paths(models[1], *texts, **(QUIET | options))


def test_wrong_circuits_are_named(models, texts):
    ours = models[1]
    for edges, error, match in (
        ({}, InputError, "there are no circuits"),
        ([("L1H0", "L0H1.q")], InputError, "L1H0 does not come before L0H1.q"),
        (["embed"], InputError, "an edge is 'embed', expected"),
        ([("embed", "L0H7.q")], UnknownNameError, "receiver 'L0H7.q'"),
    ):
        with pytest.raises(error, match=match):
            evaluate_circuits(ours, *texts, edges, **QUIET)
    with pytest.raises(InputError, match="example 0 has 6 tokens clean and 5"):
        evaluate_circuits(ours, texts[0], texts[1][:, :5], [], **QUIET)


def test_a_stream_that_is_no_sum_is_refused(texts):
    post = pair(apply_residual_connection_post_layernorm=True, dtype=torch.float64)[1]
    with pytest.raises(UnsupportedError, match="the stream is no sum"):
        patch_paths(post, *texts, **QUIET)


def test_a_heads_name_stands_for_its_three_readers(models, texts):
    found = patch_paths(models[1], *texts, senders="embed", receivers=["L1H2", "MLP0"], **QUIET)
    assert [str(edge) for edge in found.edges] == [
        "embed -> MLP0",
        "embed -> L1H2.q",
        "embed -> L1H2.k",
        "embed -> L1H2.v",
    ]
