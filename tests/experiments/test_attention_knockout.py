"""Edges of attention cut in windows of layers equal forwards written straight down."""

import pytest
import torch

from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments import ablate_heads, knock_out_attention
from tests.planted import SHARP, induction_circuit
from tests.straight import straight
from tests.tiny import pair, tokens

LENGTH, N_LAYER, N_HEAD = 6, 3, 3
RIGHT, WRONG = 5, 9
ANSWERS = torch.tensor([[RIGHT, WRONG]] * 2)
IDS = tokens(2, LENGTH)
LEFT = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
OPTIONS = {"metric": "logit_difference", "answers": ANSWERS, "progress": False}


@pytest.fixture(scope="module")
def models():
    return pair(hidden_size=24, n_head=N_HEAD, n_layer=N_LAYER, dtype=torch.float64)


def slow(hf, cell, edges, window=1, *, renormalise=True, mask=None):
    """Difference of logits when (query, key) columns are cut around a layer."""
    first = max(0, cell.layer - window // 2)
    heads = slice(None) if cell.head is None else cell.head
    point, gone = ("attn_scores", -torch.inf) if renormalise else ("pattern", 0.0)

    def cut(value):
        value = value.clone()
        for row, query, key in edges:
            value[row, heads, query, key] = gone
        return value

    some = range(first, min(N_LAYER, cell.layer - (-window // 2)))
    edits = {f"blocks.{layer}.attn.hook_{point}": cut for layer in some}
    logits = straight(hf, IDS, mask, edits=edits)[0]
    return logits[:, -1, RIGHT] - logits[:, -1, WRONG]


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("window", [1, 2, 3])
@torch.no_grad()
def test_every_window_equals_a_forward_of_its_own(models, window, renormalise):
    hf, ours = models
    options = {"window": window, "renormalise": renormalise, **OPTIONS}
    found = knock_out_attention(ours, IDS, keys=[1, 2], queries=[-1, 3], **options)
    edges = [(row, query, key) for row in (0, 1) for query in (5, 3) for key in (1, 2)]
    expected = [slow(hf, c, edges, window, renormalise=renormalise) for c in found.cells]
    torch.testing.assert_close(found.values, torch.stack(expected), atol=1e-10, rtol=0)
    assert found.effects.abs().max() > 1e-2


@torch.no_grad()
def test_heads_alone_and_padding(models):
    hf, ours = models
    given = {"input_ids": IDS, "attention_mask": LEFT}
    found = knock_out_attention(ours, given, keys=1, queries=-1, by="head", **OPTIONS)
    assert len(found.cells) == N_LAYER * N_HEAD
    edges = [(0, 5, 3), (1, 5, 1)]  # padding is not counted
    expected = [slow(hf, cell, edges, mask=LEFT) for cell in found.cells]
    torch.testing.assert_close(found.values, torch.stack(expected), atol=1e-10, rtol=0)
    mask = torch.zeros_like(LEFT).bool()
    mask[0, 3] = mask[1, 1] = True
    same = knock_out_attention(ours, given, keys=mask, queries=-1, by="head", rows=1, **OPTIONS)
    torch.testing.assert_close(same.values, found.values, atol=1e-12, rtol=0)


@torch.no_grad()
def test_the_planted_edge_is_worth_the_head_and_others_their_weight():
    """Cutting what the matcher looks at costs what losing it costs; other edges cost nothing."""
    circuit = induction_circuit(SHARP)
    layer, head = circuit.matchers[0]
    ids, last = circuit.ids(4), circuit.positions[-1]
    looked_at = last - circuit.length + 1
    options = {"positions": last, "progress": False}
    lost = ablate_heads(
        circuit.model, ids, metric="cross_entropy", kind="zero", heads=[(layer, head)],
        positions=last,
    )  # fmt: skip
    expected = lost.frame.effect[0]
    found = {}
    for key in range(ids.shape[1] - 1):
        cut = knock_out_attention(
            circuit.model, ids, "cross_entropy", keys=key, queries=last, by="head",
            layers=layer, heads=head, renormalise=False, **options,
        )  # fmt: skip
        found[key] = cut.effects.mean().item()
    assert expected > 5
    assert found.pop(looked_at) == pytest.approx(expected, rel=1e-3)
    trace = circuit.model.trace(ids)
    pattern = trace.pattern(layer, head)[:, last]
    for key, effect in found.items():  # a bound: the weight, times what all of it is worth
        assert abs(effect) <= 2 * expected * pattern[:, key].max().item() + 1e-9


def test_a_frame_says_how_much_is_lost(models):
    found = knock_out_attention(
        models[1], IDS, "probability", keys=0, answers=torch.tensor([5, 9]), progress=False
    )
    frame = found.frame
    assert list(frame.columns) == ["layer", "effect", "stderr", "change", "change_stderr"]
    expected = found.effects.mean(1) / found.clean.mean()
    assert frame.change.tolist() == pytest.approx(expected.tolist())


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"by": "edge"}, UnknownNameError, "by 'edge'"),
        ({"window": 0}, InputError, "window is 0"),
        ({"keys": 9}, InputError, "keys is 9"),
        ({"queries": [1.5]}, InputError, "queries is"),
        ({"keys": 4, "queries": 2}, InputError, "see none of the keys"),
        ({"keys": [0, 1], "queries": 1}, InputError, "column 1 of text 0 would see nothing"),
        ({"keys": torch.ones(2, 3).bool()}, ShapeError, "keys"),
        ({"keys": "word"}, InputError, "keys is 'word'"),
        ({"keys": torch.eye(6)[[0, 5]].bool(), "queries": 2}, InputError, "in text 1 the queries"),
    ],
)
def test_what_cannot_be_cut_is_refused(models, options, error, match):
    with pytest.raises(error, match=match):
        knock_out_attention(models[1], IDS, **({"keys": 0} | OPTIONS | options))


@torch.no_grad()
def test_the_answer_is_the_models_own_where_none_is_given(models):
    best = models[1](IDS).logits[:, -1].argmax(-1)
    found, same = (
        knock_out_attention(models[1], IDS, keys=0, answers=answers, progress=False)
        for answers in (None, best)
    )
    assert torch.equal(found.values, same.values)


@torch.no_grad()
def test_a_query_may_lose_all_its_keys_when_nothing_is_shared(models):
    found = knock_out_attention(
        models[1], IDS, keys=list(range(6)), queries=5, renormalise=False, **OPTIONS
    )
    assert bool(found.values.isfinite().all())
