"""Law 8: the batched, resumed, prefix-sharing sweep equals one full forward per head."""

import pytest
import torch

from bloomlab.errors import InputError, NumericalError, UnknownNameError
from bloomlab.experiments import ablate_heads
from tests.experiments.naive import (
    LIMIT,
    MASKS,
    SINGLES,
    N,
    cross_entropy,
    double_pair,
    logits_of,
    loop,
    mask_of,
    zeroed,
)
from tests.tiny import pair, tokens


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("dtype", LIMIT)
def test_the_sweep_equals_the_naive_loop(dtype, padding, post_norm):
    fields = {"n_layer": 3, "apply_residual_connection_post_layernorm": post_norm}
    theirs, ours = pair(dtype=dtype, **fields)
    ids, mask = tokens(3, N), mask_of(padding)
    got = ablate_heads(ours, ids, attention_mask=mask)
    assert list(got.frame.columns) == ["layer", "head", "effect", "stderr"]
    assert got.sets == SINGLES
    expected = loop(ours, ids, mask, SINGLES)
    assert (got.effects - expected).abs().max() < LIMIT[dtype]
    if dtype == torch.float32:
        clean = cross_entropy(logits_of(theirs, ids, mask), ids, mask)
        hf = torch.stack(
            [
                cross_entropy(logits_of(theirs, ids, mask, zeroed(one)), ids, mask) - clean
                for one in SINGLES
            ]
        )
        assert (got.effects - hf).abs().max() < 1e-4
        assert (got.clean - clean).abs().max() < 1e-4
    assert got.frame.effect.tolist() == pytest.approx(expected.mean(-1).tolist(), abs=1e-4)
    error = expected.std(-1) / 3**0.5
    assert got.frame.stderr.tolist() == pytest.approx(error.tolist(), abs=1e-4)


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("positions", [-1, [4], [3, 7, 5]])
def test_a_metric_at_some_positions_sees_these_logits(padding, positions):
    _, ours = double_pair(n_layer=3)
    ids, mask = tokens(3, N), mask_of(padding)

    def metric(logits, seen):
        assert seen.shape[1] == N
        return logits[..., 11].sum(-1) + logits[:, -1, 3]

    got = ablate_heads(ours, ids, metric, positions=positions, attention_mask=mask)
    at = torch.tensor(positions).reshape(-1)
    with torch.no_grad():
        clean = metric(ours(ids, attention_mask=mask).logits[:, at], ids)
        for one, effect in zip(got.sets, got.effects, strict=True):
            heads = torch.ones(3, 6)
            heads[one[0]] = 0
            logits = ours(ids, attention_mask=mask, head_mask=heads).logits[:, at]
            assert (effect - (metric(logits, ids) - clean)).abs().max() < 1e-10


@pytest.mark.parametrize("rows", [1, 2, 5, None])
def test_however_rows_are_batched(rows):
    _, ours = double_pair()
    ids = tokens(4, N)
    got = ablate_heads(ours, ids, rows=rows).effects
    assert (got - ablate_heads(ours, ids).effects).abs().max() < 1e-12


def test_a_masked_model_is_swept_around_its_mask():
    _, ours = double_pair(n_layer=3)
    ids = tokens(2, N)
    heads = torch.rand(3, 6, dtype=torch.float64)
    heads[1, 2] = 0
    for positions in (None, -2):
        got = ablate_heads(ours, ids, head_mask=heads, positions=positions)
        at = slice(None) if positions is None else slice(positions, positions + 1)
        target = ids[:, 1:] if positions is None else ids[:, -1:]

        def loss(mask, at=at, target=target):
            logits = ours(ids, head_mask=mask).logits[:, at][:, : target.shape[1]]
            return torch.nn.functional.cross_entropy(logits.mT, target, reduction="none").mean(-1)

        with torch.no_grad():
            for one, effect in zip(got.sets, got.effects, strict=True):
                without = heads.clone()
                without[one[0]] = 0
                assert (effect - (loss(without) - loss(heads))).abs().max() < 1e-10
        assert got.matrix[1, 2] == 0


