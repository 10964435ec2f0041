"""TransformerLens' tools on our model, against brute force on transformers' weights."""

from itertools import product

import pytest
import torch
from transformer_lens import evals, head_detector, patching
from transformer_lens.tools import analysis
from transformer_lens.tools.training import TrainConfig, train

from tests.points import assert_same
from tests.straight import FORKS, straight
from tests.tiny import pair, tokens

CLEAN, CORRUPT = tokens(1, 5), tokens(1, 5, seed=2)
TEXT = "The cat sat on the mat. The cat sat on the"
HEAD_VECTORS = {"q": "q", "k": "k", "v": "v", "out": "z"}
# what is patched where: activation, and the axes of its value that are swept
SWEEPS = (
    {name: (name, (1,)) for name in ("resid_pre", "resid_mid", "attn_out", "mlp_out")}
    | {f"attn_head_{name}_all_pos": (point, (2,)) for name, point in HEAD_VECTORS.items()}
    | {f"attn_head_{name}_by_pos": (point, (1, 2)) for name, point in HEAD_VECTORS.items()}
    | {
        "attn_head_pattern_all_pos": ("pattern", (1,)),
        "attn_head_pattern_by_pos": ("pattern", (1, 2)),
        "attn_head_pattern_dest_src_pos": ("pattern", (1, 2, 3)),
    }
)


def metric(logits):
    return logits[0, -1, 5] - logits[0, -1, 7]


@pytest.fixture(scope="module")
def models():
    return pair(n_head=4, dtype=torch.float64)


@pytest.fixture(scope="module")
def caches(models):
    return [models[1].run_with_cache(ids)[1] for ids in (CLEAN, CORRUPT)]


def name_of(point, layer):
    inner = "attn." if point in ("q", "k", "v", "z", "pattern") else ""
    return f"blocks.{layer}.{inner}hook_{point}"


# -- activation patching ---------------------------------------------------------------------------


@pytest.mark.parametrize("sweep", SWEEPS)
@torch.no_grad()
def test_activation_patching_equals_brute_force(models, caches, sweep):
    theirs, ours = models
    point, axes = SWEEPS[sweep]
    got = getattr(patching, f"get_act_patch_{sweep}")(ours, CORRUPT, caches[0], metric)
    _, clean = straight(theirs, CLEAN)
    sizes = [clean[name_of(point, 0)].shape[axis] for axis in axes]
    for layer, *index in product(range(2), *map(range, sizes)):
        name, where = name_of(point, layer), (slice(None),) * 3
        for axis, i in zip(axes, index, strict=True):
            where = (*where[:axis], i, *where[axis + 1 :])

        def patch(value, name=name, where=where):
            value = value.clone()
            value[where] = clean[name][where]
            return value

        expected = metric(straight(theirs, CORRUPT, edits={name: patch})[0])
        assert abs(got[layer, *index] - expected) < 1e-5  # the tool's result is in float32


@pytest.mark.parametrize("sweep", ["resid_mid", "attn_out", "attn_head_v_all_pos"])
def test_patching_gives_the_same_with_and_without_gradients(models, caches, sweep):
    tool = getattr(patching, f"get_act_patch_{sweep}")
    with_gradients = tool(models[1], CORRUPT, caches[0], metric)
    with torch.no_grad():
        without = tool(models[1], CORRUPT, caches[0], metric)
    assert (with_gradients - without).abs().max() < 1e-5


@pytest.mark.parametrize("every", ["attn_head_all_pos", "attn_head_by_pos", "block"])
@torch.no_grad()
def test_patching_of_everything_is_the_stack_of_the_single_sweeps(models, caches, every):
    ours = models[1]
    got = getattr(patching, f"get_act_patch_{every}_every")(ours, CORRUPT, caches[0], metric)
    if every == "block":
        singles = ["resid_pre", "attn_out", "mlp_out"]
    else:
        suffix = every.removeprefix("attn_head_")
        singles = [f"attn_head_{part}_{suffix}" for part in ("out", "q", "k", "v", "pattern")]
    for part, single in zip(got, singles, strict=True):
        tool = getattr(patching, f"get_act_patch_{single}")
        expected = tool(ours, CORRUPT, caches[0], metric)
        if single == "attn_head_pattern_by_pos":  # layer head pos; the rest are layer pos head
            expected = expected.transpose(1, 2)
        assert torch.equal(part, expected)


