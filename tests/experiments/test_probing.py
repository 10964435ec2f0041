"""Probes: what is in the activations is found, what is not is not, and the baselines say so."""

import math

import numpy as np
import pytest
import torch

from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.activations import collect
from bloomlab.experiments.probing import probe, random_twin, split_texts
from bloomlab.model.prune import prune_heads
from tests.tiny import pair, tokens

IDS = tokens(120, 12)


@pytest.fixture(scope="module")
def model():
    return pair()[1]


@pytest.fixture(scope="module")
def planted(model):
    """Labels that are linear in layer 0's stream, and probes of them."""
    stream = collect(model, IDS, "resid_post")["blocks.0.hook_resid_post"]
    source = torch.Generator().manual_seed(0)
    readout = torch.randn(3, stream.shape[1], generator=source)
    scaled = (stream - stream.mean(0)) / stream.std(0)
    logits = scaled @ readout.T
    labels = logits.argmax(-1).view(120, 12)
    sure = logits.topk(2).values
    labels[(sure[:, 0] - sure[:, 1] < 1).view(120, 12)] = -100  # a margin
    return labels, probe(model, IDS, labels, strengths=(1.0, 100.0), code=True)


def test_labels_that_are_linear_in_a_layer_are_found_there(planted):
    row = planted[1].frame.set_index("layer").loc[0]
    assert row.accuracy > 0.97
    assert row.f1 > 0.97
    assert row.low <= row.accuracy <= row.high
    assert row.compression > 3
    assert row.majority < 0.5
    assert row.random < row.accuracy - 0.1
    assert row.embedding < row.accuracy - 0.02


def test_random_labels_stay_at_chance_and_cost_the_uniform_code(model):
    labels = torch.randint(3, IDS.shape, generator=torch.Generator().manual_seed(3))
    frame = probe(model, IDS, labels, code=True, strengths=(1e-4, 1e-3)).frame
    assert (frame.accuracy - 1 / 3).abs().max() < 0.1
    assert (frame.compression - 1).abs().max() < 0.05


def test_the_control_task_takes_away_what_is_learned_by_heart(model):
    """Labels that are random functions of the token: a probe knows them as well as the control."""
    source = torch.Generator().manual_seed(4)
    of_token = torch.randint(3, (97,), generator=source)
    frame = probe(model, IDS, of_token[IDS], sites="embed", strengths=(1.0, 10.0)).frame
    assert frame.accuracy[0] > 0.6
    assert abs(frame.selectivity[0]) < 0.15
    assert frame.selectivity_low[0] <= frame.selectivity[0] <= frame.selectivity_high[0]
    assert frame.accuracy[0] == pytest.approx(frame.embedding[0])


def test_what_the_context_tells_is_selective(planted):
    row = planted[1].frame.set_index("layer").loc[0]
    assert row.selectivity > 0.1
    assert row.selectivity == pytest.approx(row.accuracy - row.control_accuracy)


def test_reading_new_activations_gives_the_same_predictions(model, planted):
    labels, probes = planted
    stream = collect(model, IDS, "resid_post")["blocks.0.hook_resid_post"].view(120, 12, -1)
    test = probes.split["test"]
    said = probes.read(stream[test], 0).argmax(-1)[labels[test] != -100]
    assert torch.equal(said, probes.fitted["resid_post", 0, None].predicted)
    right = (said == labels[test][labels[test] != -100]).double().mean().item()
    assert right == pytest.approx(probes.frame.accuracy[0])
    by_hand = (stream[test] - probes.mean[0]) / probes.scale[0]
    by_hand = by_hand @ probes.weights[0].T + probes.bias[0]
    torch.testing.assert_close(by_hand, probes.read(stream[test], 0), rtol=0, atol=1e-4)


def test_a_step_along_a_direction_raises_its_label(model, planted):
    probes = planted[1]
    stream = collect(model, IDS[:4], "resid_post")["blocks.0.hook_resid_post"]
    for number, label in enumerate(probes.classes):
        step = probes.direction(0, label)
        before, after = probes.read(stream, 0), probes.read(stream + step, 0)
        gained = (after - before)[:, number] - (after - before).mean(-1)
        torch.testing.assert_close(
            gained, step.square().sum().expand(len(gained)), rtol=1e-3, atol=1e-3
        )


def test_every_head_has_a_probe_also_of_a_pruned_model(model):
    labels = (IDS > 50).long()
    pruned = prune_heads(model, {0: [1, 4]})
    probes = probe(pruned, IDS[:40], labels[:40], sites="z", kind="ridge")
    assert probes.weights.shape == (2, 6, 2, 8)
    assert probes.weights[0, [1, 4]].isnan().all()
    assert not probes.weights[0, [0, 2, 3, 5]].isnan().any()
    assert probes.frame[["layer", "head"]].values.tolist()[:5] == [
        [0, 0],
        [0, 2],
        [0, 3],
        [0, 5],
        [1, 0],
    ]
    z = collect(pruned, IDS[:40], "z")["blocks.0.attn.hook_z"]
    read = probes.read(z[:, 1], 0, head=2)  # the second that is left
    test = torch.isin(torch.arange(40).repeat_interleave(12), probes.split["test"])
    predicted = probes.fitted["z", 0, 2].predicted
    assert torch.equal(read[test].argmax(-1), predicted)


