"""Everything a whole model does, a pruned one does, under the numbers its heads had."""

import numpy as np
import pytest
import torch
import transformers

import bloomlab as bl
from bloomlab import interventions
from bloomlab.errors import InputError, UnknownNameError, UnsupportedError
from bloomlab.experiments import ablate_heads
from bloomlab.model import inflate
from bloomlab.model.prune import prune_heads
from tests.tiny import distance_in_eps, pair, tokens

IDS = tokens(3, 9)
MASK = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1], [1] * 9])
GONE = {0: [1, 4], 1: range(6), 2: [0]}


@pytest.fixture(scope="module")
def whole():
    return pair(n_layer=3)[1]


@pytest.fixture(scope="module")
def pruned(whole):
    return prune_heads(whole, GONE)


@pytest.fixture(scope="module")
def silent():
    mask = torch.ones(3, 6)
    for layer, heads in GONE.items():
        mask[layer, list(heads)] = 0
    return mask


def close(one, other):
    return distance_in_eps(one, other) < 200


@pytest.mark.parametrize("mask", [None, MASK])
def test_the_ragged_cache_holds_what_one_forward_computes(mask, whole, pruned, silent):
    past = bl.KVCache()
    with torch.no_grad():
        expected = whole(IDS, attention_mask=mask, head_mask=silent).logits
        parts = []
        for start, stop in ((0, 4), (4, 5), (5, 9)):
            part = None if mask is None else mask[:, :stop]
            new = pruned(IDS[:, start:stop], attention_mask=part, past_key_values=past)
            parts.append(new.logits)
    seen = MASK.bool() if mask is not None else torch.ones_like(MASK).bool()
    assert close(torch.cat(parts, 1)[seen], expected[seen])
    assert [past.keys(layer).shape[1] for layer in range(3)] == [4, 0, 5]
    n_column = past.keys(0).shape[2]
    numbers = sum(past.keys(i).numel() + past.values(i).numel() for i in range(3))
    assert numbers == 3 * n_column * 2 * 8 * 9


def test_caches_of_pruned_models_can_be_cut_saved_and_edited(pruned, tmp_path):
    past = bl.KVCache()
    with torch.no_grad():
        pruned(IDS, past_key_values=past)
        straight = pruned(IDS[:, -1:], past_key_values=past.fork()).logits
        past.save(tmp_path / "past")
        for other in (
            bl.KVCache.load(tmp_path / "past"),
            past.fork(2).gather([0, 2, 4]),
            past.splice(past, columns=[1, 2]),
            past.splice(past, columns=[1], layers=2, heads=4),
            bl.KVCache.from_hf(past.to_hf()),
        ):
            assert torch.equal(pruned(IDS[:, -1:], past_key_values=other).logits, straight)
        short = pruned(IDS[:, 5:], past_key_values=past.crop(5)).logits
    assert close(short[:, -1:], pruned(IDS).logits[:, -1:])


def test_transformers_own_cache_may_be_ragged(pruned):
    past = transformers.DynamicCache()
    with torch.no_grad():
        expected = pruned(IDS).logits
        for start, stop in ((0, 4), (4, 9)):
            found = pruned(IDS[:, start:stop], past_key_values=past).logits
    assert close(found, expected[:, 4:])
    assert [layer.keys.shape[1:3] for layer in past.layers] == [(4, 9), (0, 9), (5, 9)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 10},
        {"max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2},
        {"max_new_tokens": 8, "do_sample": True, "seed": 3, "num_return_sequences": 2},
        {"max_new_tokens": 6, "use_cache": False},
    ],
)
def test_generation_is_that_of_the_masked_model(options, dtype, silent):
    _, whole = pair(n_layer=3, dtype=dtype)
    pruned = prune_heads(whole, GONE)
    expected = whole.generate(IDS, attention_mask=MASK, head_mask=silent, **options)
    assert torch.equal(pruned.generate(IDS, attention_mask=MASK, **options), expected)


@pytest.mark.parametrize(
    "policy", [bl.SinkWindow(sinks=2, window=4), bl.HeavyHitters(heavy=2, recent=4)]
)
def test_policies_work_on_ragged_caches(policy, whole, pruned, silent):
    options = {"max_new_tokens": 8}
    found = pruned.generate(IDS, past_key_values=bl.KVCache(policy=policy), **options)
    past = bl.KVCache(policy=policy)
    assert torch.equal(
        found, whole.generate(IDS, past_key_values=past, head_mask=silent, **options)
    )


