"""Probes read other texts: by hand, and from one language to another."""

import pytest
import torch

from bloomlab.errors import InputError
from bloomlab.experiments import collect, label_examples, probe, transfer_probes, without_rare
from bloomlab.experiments.tasks import part_of_speech


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


def test_labels_of_another_unit_are_refused(demo, english):
    with pytest.raises(InputError, match="one a text, but the probes were fitted on one a span"):
        transfer_probes(english, demo, ["one", "two", "three", "four"], ["a", "b", "a", "b"])