@pytest.mark.parametrize("part", "qkv")
@torch.no_grad()
def test_direct_path_patching_equals_brute_force(models, caches, part):
    theirs, ours = models
    arguments = {"src_layer": 0, "src_head": 1, "component": part, "verbose": False}
    got = patching.get_act_patch_direct_path(ours, CORRUPT, *caches, metric, **arguments)
    clean, corrupt = (straight(theirs, ids, gated=True)[1] for ids in (CLEAN, CORRUPT))
    result = "blocks.0.attn.hook_result"
    delta = clean[result][:, :, 1] - corrupt[result][:, :, 1]
    for head in range(4):

        def patch(value, head=head):
            value = value.clone()
            value[:, :, head] += delta
            return value

        edits = {f"blocks.1.attn.hook_{part}_input": patch}
        expected = metric(straight(theirs, CORRUPT, edits=edits, gated=True)[0])
        assert abs(got[1, head] - expected) < 1e-5
    assert not ours.cfg.use_split_qkv_input
    assert not ours.list_hooks()


# -- attribution patching --------------------------------------------------------------------------


def differences_and_gradients(theirs):
    """Of every named value: clean minus corrupt, and d metric / d value on the corrupt run."""
    edits = {f"blocks.{i}.attn.{fork}": torch.clone for i in (0, 1) for fork in FORKS}
    edits |= {f"blocks.{i}.hook_mlp_in": torch.clone for i in (0, 1)}
    logits, corrupt = straight(theirs, CORRUPT, edits=edits, gated=True)
    _, clean = straight(theirs, CLEAN, edits=edits, gated=True)
    names = [name for name in corrupt if corrupt[name].requires_grad]
    grads = torch.autograd.grad(metric(logits), [corrupt[n] for n in names], allow_unused=True)
    return {n: clean[n] - corrupt[n] for n in clean}, dict(zip(names, grads, strict=True))


def at(tensor, node):
    return tensor[0, node.position] if node.head is None else tensor[0, node.position, node.head]


def test_attribution_of_nodes_and_edges_equals_brute_force(models):
    theirs, ours = models
    differences, grads = differences_and_gradients(theirs)
    nodes = analysis.attribution_patch(ours, CLEAN, CORRUPT, metric).node_scores
    assert len(nodes) == 5 * (1 + 2 * (4 + 1))
    for node, score in nodes.items():
        expected = (at(differences[node.hook_name], node) * at(grads[node.hook_name], node)).sum()
        assert abs(score - expected) < 1e-9
    config = analysis.EdgeAttributionConfig(granularity="edge")
    edges = analysis.attribution_patch(ours, CLEAN, CORRUPT, metric, config)
    assert len(edges.edge_scores) == 5 * (12 + 5 + 12 * 6 + 10 + 11)
    for (writer, reader), score in edges.edge_scores.items():
        write = writer.hook_name.replace("hook_z", "hook_result")
        expected = at(differences[write], writer) @ at(grads[reader.hook_name], reader)
        assert abs(score - expected) < 1e-9
    for node, score in edges.node_scores.items():
        assert abs(score - nodes[node]) < 1e-9
    assert not ours.cfg.use_attn_result
    assert not ours.cfg.use_split_qkv_input


def test_a_circuit_of_all_edges_is_the_model_and_of_none_the_corrupt_run(models):
    ours = models[1]
    config = analysis.EdgeAttributionConfig(granularity="edge")
    edges = list(analysis.attribution_patch(ours, CLEAN, CORRUPT, metric, config).edge_scores)
    for circuit, recovered in ((edges, 1.0), ([], 0.0)):
        got = analysis.faithfulness(ours, CLEAN, CORRUPT, metric, circuit)
        assert got.total_edges == len(edges)
        assert abs(got.recovered - recovered) < 1e-6


# -- reading the stream ----------------------------------------------------------------------------


@torch.no_grad()
def test_logit_lens_equals_transformers_head_on_its_hidden_states(models):
    theirs, ours = models
    states = theirs(CLEAN, output_hidden_states=True).hidden_states
    expected = [theirs.lm_head(theirs.transformer.ln_f(state)) for state in states[:-1]]
    expected.append(theirs.lm_head(states[-1]))  # transformers' last state is normalised
    got = analysis.logit_lens(ours, CLEAN, positions=None, return_type="logits")
    assert got.labels == ["0_pre", "1_pre", "final_post"]
    for values, logits in zip(got.values, expected, strict=True):
        assert_same(values.double(), logits, limit=1e-5)
    through_cache = ours.run_with_cache(CLEAN)[1].logit_lens(positions=None, return_type="logits")
    assert_same(through_cache.values, got.values, limit=1e-5)
    read = analysis.logit_readout(ours, states[1], return_type="logits")
    assert_same(read.values.double(), expected[1], limit=1e-5)