def test_a_traced_stream_equals_one_forward(whole, pruned, silent):
    steps = list(pruned.stream(IDS, attention_mask=MASK, max_new_tokens=5, trace=True))
    text = torch.cat([IDS, *(step.token[:, None] for step in steps[:-1])], 1)
    seen = torch.cat([MASK, torch.ones(3, 4, dtype=torch.long)], 1)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(3)]
    logits, cache = whole.run_with_cache(
        text, attention_mask=seen, head_mask=silent, names_filter=names
    )
    assert close(steps[-1].logits, logits[:, -1])
    for trace in (steps[-1].trace, pruned.trace(text, attention_mask=seen)):
        for layer, heads in pruned.kept_heads.items():
            for head in heads:
                pattern = trace.pattern(layer, head)
                expected = cache["pattern", layer][:, head]
                assert (pattern - expected)[seen.bool()].abs().max() < 1e-5
        with pytest.raises(InputError, match="there is no L0H1"):
            trace.pattern(0, 1)
        with pytest.raises(InputError, match="there is no L1H0 .* heads none"):
            trace.pattern(1, 0)
        with pytest.raises(UnsupportedError, match="differ in heads"):
            trace.thumbnails()


def test_traces_remember_the_numbers_on_disk(pruned, tmp_path):
    trace = pruned.trace(IDS)
    trace.save(tmp_path / "trace")
    loaded = bl.Trace.load(tmp_path / "trace")
    assert torch.equal(loaded.pattern(2, 5), trace.pattern(2, 5))
    assert loaded.alibi(2, 5)[0, 8, 8] == 8 * pruned.blocks[2].attn.slopes[4]
    with pytest.raises(InputError, match="no L2H0"):
        loaded.pattern(2, 0)


def test_hooks_see_the_heads_that_are_left(whole, pruned, silent):
    _, found = pruned.run_with_cache(IDS)
    _, expected = whole.run_with_cache(IDS, head_mask=silent)
    for layer, heads in pruned.kept_heads.items():
        for name in ("q", "k", "v", "z"):
            assert found[name, layer].shape == (3, 9, len(heads), 8)
            assert torch.allclose(found[name, layer], expected[name, layer][:, :, heads], atol=1e-4)
        for name in ("pattern", "attn_scores", "alibi"):
            other = expected[name, layer][:, heads]
            assert torch.allclose(found[name, layer].expand_as(other), other, atol=1e-4)
        assert pruned.hook_dict[f"blocks.{layer}.attn.hook_z"].heads == tuple(heads)
    assert pruned.all_head_labels == [
        *("L0H0", "L0H2", "L0H3", "L0H5"),
        *("L2H1", "L2H2", "L2H3", "L2H4", "L2H5"),
    ]
    attentions = pruned(IDS, output_attentions=True).attentions
    assert [a.shape[1] for a in attentions] == [4, 0, 5]


@pytest.mark.parametrize("name", ["result", "q_input", "attn_in"])
def test_forked_inputs_and_results_of_ragged_layers(name, pruned):
    names = [f"blocks.{layer}.attn.hook_{name}" for layer in range(3)]
    logits, cache = pruned.run_with_cache(IDS, names_filter=names)
    assert close(logits, pruned(IDS).logits)
    assert [cache[one].shape[2] for one in names] == [4, 0, 5]


@pytest.mark.parametrize(
    "make",
    [
        lambda layer, head: interventions.mask_heads(layer, head),
        lambda layer, head: interventions.scale_heads(layer, head, factor=2.0),
        lambda layer, head: interventions.scale_slopes(layer, head, factor=0.5),
        lambda layer, head: interventions.knock_out(layer, head, keys=4),
    ],
)
def test_interventions_name_heads_as_before(make, whole, pruned, silent):
    edits = [make(0, [2, 5]), make(2, 3)]
    expected = whole.run_with_hooks(IDS, head_mask=silent, fwd_hooks=edits)
    assert close(pruned.run_with_hooks(IDS, fwd_hooks=edits), expected)
    assert not close(pruned(IDS).logits, expected)
    got = pruned.generate(IDS, max_new_tokens=5, interventions=edits)
    other = whole.generate(IDS, max_new_tokens=5, interventions=edits, head_mask=silent)
    assert torch.equal(got, other)
    for layer, head in ((0, 1), (1, 2)):
        with pytest.raises(UnknownNameError, match="others were pruned"):
            pruned.run_with_hooks(IDS, fwd_hooks=[make(layer, head)])