@pytest.mark.parametrize("positions", [None, -1])
def test_layer_evaluations_are_what_the_cone_rule_says(positions):
    _, ours = pair(n_layer=4)
    rows, n_layer, n_head = 2, 4, 6
    ran = []
    for block in ours.blocks:
        block.register_forward_hook(lambda module, given, out: ran.append(len(given[0])))

    def metric(logits, _):
        return logits[:, 0, 0]

    got = ablate_heads(ours, tokens(rows, N), metric, positions=positions)
    assert sum(ran) == got.evaluations.layers
    ablations = rows * n_head
    assert got.evaluations.mlps == ablations * n_layer
    whole = ablations * n_layer * (n_layer - 1) // 2
    at_few = ablations * (n_layer - 1) if positions == -1 else 0
    assert got.evaluations.last_layers == at_few
    assert got.evaluations.layers == rows * n_layer + whole - at_few
    naive = ablations * n_layer**2
    assert got.evaluations.layers + got.evaluations.mlps < 0.75 * naive


def test_named_metrics_are_what_they_say():
    theirs, ours = pair()
    ids, mask = tokens(3, N), mask_of("left")
    before = logits_of(theirs, ids, mask)
    after = logits_of(theirs, ids, mask, zeroed([(0, 3)]))
    seen = (mask[:, 1:] * mask[:, :-1]).bool()
    target = ids[:, 1:]

    def mean(values, where=seen):
        return torch.stack([v[w].mean() for v, w in zip(values, where, strict=True)])

    def of(logits):
        chance = logits.softmax(-1)[:, :-1].gather(-1, target[..., None])[..., 0]
        right = (logits[:, :-1].argmax(-1) == target).float()
        return {"probability": mean(chance), "accuracy": mean(right)}

    expected = {name: of(after)[name] - of(before)[name] for name in ("probability", "accuracy")}
    p, q = before.log_softmax(-1), after.log_softmax(-1)
    expected["kl"] = mean((p.exp() * (p - q)).sum(-1), mask.bool())
    answers = torch.tensor([[5, 9], [11, 3], [7, 7]])
    last = (after - before)[:, -1]
    row = torch.arange(3)
    expected["logit_difference"] = last[row, answers[:, 0]] - last[row, answers[:, 1]]
    for name, value in expected.items():
        options = {}
        if name == "logit_difference":
            options = {"answers": answers, "positions": -1}
        got = ablate_heads(ours, ids, name, heads=[(0, 3)], attention_mask=mask, **options)
        torch.testing.assert_close(got.effects[0], value, atol=1e-4, rtol=1e-3)
    for name in ("probability", "cross_entropy", "accuracy"):
        got = ablate_heads(
            ours,
            ids,
            name,
            heads=[(0, 3)],
            attention_mask=mask,
            answers=answers[:, 0],
            positions=-1,
        )
        chance = [x[row, -1].log_softmax(-1)[row, answers[:, 0]] for x in (after, before)]
        value = {
            "probability": chance[0].exp() - chance[1].exp(),
            "cross_entropy": chance[1] - chance[0],
            "accuracy": (after[:, -1].argmax(-1) == answers[:, 0]).float()
            - (before[:, -1].argmax(-1) == answers[:, 0]).float(),
        }[name]
        torch.testing.assert_close(got.effects[0], value, atol=1e-4, rtol=1e-3)


def test_pairs_and_half_precision():
    _, ours = pair(dtype=torch.bfloat16)
    ids = tokens(2, N)
    got = ablate_heads(ours, ids, heads="pairs")
    assert len(got.sets) == 12 * 11 // 2
    mask = torch.ones(2, 6)
    mask[0, 1] = mask[1, 4] = 0
    where = got.sets.index(((0, 1), (1, 4)))
    with torch.no_grad():
        losses = [
            cross_entropy(ours(ids, head_mask=m).logits.float(), ids) for m in (mask, mask * 0 + 1)
        ]
    assert (got.effects[where] - (losses[0] - losses[1])).abs().max() < 0.1
    assert got.effects.dtype == torch.float32


