"""Structural probes of a treebank: better than embeddings and chance on trees that are there."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from bloomlab.analysis.structural import tree_distances
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments import probe_trees
from bloomlab.experiments.tasks import dependency_relations


@pytest.fixture(scope="module")
def found(demo):
    return probe_trees(demo, dependency_relations("en"), sites="blocks.2.hook_resid_post", epochs=8)


def test_the_frame_has_scores_beside_the_baselines(found):
    frame = found.frame
    assert frame.layer.tolist() == [2]
    row = frame.loc[0]
    assert row.low <= row.uuas <= row.high
    assert row.uuas > row.random
    assert 0.2 < row.chain < 0.7
    assert -1 <= row.dspr <= 1


def test_the_chain_is_counted_by_hand(found):
    """Neighbours among the words that count, in the test sentences."""
    words = dependency_relations("en")
    right = total = 0
    for text in found.split["test"].tolist():
        kept = [i for i, x in enumerate(words.labels[text]) if x not in (None, "punct")]
        tree = tree_distances(words.heads[text])
        right += sum(tree[a, b] == 1 for a, b in pairwise(kept))
        total += sum(tree[a, b] == 1 for a in kept for b in kept if a < b)
    assert found.frame.chain[0] == pytest.approx(float(right / total))


def test_sentences_are_split_once(found):
    texts = torch.cat(list(found.split.values()))
    assert len(texts.unique()) == len(texts) <= 50
    assert len(found.scores["chain"]) == len(found.split["test"])


def test_what_cannot_be_probed_is_refused(demo):
    words = dependency_relations("en")
    with pytest.raises(InputError, match="is one of heads"):
        probe_trees(demo, words, sites="z")
    with pytest.raises(UnknownNameError, match="site"):
        probe_trees(demo, words, sites="resid_past")
    few = replace(words, labels=tuple(tuple("punct" for _ in one) for one in words.labels))
    with pytest.raises(InputError, match="0 sentences have 3 words or more"):
        probe_trees(demo, few)
