"""Law 8: the batched, resumed, prefix-sharing sweep equals one full forward per head."""

import pytest
import torch

from bloomlab.errors import InputError, NumericalError, UnknownNameError
from bloomlab.experiments import ablate_heads
from tests.experiments.naive import cross_entropy, logits_of, valued, z_of, zeroed
from tests.tiny import pair, tokens

N = 9
MASKS = {
    "none": None,
    "left": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1], [1] * 9],
    "ragged": [[0, 0, 1, 1, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1, 1, 1, 1], [1] * 9],
}
LIMIT = {torch.float64: 1e-10, torch.float32: 1e-5}


def mask_of(name):
    return None if MASKS[name] is None else torch.tensor(MASKS[name])


def double_pair(**fields):
    """transformers forces its softmax into float32; in float64 ours is compared with ours."""
    return pair(dtype=torch.float64, **fields)


def loop(ours, ids, mask, sets, value=None, columns=slice(None)):
    """Effects on the cross-entropy by one full forward of ours each, edited by a hook at z."""

    def loss(heads):
        def hook_of(layer, own):
            def edit(z, hook):
                for head in own:
                    new = 0.0 if value is None else value(layer, head)
                    z[:, columns, head] = new[:, columns] if isinstance(new, torch.Tensor) else new

            return (f"blocks.{layer}.attn.hook_z", edit)

        layers = sorted({layer for layer, _ in heads})
        hooks = [hook_of(layer, [h for at, h in heads if at == layer]) for layer in layers]
        logits = ours.run_with_hooks(
            ids, attention_mask=mask, fwd_hooks=hooks, return_type="logits"
        )
        return cross_entropy(logits, ids, mask)

    with torch.no_grad():
        clean = loss(())
        return torch.stack([loss(heads) - clean for heads in sets])


SINGLES = [((layer, head),) for layer in range(3) for head in range(6)]


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


@pytest.mark.parametrize("padding", ["none", "ragged"])
@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_sets_of_heads_across_layers(kind, padding):
    _, ours = double_pair(n_layer=3)
    ids, mask = tokens(3, N), mask_of(padding)
    sets = [((0, 1), (2, 3)), ((0, 0), (0, 5)), ((1, 2),), ((0, 4), (1, 1), (1, 5), (2, 0))]
    got = ablate_heads(ours, ids, kind=kind, heads=sets, attention_mask=mask)
    assert got.frame.heads[0] == "L0H1 L2H3"
    value = value_of(ours, ids, mask, kind)
    assert (got.effects - loop(ours, ids, mask, sets, value)).abs().max() < 1e-10


def value_of(ours, ids, mask, kind, *, per_position=False, seed=0):
    """What an ablated head writes, by its definition."""
    if kind == "zero":
        return None
    _, cache = ours.run_with_cache(ids, attention_mask=mask)
    seen = (torch.ones_like(ids) if mask is None else mask).bool()
    if kind == "mean":
        if per_position:
            counts = seen[..., None].sum(0)
            return lambda l, h: ((cache["z", l][:, :, h] * seen[..., None]).sum(0) / counts)[None]
        return lambda l, h: cache["z", l][:, :, h][seen].mean(0)[None, None].expand(1, N, -1)
    n = len(ids)
    source = torch.Generator().manual_seed(seed)
    donor = (torch.arange(n) + torch.randint(1, n, (n,), generator=source)) % n
    assert (donor != torch.arange(n)).all()

    def theirs(layer, head):
        z, new = cache["z", layer][:, :, head], []
        for i in range(n):
            given, row, count = z[donor[i]][seen[donor[i]]], [], 0
            for column in range(N):
                count += int(seen[i, column])
                row.append(given[max(count - 1, 0) % len(given)])
            new.append(torch.stack(row))
        return torch.stack(new)

    return theirs


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize(
    ("kind", "options"), [("mean", {}), ("mean", {"per_position": True}), ("resample", {})]
)
def test_kinds_of_ablation_equal_their_definition(kind, options, padding):
    _, ours = double_pair(n_layer=3)
    ids, mask = tokens(3, N), mask_of(padding)
    got = ablate_heads(ours, ids, kind=kind, attention_mask=mask, **options)
    value = value_of(ours, ids, mask, kind, **options)
    assert (got.effects - loop(ours, ids, mask, SINGLES, value)).abs().max() < 1e-10


def test_means_and_donors_come_from_a_reference():
    _, ours = double_pair()
    ids, other = tokens(3, N), tokens(5, N, seed=8)
    mean = z_mean = ours.run_with_cache(other)[1]
    got = ablate_heads(ours, ids, kind="mean", reference=other)
    expected = loop(
        ours,
        ids,
        None,
        got.sets,
        lambda l, h: z_mean["z", l][:, :, h].mean((0, 1))[None, None].expand(1, N, -1),
    )
    assert (got.effects - expected).abs().max() < 1e-10
    got = ablate_heads(ours, ids, kind="resample", reference=other, seed=4)
    chosen = torch.randint(0, 5, (3,), generator=torch.Generator().manual_seed(4))
    expected = loop(ours, ids, None, got.sets, lambda l, h: mean["z", l][chosen][:, :, h])
    assert (got.effects - expected).abs().max() < 1e-10


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
@pytest.mark.parametrize("positions", [None, -1, [2, 6]])
def test_late_columns_share_the_prefix(kind, padding, positions):
    _, ours = double_pair(n_layer=3)
    ids, mask = tokens(3, N), mask_of(padding)
    sets = [*SINGLES, ((0, 1), (2, 3)), ((0, 2), (1, 2))]
    columns = [5, 7, 8]
    at = torch.arange(N) if positions is None else torch.tensor(positions).reshape(-1)
    # queries of leading padding see all keys of their own forward, so prefixes differ there
    attended = (torch.ones_like(ids) if mask is None else mask)[:, at]

    def metric(logits, _):
        return ((logits[..., 5] - logits[..., 8]) * attended).sum(-1)

    got = ablate_heads(
        ours, ids, metric, kind, sets, positions, attention_mask=mask, columns=columns, rows=3
    )
    value = value_of(ours, ids, mask, kind)
    with torch.no_grad():
        clean = metric(ours(ids, attention_mask=mask).logits[:, at], ids)
        for one, effect in zip(sets, got.effects, strict=True):

            def hook(layer, one=one):
                def edit(z, hook):
                    for at_layer, head in one:
                        if at_layer == layer:
                            new = 0.0 if value is None else value(layer, head)[:, columns]
                            z[:, columns, head] = new

                return edit

            hooks = [(f"blocks.{layer}.attn.hook_z", hook(layer)) for layer in range(3)]
            logits = ours.run_with_hooks(
                ids, attention_mask=mask, fwd_hooks=hooks, return_type="logits"
            )
            assert (effect - (metric(logits[:, at], ids) - clean)).abs().max() < 1e-10


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


def test_hooks_and_dropout_are_refused():
    _, ours = pair(hidden_dropout=0.1)
    hook = ("blocks.0.attn.hook_z", lambda z, hook: z)
    with ours.hooks(fwd_hooks=[hook]), pytest.raises(InputError, match=r"attached at blocks\.0"):
        ablate_heads(ours, tokens(2, 9))
    with pytest.raises(InputError, match="in training mode"):
        ablate_heads(ours.train(), tokens(2, 9))