def test_intervals_hold_the_mean_and_a_text_is_data(demo):
    texts = ["The cat sat on the mat.", "A dog ran over the green hill.", "He said that it was so."]
    got = ablate_heads(demo, texts, heads=[(0, 0), (1, 1)])
    frame = got.intervals(0.9, draws=500)
    assert (frame.low <= frame.effect).all()
    assert (frame.effect <= frame.high).all()
    ids, mask = demo.to_tokens_and_mask(texts)
    same = ablate_heads(demo, {"input_ids": ids, "attention_mask": mask}, heads=[(0, 0), (1, 1)])
    assert torch.equal(got.effects, same.effects)
    assert torch.isnan(ablate_heads(demo, texts[0], heads=[(0, 0)]).stderr).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"heads": [(0, 6)]}, InputError, "no head L0H6: the model has layers 0 to 1 with heads"),
        ({"heads": [(2, 0)]}, InputError, "no head L2H0"),
        ({"heads": [(-1, 0)]}, InputError, "no head L-1H0"),
        ({"heads": []}, InputError, "no heads to ablate"),
        ({"heads": "all"}, InputError, "expected None, 'pairs'"),
        ({"heads": [3, 4]}, InputError, "heads holds 3"),
        ({"metric": "cross_entrpy"}, UnknownNameError, "Did you mean 'cross_entropy'"),
        ({"kind": "zeros"}, UnknownNameError, "Did you mean 'zero'"),
        ({"metric": lambda logits, ids: logits.sum()}, InputError, r"returned \(\), expected"),
        ({"metric": lambda logits, ids: 1.0}, InputError, "returned float, expected a tensor"),
        ({"metric": lambda x, ids: x[:, 0, 0] / (ids[:, 0] - ids[1, 0])}, NumericalError,
         "for example 1"),
        ({"positions": 9}, InputError, "expected columns from -9 to 8"),
        ({"positions": -1}, InputError, "example 0 has no next token there. Give answers"),
        ({"metric": "logit_difference"}, InputError, "needs answers"),
        ({"metric": "kl", "answers": [1, 2]}, InputError, "takes no answers"),
        ({"answers": [1, 2]}, InputError, "answers stand at one position"),
        ({"answers": [1, 2, 3], "positions": -1}, InputError, r"expected \[2\] token ids"),
        ({"answers": [" blue", " red"], "positions": -1}, InputError, "expected token ids"),
        ({"columns": [9]}, InputError, "columns is"),
        ({"head_mask": torch.ones(6)}, InputError, "expected .2, 6.: .layer head."),
        ({"reference": tokens(2, 4)}, InputError, "kind 'zero' takes no reference"),
        ({"kind": "mean", "reference": tokens(2, 4), "per_position": True}, InputError,
         "the reference has 4 columns"),
        ({"tokens": tokens(2, 9)[:0]}, InputError, "the dataset is empty"),
        ({"tokens": tokens(2, 9)[0]}, InputError, "Use ids"),
        ({"tokens": {"text": 3}}, InputError, "expected `input_ids` or"),
        ({"tokens": torch.rand(2, 3)}, InputError, "the data is Tensor"),
        ({"attention_mask": torch.zeros(2, 9)}, InputError, "example 0 is all padding"),
        ({"attention_mask": torch.ones(2, 8)}, InputError, "attention_mask has shape"),
        ({"kind": "resample", "tokens": tokens(1, 9)}, InputError, "needs another example"),
    ],
)  # fmt: skip
def test_wrong_input_is_told(arguments, error, message):
    _, ours = pair()
    with pytest.raises(error, match=message):
        ablate_heads(ours, **{"tokens": tokens(2, 9), **arguments})


def test_a_result_shows_its_frame():
    found = ablate_heads(pair()[1], tokens(2, 9))
    assert repr(found).startswith("Ablation: .frame, the first 6 of 12 rows\n   layer  head")


def test_hooks_and_dropout_are_refused():
    _, ours = pair(hidden_dropout=0.1)
    hook = ("blocks.0.attn.hook_z", lambda z, hook: z)
    with ours.hooks(fwd_hooks=[hook]), pytest.raises(InputError, match=r"attached at blocks\.0"):
        ablate_heads(ours, tokens(2, 9))
    with pytest.raises(InputError, match="in training mode"):
        ablate_heads(ours.train(), tokens(2, 9))