@pytest.mark.parametrize("unit", ["component", "head"])
@torch.no_grad()
def test_direct_logit_attribution_sums_to_the_logit_difference(models, unit):
    theirs, ours = models
    got = analysis.direct_logit_attribution(ours, CLEAN, 5, 7, unit=unit)
    bias = theirs.lm_head(theirs.transformer.ln_f.bias)
    assert len(got.labels) == {"component": 5, "head": 9}[unit]
    expected = metric(theirs(CLEAN).logits) - (bias[5] - bias[7])
    assert abs(got.attribution.sum() - expected) < 1e-6


@torch.no_grad()
def test_detected_heads_score_what_transformers_patterns_say(demo):
    ids = demo.to_tokens(TEXT)
    patterns = torch.cat(demo.to_hf()(ids, output_attentions=True).attentions)
    n_token = ids.shape[1]
    before = torch.arange(n_token)[:, None] - 1
    same = (ids == ids.T).tril(-1)
    after_same = torch.cat([torch.zeros(n_token, 1, dtype=torch.bool), same[:, :-1]], 1)
    masks = {
        "previous_token_head": before == torch.arange(n_token),
        "duplicate_token_head": same,
        "induction_head": after_same.tril(),
    }
    for head, mask in masks.items():
        got = head_detector.detect_head(demo, TEXT, head)
        expected = (patterns * mask).sum((-1, -2)) / n_token
        assert (got - expected).abs().max() < 1e-4


# -- subspaces, probes, training -------------------------------------------------------------------


@torch.no_grad()
def test_interchange_of_a_whole_stream_equals_patching_it(models):
    theirs, ours = models
    name, base, source = "blocks.0.hook_resid_post", tokens(3, 5), tokens(3, 5, seed=2)
    last = torch.full((3,), 4)

    def task(ids):
        return ours(ids).logits[:, -1]

    held = analysis.collect_activations(ours, name, source, task, positions=last)
    value = straight(theirs, source)[1][name]
    assert_same(held, value[:, -1])

    def patch(stream):
        return torch.cat([stream[:, :-1], value[:, -1:]], 1)

    for strength, edits in ((1.0, {name: patch}), (0.0, {})):
        whole = analysis.SubspaceInterchange(torch.eye(48, dtype=torch.float64), strength)
        got = analysis.intervened_logits(ours, name, whole, base, held, task, positions=last)
        assert_same(got, straight(theirs, base, edits=edits)[0][:, -1])


def test_a_learned_subspace_learns_and_leaves_the_model_trainable():
    _, ours = pair()
    ids, last = tokens(8, 5), torch.full((8,), 4)
    fit = analysis.fit_das(
        *(ours, "blocks.0.hook_resid_post", ids, ids.flip(0), torch.arange(8)),
        lambda ids: ours(ids).logits[:, -1],
        **{"rank": 4, "base_positions": last, "source_positions": last, "epochs": 15, "lr": 0.05},
    )
    assert fit.losses[-1] < fit.losses[0]
    assert all(p.requires_grad and p.grad is None for p in ours.parameters())


def test_the_random_control_is_another_model():
    _, ours = pair()
    clean = ours(CLEAN).logits
    control = analysis.reinitialized(ours, seed=0)
    assert torch.equal(control.blocks[1].ln2.w, torch.ones(48))
    assert control.unembed.W_U.data_ptr() == control.embed.weight.data_ptr()
    assert (control(CLEAN).logits - clean).abs().max() > 0.1
    assert torch.equal(ours(CLEAN).logits, clean)


def test_transformer_lens_trains_the_model(capsys):
    _, ours = pair()
    before = ours(CLEAN, return_type="loss").item()
    config = TrainConfig(num_epochs=5, batch_size=1, device="cpu", print_every=None)
    trained = train(ours, config, [{"tokens": CLEAN[0]}])
    assert trained(CLEAN, return_type="loss").item() < before


@torch.no_grad()
def test_evaluations_run_on_text(demo):
    theirs, ids = demo.to_hf(), demo.to_tokens(TEXT)
    assert abs(demo(TEXT, return_type="loss") - theirs(ids, labels=ids).loss) < 1e-4
    assert evals.sanity_check(demo).ndim == 0
    assert 0 <= evals.ioi_eval(demo, num_samples=4)["Accuracy"] <= 1
