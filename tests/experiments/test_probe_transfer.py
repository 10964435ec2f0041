"""Probes read other texts: by hand, and from one language to another."""

import pandas as pd
import pytest
import torch

from bloomlab.errors import InputError
from bloomlab.experiments import (
    collect,
    label_examples,
    probe,
    probe_readout,
    read_generation,
    transfer_each,
    transfer_probes,
    without_rare,
)
from bloomlab.experiments.tasks import part_of_speech
from bloomlab.model.prune import prune_heads


@pytest.fixture(scope="module")
def english(demo):
    words = part_of_speech("en")
    return probe(
        demo, words.texts, without_rare(words.labels), spans=words.spans,
        sites=["resid_post", "z"], kind="ridge",
    )  # fmt: skip


def test_other_texts_are_read_as_by_hand(demo, english):
    words = part_of_speech("fr")
    labels = without_rare(words.labels)
    found = transfer_probes(english, demo, words.texts, labels, spans=words.spans)
    given = label_examples(demo, words.texts, labels, spans=words.spans)
    name = "blocks.1.hook_resid_post"
    said = english.read(collect(demo, given.data, name, spans=given.spans)[name], 1,
                        site="resid_post").argmax(-1)  # fmt: skip
    right = [
        english.classes[a] == given.classes[b]
        for a, b in zip(said.tolist(), given.labels.tolist(), strict=True)
    ]
    row = found[(found.site == "resid_post") & (found.layer == 1)].iloc[0]
    assert row.accuracy == pytest.approx(sum(right) / len(right))
    assert row.low <= row.accuracy <= row.high
    assert row.accuracy > row.majority
    known = [name in english.classes for name in (given.classes[i] for i in given.labels)]
    assert row.known == pytest.approx(sum(known) / len(known))
    heads = found[(found.site == "z") & (found.layer == 2)]
    assert heads["head"].tolist() == list(range(demo.config.n_head))
    z = collect(demo, given.data, "blocks.2.attn.hook_z", spans=given.spans)
    said = english.read(z["blocks.2.attn.hook_z"][:, 3], 2, site="z", head=3).argmax(-1)
    true = torch.tensor([english.classes.index(n) if n in english.classes else -1
                         for n in given.classes])[given.labels]  # fmt: skip
    assert heads.accuracy.iloc[3] == pytest.approx((said == true).double().mean().item())


def test_the_tested_texts_of_its_own_language_give_its_own_score(demo, english):
    words = part_of_speech("en")
    labels = [
        one if i in english.split["test"] else tuple(None for _ in one)
        for i, one in enumerate(without_rare(words.labels))
    ]
    counted = without_rare(labels)
    found = transfer_probes(english, demo, words.texts, counted, spans=words.spans)
    mine = english.frame.accuracy
    assert found.accuracy.tolist() == pytest.approx(mine.tolist(), abs=0.02)


def test_any_classes_will_do_to_be_tested_on(demo, english):
    words = part_of_speech("fr")
    found = transfer_probes(english, demo, words.texts[:1], words.labels[:1], spans=words.spans[:1])
    assert 0 <= found.accuracy.min() <= found.accuracy.max() <= 1


def test_heads_of_a_pruned_model_are_found_by_their_numbers(demo):
    words = part_of_speech("en")
    labels = without_rare(words.labels)
    pruned = prune_heads(demo, {0: [0]})
    given = {"spans": words.spans, "sites": "blocks.0.attn.hook_z", "kind": "ridge"}
    probes = probe(pruned, words.texts, labels, **given)
    ours, whole = (
        transfer_probes(probes, one, words.texts, labels, spans=words.spans)
        for one in (pruned, demo)
    )
    assert ours["head"].tolist() == whole["head"].tolist() == list(range(1, 8))
    assert ours.accuracy.tolist() == pytest.approx(whole.accuracy.tolist())
    of_all = probe(demo, words.texts, labels, **given)
    with pytest.raises(InputError, match="there is no L0H0"):
        transfer_probes(of_all, pruned, words.texts, labels, spans=words.spans)
    readout = probe_readout("tag", of_all, site="z")
    with pytest.raises(InputError, match="is of heads"):
        read_generation(pruned, "The old house", readout, max_new_tokens=1)
    frame = read_generation(
        pruned, "The old house", probe_readout("tag", probes, site="z"), max_new_tokens=1
    ).frame
    assert sorted(frame["head"].unique()) == list(range(1, 8))


def test_labels_of_another_unit_are_refused(demo, english):
    with pytest.raises(InputError, match="one a text, but the probes were fitted on one a span"):
        transfer_probes(english, demo, ["one", "two", "three", "four"], ["a", "b", "a", "b"])


def test_several_probes_read_as_each_alone(demo, english):
    words = part_of_speech("fr")
    labels = without_rare(words.labels)
    french = probe(
        demo,
        words.texts,
        labels,
        spans=words.spans,
        sites="resid_post",
        kind="ridge",
        split=(0.8, 0.1, 0.1),
    )
    both = transfer_each(
        {"en": english, "fr": french}, demo, words.texts, labels, spans=words.spans
    )
    for name, one in {"en": english, "fr": french}.items():
        alone = transfer_probes(one, demo, words.texts, labels, spans=words.spans)
        part = both[both.fitted == name].drop(columns="fitted").reset_index(drop=True)
        pd.testing.assert_frame_equal(part, alone)
    mean = probe(demo, words.texts, labels, spans=words.spans, kind="ridge", pool="mean")
    for wrong in ({}, {"last": french, "mean": mean}):
        with pytest.raises(InputError, match="expected some, all in the same way"):
            transfer_each(wrong, demo, words.texts, labels, spans=words.spans)