def test_an_intervention_on_all_heads_takes_what_a_layer_has(whole, pruned, silent):
    edits = [interventions.mask_heads(layer, None) for layer in range(3)]
    everything = prune_heads(pruned, pruned.kept_heads)
    assert close(pruned.run_with_hooks(IDS, fwd_hooks=edits), everything(IDS).logits)
    edits = [interventions.scale_slopes(layer, None, factor=0.5) for layer in range(3)]
    expected = whole.run_with_hooks(IDS, fwd_hooks=edits, head_mask=silent)
    assert close(pruned.run_with_hooks(IDS, fwd_hooks=edits), expected)


def test_head_masks_are_over_the_whole_models_heads(whole, pruned, silent):
    mask = torch.rand(3, 3, 6, generator=torch.Generator().manual_seed(0))
    expected = whole(IDS, head_mask=mask * silent).logits
    assert close(pruned(IDS, head_mask=mask).logits, expected)
    got = pruned.generate(IDS, head_mask=mask, max_new_tokens=6)
    assert torch.equal(got, whole.generate(IDS, head_mask=mask * silent, max_new_tokens=6))


def test_what_needs_as_many_heads_everywhere_says_so(pruned):
    for name in ("W_Q", "W_O", "b_V"):
        with pytest.raises(UnsupportedError, match=rf"model.{name}: layers of this pruned model"):
            getattr(pruned, name)
    _, cache = pruned.run_with_cache(IDS)
    with pytest.raises(UnsupportedError, match="heads of this model were pruned"):
        cache.stack_head_results()
    same = prune_heads(pair()[1], {0: [1], 1: [2]})
    assert same.W_Q.shape == (2, 5, 48, 8)


def test_sweeps_take_the_inflated_model(pruned):
    with pytest.raises(UnsupportedError, match="whole"):
        ablate_heads(pruned, IDS)
    frame = ablate_heads(inflate.whole(pruned), IDS).frame
    gone = [(row.layer, row.head) in {(0, 1), (0, 4), (2, 0)} for row in frame.itertuples()]
    assert (frame.effect[gone] == 0).all()
    assert (frame.effect[frame.layer == 1] == 0).all()
    assert (frame.effect[frame.layer != 1] != 0).sum() == 9


def test_a_session_shows_heads_at_their_numbers(demo):
    config = demo.config
    gone = {0: range(config.n_head), 1: [1, 2]}
    session, pruned = bl.Session(demo), bl.Session(prune_heads(demo, gone))
    mask = np.ones((config.n_layer, config.n_head), dtype=np.float32)
    mask[0], mask[1, 1:3] = 0, 0
    text = "The history of the city begins with a small village."
    masked, smaller = session.look(text, session.edits.with_mask(mask)), pruned.look(text)
    expected, found = masked.patterns(), smaller.patterns()
    kept = mask.astype(bool)
    assert np.abs(found[kept] - expected[kept]).max() < 1e-4
    assert (found[~kept] == 0).all()
    assert np.abs(smaller.pattern(1, 3) - expected[1, 3]).max() < 1e-4
    with pytest.raises(InputError, match="there is no L1H2"):
        smaller.pattern(1, 2)
    assert smaller.next_tokens()[0] == masked.next_tokens()[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_trained_model_pruned_says_what_it_says_masked(dtype):
    demo = bl.load("demo", device="cpu", dtype=dtype)
    n_layer, n_head = demo.config.n_layer, demo.config.n_head
    silent = (torch.rand(n_layer, n_head, generator=torch.Generator().manual_seed(4)) > 0.4).float()
    silent[1] = 0
    pruned = prune_heads(demo, (silent == 0).nonzero().tolist())
    texts = ["The history of the city begins with", "La maison était"]
    with torch.no_grad():
        found = pruned(texts, return_type="logits")[:, -1]
        expected = demo(texts, head_mask=silent, return_type="logits")[:, -1]
    assert distance_in_eps(found, expected) < {4: 500, 2: 12}[dtype.itemsize]
    said = pruned.generate(texts, max_new_tokens=12)
    assert torch.equal(said, demo.generate(texts, head_mask=silent, max_new_tokens=12))
