"""A pruned model computes what transformers' model with silenced heads does."""

import pytest
import torch

import bloomlab as bl
from bloomlab.errors import BloomlabError, InputError, ShapeError, UnsupportedError
from bloomlab.model.alibi import alibi_slopes
from bloomlab.model.prune import prune_heads
from tests.experiments.naive import z_edited, zeroed
from tests.folders import out
from tests.tiny import CLASSES, distance_in_eps, notices, pair, tokens

IDS = tokens(3, 9)
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1], [1] * 9])
LIMIT = {torch.float32: 200, torch.bfloat16: 12}  # eps of the largest logit
GONE = {  # of 3 layers x 6 heads
    "some": {0: [1, 4], 2: [0, 2, 3]},
    "a layer": {0: [5], 1: range(6)},
    "all": {0: range(6), 1: range(6), 2: range(6)},
    **{
        f"drawn {seed}": {
            layer: torch.randperm(6, generator=torch.Generator().manual_seed(7 * seed + layer))[
                : 2 * seed + layer
            ]
            for layer in range(3)
        }
        for seed in range(3)
    },
}


def pairs_of(gone):
    return [(layer, int(head)) for layer, some in gone.items() for head in some]


def logits(model, mask=MASK, ids=IDS):
    with torch.no_grad():
        found = model(ids, attention_mask=mask).logits
    return found if mask is None else found[mask.bool()]


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("gone", GONE)
def test_pruned_is_masked(gone, dtype, post_norm):
    theirs, ours = pair(n_layer=3, dtype=dtype, apply_residual_connection_post_layernorm=post_norm)
    pruned = prune_heads(ours, GONE[gone])
    with z_edited(theirs, zeroed(pairs_of(GONE[gone]))):
        assert distance_in_eps(logits(pruned), logits(theirs)) < LIMIT[dtype]
    silent = torch.ones(3, 6)
    for layer, head in pairs_of(GONE[gone]):
        silent[layer, head] = 0
    with torch.no_grad():
        masked = ours(IDS, attention_mask=MASK, head_mask=silent).logits[MASK.bool()]
        again = pruned(IDS, attention_mask=MASK, head_mask=silent).logits[MASK.bool()]
    assert distance_in_eps(logits(pruned), masked) < LIMIT[dtype]
    assert torch.equal(again, logits(pruned))  # a mask is over the whole model's heads


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("gone", ["some", "a layer", "all"])
def test_a_pruned_model_generates_what_the_masked_one_does(gone, dtype, mask):
    theirs, ours = pair(n_layer=3, dtype=dtype)
    pruned = prune_heads(ours, GONE[gone])
    seen = torch.ones_like(IDS) if mask is None else mask
    options = {"max_new_tokens": 12, "do_sample": False}
    with z_edited(theirs, zeroed(pairs_of(GONE[gone]))):
        expected = theirs.generate(IDS, attention_mask=seen, **options)
    assert torch.equal(pruned.generate(IDS, attention_mask=seen, **options), expected)


def mean_of(theirs, batches):
    """Mean z of every head over attended tokens [layer head d_head], by hooks on transformers'."""
    sums, count = [0] * 3, 0

    def noting(layer, mask):
        def note(z):
            sums[layer] = sums[layer] + z[mask.bool()].double().sum(0)

        return note

    for ids, mask in batches:
        with z_edited(theirs, {layer: noting(layer, mask) for layer in range(3)}), torch.no_grad():
            theirs(ids, attention_mask=mask)
        count += int(mask.sum())
    return torch.stack(sums) / count