def test_no_test_text_is_seen_in_training(model):
    """Labels of texts that are random: known by heart on what was seen, chance on what was not."""
    parts = split_texts(torch.arange(100), seed=1)
    assert sorted(torch.cat(list(parts.values())).tolist()) == list(range(100))
    assert [len(parts[name]) for name in ("train", "dev", "test")] == [70, 10, 20]
    assert torch.equal(parts["test"], split_texts(torch.arange(100), seed=1)["test"])
    assert not torch.equal(parts["test"], split_texts(torch.arange(100), seed=2)["test"])
    labels = torch.randint(2, (120,), generator=torch.Generator().manual_seed(0))
    whole = labels[:, None].expand(120, 12)
    frame = probe(model, IDS, whole.clone(), strengths=(1.0,)).frame
    assert frame.accuracy.max() < 0.7


def test_labels_of_texts_have_no_control_task(demo):
    texts = [
        f"{a} {b}." for a in ("The cat", "A dog", "My bird") for b in ("sleeps", "runs", "eats")
    ]
    texts += [text.replace(".", " 日本 中文字") for text in texts]
    labels = ["plain"] * 9 + ["other"] * 9
    probes = probe(demo, texts, labels, split=(0.5, 0.0, 0.5), strengths=[1.0], pool="mean")
    frame = probes.frame
    assert probes.unit == "text"
    assert frame.accuracy.min() == 1
    assert frame.control_accuracy.isna().all()
    assert frame.selectivity.isna().all()
    assert len(frame) == demo.config.n_layer


def test_padding_does_not_change_the_scores(model):
    labels = torch.randint(3, (40, 9), generator=torch.Generator().manual_seed(0))
    wide = torch.cat([torch.full((40, 3), 3), IDS[:40, :9]], 1)
    mask = torch.cat([torch.zeros(40, 3), torch.ones(40, 9)], 1)
    moved = torch.cat([torch.full((40, 3), -100), labels], 1)
    one = probe(model, IDS[:40, :9], labels, kind="ridge")
    other = probe(model, wide, moved, kind="ridge", attention_mask=mask)
    torch.testing.assert_close(one.weights, other.weights, rtol=0, atol=1e-4)


def test_a_folder_gives_the_same_probes(model, tmp_path):
    labels = (IDS > 50).long()
    plain = probe(model, IDS[:40], labels[:40], kind="ridge")
    stored = probe(model, IDS[:40], labels[:40], kind="ridge", folder=tmp_path, rows=7)
    torch.testing.assert_close(plain.weights, stored.weights, rtol=0, atol=1e-4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "random"]


def test_the_random_model_has_the_configuration_but_no_weight(model):
    twin, again = random_twin(model, seed=1), random_twin(model, seed=1)
    assert twin.config.to_dict() == model.config.to_dict()
    assert torch.equal(twin.W_E, again.W_E)
    assert not torch.equal(twin.W_E, random_twin(model, seed=2).W_E)
    state = torch.random.get_rng_state()
    random_twin(model)
    assert torch.equal(state, torch.random.get_rng_state())


def test_probes_of_several_sites_are_told_apart(model):
    labels = (IDS > 50).long()
    probes = probe(model, IDS[:40], labels[:40], sites=["embed", "mlp_post"], kind="linear")
    assert probes.frame.site.tolist() == ["embed", "mlp_post", "mlp_post"]
    assert probes.frame.layer.isna().tolist() == [True, False, False]
    assert probes.one(1, site="mlp_post").weights.shape == (2, 192)
    assert probes.one(site="embed").weights.shape == (2, 48)
    with pytest.raises(InputError, match=r"probes at the sites \['embed', 'mlp_post'\]. Say which"):
        probes.one(1)
    with pytest.raises(UnknownNameError, match="no probe 'mlp_post, layer 7'"):
        probes.one(7, site="mlp_post")
    with pytest.raises(UnknownNameError, match="no label 'noun'"):
        probes.direction(1, "noun", site="mlp_post")


def test_intervals_are_wider_at_a_higher_level(planted):
    probes = planted[1]
    narrow, wide = probes.intervals(0.5), probes.intervals(0.99)
    assert ((wide.high - wide.low) > (narrow.high - narrow.low)).all()
    assert not math.isnan(np.asarray(wide.f1_low)[0])


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"kind": "svm"}, UnknownNameError, "no kind of probe 'svm'"),
        ({"kind": "ridge", "code": True}, InputError, "needs probabilities, which 'ridge' lacks"),
        ({"sites": "resid"}, UnknownNameError, "no site 'resid'"),
        ({"split": (0.5, 0.5)}, InputError, "expected three shares that sum to 1"),
        ({"split": (1.0, 0.0, 0.0)}, InputError, "0 to test on"),
        ({"split": (0.8, 0.0, 0.2)}, InputError, "4 strengths and no dev text"),
        ({"labels": torch.zeros(120, 12).long()}, InputError, "1 classes"),
        ({"labels": torch.zeros(120, 11).long()}, InputError, r"labels has shape \(120, 11\)"),
    ],
)
def test_bad_input_is_refused(model, asked, error, said):
    with pytest.raises(error, match=said):
        probe(model, IDS, **({"labels": (IDS > 50).long()} | asked))