@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("gone", ["some", "a layer", "drawn 2"])
def test_means_are_folded_into_the_bias(gone, dtype):
    theirs, ours = pair(n_layer=3, dtype=dtype)
    ids, mask = tokens(20, 9, seed=5), MASK[torch.arange(20) % 3]  # more rows than one forward
    mean = mean_of(theirs, [(ids, mask)]).to(dtype)
    pruned = prune_heads(
        ours, GONE[gone], compensate="mean", data={"input_ids": ids, "attention_mask": mask}
    )

    def constant(layer):
        def write(z):
            for at, head in pairs_of(GONE[gone]):
                if at == layer:
                    z[:, :, head] = mean[layer, head]

        return write

    with z_edited(theirs, {layer: constant(layer) for layer in range(3)}):
        assert distance_in_eps(logits(pruned), logits(theirs)) < LIMIT[dtype]
        expected = theirs.generate(IDS, attention_mask=MASK, max_new_tokens=8, do_sample=False)
        got = pruned.generate(IDS, attention_mask=MASK, max_new_tokens=8)
        seen = torch.cat([MASK, torch.ones_like(got[:, 9:])], 1)
        with torch.no_grad():
            after = theirs(got, attention_mask=seen).logits[:, 8:-1].double()
    assert torch.equal(got, expected) or dtype == torch.bfloat16
    # the folded bias is rounded once more, so in bfloat16 a near tie may fall the other way
    said = after.gather(-1, got[:, 9:, None])[..., 0]
    assert (after.amax(-1) - said).max() <= LIMIT[dtype] * torch.finfo(
        dtype
    ).eps * after.abs().max()
    constant = prune_heads(ours, GONE[gone], compensate="constant", values=mean)
    assert distance_in_eps(logits(constant), logits(pruned)) < LIMIT[dtype]
    zero = prune_heads(ours, GONE[gone])
    assert distance_in_eps(logits(zero), logits(pruned)) > 3 * LIMIT[dtype]


def test_padding_does_not_count_in_a_mean():
    _, ours = pair(n_layer=3)
    whole = prune_heads(ours, GONE["some"], compensate="mean", data=IDS[:1, 3:])
    data = {"tokens": IDS[:1], "attention_mask": MASK[:1]}
    padded = prune_heads(ours, GONE["some"], compensate="mean", data=data)
    for block, other in zip(whole.blocks, padded.blocks, strict=True):
        torch.testing.assert_close(block.attn.b_O, other.attn.b_O, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("n_head", [4, 6, 12])
def test_slopes_follow_the_heads_and_not_their_number(n_head):
    theirs, ours = pair(n_layer=1, n_head=n_head)
    pruned = prune_heads(ours, {0: [0, n_head - 1]})
    kept = pruned.kept_heads[0]
    assert torch.equal(pruned.blocks[0].attn.slopes, ours.blocks[0].attn.slopes[kept])
    with z_edited(theirs, zeroed([(0, 0), (0, n_head - 1)])):
        expected = logits(theirs)
    assert distance_in_eps(logits(pruned), expected) < 200
    pruned.blocks[0].attn.slopes = alibi_slopes(n_head - 2)  # what others do; it must not pass
    assert distance_in_eps(logits(pruned), expected) > 1e4


def test_the_given_model_is_left_alone_and_shares_nothing():
    _, ours = pair(n_layer=3)
    before, copies = out(ours), {n: p.detach().clone() for n, p in ours.named_parameters()}
    pruned = prune_heads(ours, GONE["some"])
    with torch.no_grad():
        for value in pruned.parameters():
            value.add_(1)
    for block in pruned.blocks:
        block.attn.slopes += 1
    assert torch.equal(out(ours), before)
    assert all(torch.equal(p, copies[n]) for n, p in ours.named_parameters())
    assert ours.config.kept_heads is None
    assert ours.kept_heads == {layer: [0, 1, 2, 3, 4, 5] for layer in range(3)}


def test_without_any_head_a_token_sees_itself_alone_and_the_log_says_so():
    _, ours = pair()
    with notices("no head is left in any of the 2 layers. What remains: embedding, MLPs"):
        pruned = prune_heads(ours, {layer: range(6) for layer in range(2)})
    ids = tokens(1, 6)
    alone = torch.stack([pruned(ids[:, [i]]).logits[0, 0] for i in range(6)])
    torch.testing.assert_close(pruned(ids).logits[0], alone)


def test_pruning_twice_is_pruning_once():
    _, ours = pair(n_layer=3)
    once = prune_heads(ours, {0: [1, 4], 1: range(6), 2: [3]})
    twice = prune_heads(prune_heads(ours, [(0, 4), (1, 0), (1, 5), (2, 3)]), {0: 1, 1: range(1, 5)})
    assert once.kept_heads == twice.kept_heads == {0: [0, 2, 3, 5], 1: [], 2: [0, 1, 2, 4, 5]}
    assert torch.equal(logits(once), logits(twice))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("kind", CLASSES)
def test_every_class_can_be_pruned(kind, training):
    theirs, ours = pair(kind)
    ours.embed.weight.requires_grad_(False)
    pruned = prune_heads(ours.train(training), {0: [2, 3], 1: [0]})
    assert type(pruned) is getattr(bl, kind)
    assert pruned.training == training
    assert [n for n, p in pruned.named_parameters() if not p.requires_grad] == ["embed.weight"]
    base = theirs if kind == "BloomModel" else theirs.transformer
    handles = []
    for layer, heads in ((0, [2, 3]), (1, [0])):

        def silence(module, arguments, heads=heads):
            z = arguments[0].unflatten(-1, (6, -1)).clone()
            z[:, :, heads] = 0
            return (z.flatten(-2), *arguments[1:])

        handles.append(base.h[layer].self_attention.dense.register_forward_pre_hook(silence))
    assert distance_in_eps(out(pruned.eval()), out(theirs)) < 200


def test_a_pruned_model_learns():
    _, ours = pair(n_layer=3)
    pruned = prune_heads(ours, GONE["a layer"])
    pruned(IDS, return_type="loss").backward()
    assert pruned.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    assert pruned.blocks[1].attn.o.bias.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("heads", "options", "says"),
    [
        ({0: [6]}, {}, r"layer 0 has no head 6 \(pruned, .*; it has 0, 2 to 5"),
        ({0: [1]}, {}, "layer 0 has no head 1"),
        ({1: [0]}, {}, "layer 1 has no head 0 .* it has none"),
        ({0: [-1]}, {}, "no head -1"),
        ({3: [0]}, {}, "no layer 3; they run from 0 to 2"),
        ([(0, 0.5)], {}, "expected {layer: its heads}"),
        ({0: [True]}, {}, "expected {layer: its heads}"),
        ("L0H0", {}, "expected {layer: its heads}"),
        (7, {}, "expected {layer: its heads}"),
        ({}, {}, "no heads to prune"),
        ({0: []}, {}, "no heads to prune"),
        ({0: [0]}, {"compensate": "median"}, "compensate is 'median', expected one of"),
        ({0: [0]}, {"compensate": "mean"}, "data is missing"),
        ({0: [0]}, {"data": IDS}, "data is of no use"),
        ({0: [0]}, {"compensate": "constant"}, "values is missing"),
        ({0: [0]}, {"compensate": "mean", "data": IDS[:0]}, "dataset is empty"),
        (
            {0: [0]},
            {"compensate": "constant", "values": torch.full((3, 6, 8), torch.nan)},
            "NaN or infinite",
        ),
    ],
)
def test_mistakes_are_told(heads, options, says):
    _, ours = pair(n_layer=3)
    pruned = prune_heads(ours, {0: [1], 1: range(6)})
    with pytest.raises(InputError, match=says) as caught:
        prune_heads(pruned, heads, **options)
    assert isinstance(caught.value, BloomlabError)


def test_shapes_and_modes_and_adapters_are_checked():
    _, ours = pair(n_layer=3, hidden_dropout=0.1)
    with pytest.raises(ShapeError, match=r"expected \(3, 6, 8\): \[layer head d_head\]"):
        prune_heads(ours, {0: [0]}, compensate="constant", values=torch.zeros(6, 8))
    with pytest.raises(InputError, match="training mode"):
        prune_heads(ours.train(), {0: [0]}, compensate="mean", data=IDS)
    ours.blocks[0].extra = torch.nn.Linear(2, 2)
    with pytest.raises(UnsupportedError, match="blocks.0.extra.bias"):
        prune_heads(ours, {0: [0]})
