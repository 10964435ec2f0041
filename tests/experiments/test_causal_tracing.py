"""Restored states equal noisy forwards written straight down; noise is where it is said to be."""

import pytest
import torch

from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments import patch_activations, trace_causes
from tests.straight import straight
from tests.tiny import pair, tokens

LENGTH, N_LAYER = 6, 3
RIGHT, WRONG = 5, 9
ANSWERS = torch.tensor([[RIGHT, WRONG]] * 2)
SUBJECT = torch.tensor([[0, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]).bool()
LEFT = torch.tensor([[0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
OPTIONS = {"metric": "logit_difference", "answers": ANSWERS, "samples": 2, "progress": False}


@pytest.fixture(scope="module")
def models():
    return pair(hidden_size=24, n_head=3, n_layer=N_LAYER, dtype=torch.float64)


IDS = tokens(2, LENGTH)


def noise_of(row, sample, scale, seed=0):
    drawn = torch.randn(
        int(SUBJECT[row].sum()), 24, generator=torch.Generator().manual_seed(seed + sample)
    )
    found = torch.zeros(LENGTH, 24, dtype=torch.float64)
    found[SUBJECT[row]] = scale * drawn.double()
    return found


def slow(hf, site, where, cell, scale, window=1, mask=None):
    """One forward of all texts for each sample: the mean of the difference of logits."""
    clean = straight(hf, IDS, mask)[1]
    point = "embed.hook_out" if where == "before" else "hook_embed"
    first = max(0, cell.layer - window // 2)
    some = range(first, min(N_LAYER, cell.layer - (-window // 2)))
    found = []
    for sample in range(2):
        added = torch.stack([noise_of(row, sample, scale) for row in range(2)])
        edits = {point: lambda value, added=added: value + added}
        for layer in some:
            name = f"blocks.{layer}.hook_{site}"

            def restore(value, name=name):
                value = value.clone()
                value[:, cell.position] = clean[name][:, cell.position]
                return value

            edits[name] = restore
        logits = straight(hf, IDS, mask, edits=edits)[0]
        found.append(logits[:, -1, RIGHT] - logits[:, -1, WRONG])
    return torch.stack(found).mean(0)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"])
@torch.no_grad()
def test_every_state_equals_a_forward_of_its_own(models, site, where):
    hf, ours = models
    found = trace_causes(ours, IDS, SUBJECT, site, where=where, **OPTIONS)
    assert len(found.cells) == N_LAYER * LENGTH
    expected = [slow(hf, site, where, cell, found.scale) for cell in found.cells]
    torch.testing.assert_close(found.values, torch.stack(expected), atol=1e-10, rtol=0)
    assert found.effects.abs().max() > 1e-2


@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("site", ["attn_out", "mlp_out"])
@torch.no_grad()
def test_windows_restore_several_layers(models, site, window):
    hf, ours = models
    found = trace_causes(ours, IDS, SUBJECT, site, where="after", window=window, **OPTIONS)
    expected = [slow(hf, site, "after", cell, found.scale, window) for cell in found.cells]
    torch.testing.assert_close(found.values, torch.stack(expected), atol=1e-10, rtol=0)


@torch.no_grad()
def test_padding_and_rows_change_nothing(models):
    hf, ours = models
    given = {"input_ids": IDS, "attention_mask": LEFT}
    found = trace_causes(ours, given, SUBJECT, "mlp_out", where="before", **OPTIONS)
    expected = [slow(hf, "mlp_out", "before", c, found.scale, mask=LEFT) for c in found.cells]
    seen = torch.tensor([cell.position > 0 for cell in found.cells])
    torch.testing.assert_close(found.values[seen], torch.stack(expected)[seen], atol=1e-10, rtol=0)
    few = trace_causes(ours, given, SUBJECT, "mlp_out", where="before", rows=1, **OPTIONS)
    torch.testing.assert_close(few.values, found.values, atol=1e-12, rtol=0)
    alone = trace_causes(
        ours, IDS[:1, 1:], SUBJECT[:1, 1:], "mlp_out", where="before",
        **(OPTIONS | {"answers": ANSWERS[:1]}),
    )  # fmt: skip
    shifted = torch.stack([v for v, c in zip(found.values, found.cells, strict=True) if c.position])
    torch.testing.assert_close(alone.values[:, 0], shifted[:, 0], atol=1e-10, rtol=0)


@torch.no_grad()
def test_the_noise_is_in_units_of_the_embeddings_where_it_is_added(models):
    hf, ours = models
    body = hf.transformer
    spread = {
        "before": body.word_embeddings.weight,
        "after": body.word_embeddings_layernorm(body.word_embeddings.weight),
    }
    for where, table in spread.items():
        found = trace_causes(ours, IDS, SUBJECT, where=where, noise=2.0, **OPTIONS)
        assert found.scale == pytest.approx(2 * table.std(correction=0).item())
    before, after = (trace_causes(ours, IDS, SUBJECT, where=w, **OPTIONS) for w in spread)
    assert (before.corrupted - after.corrupted).abs().max() > 1e-3  # two experiments


@torch.no_grad()
def test_words_name_the_subject_and_the_answer_is_the_models_own(demo):
    texts = ["The bridge over the river is", "The old house near the big river is"]
    found = trace_causes(
        demo, texts, ["bridge", "old house"], where="after", samples=2, progress=False
    )
    names = [demo.to_str_tokens(text) for text in texts]
    columns = [row.nonzero()[:, 0].tolist() for row in found.subject]
    padding = found.subject.shape[1] - len(names[0])
    said = ["".join(names[0][i - padding] for i in columns[0])]
    said.append("".join(names[1][i] for i in columns[1]))
    assert [one.strip() for one in said] == ["bridge", "old house"]
    clean = [demo(demo.to_tokens(text)).logits[0, -1].softmax(-1).max() for text in texts]
    torch.testing.assert_close(found.clean, torch.stack(clean), atol=1e-5, rtol=1e-4)
    # the last state of the last token is all that the answer is read from
    torch.testing.assert_close(found.effects[-1], found.total)
    assert found.total.abs().min() > 1e-3


def test_all_noise_restored_is_the_clean_run(models):
    ours = models[1]
    one = torch.zeros_like(SUBJECT)
    one[:, 2] = True
    found = trace_causes(ours, IDS, one, "resid_pre", where="after", layers=0, **OPTIONS)
    torch.testing.assert_close(found.share[2], torch.tensor(1.0, dtype=torch.float64))
    unpatched = patch_activations(
        ours, IDS, IDS, "resid_pre", metric="logit_difference", answers=ANSWERS, progress=False
    )
    torch.testing.assert_close(found.clean, unpatched.clean)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"where": "inside"}, UnknownNameError, "where 'inside'"),
        ({"site": "z"}, UnknownNameError, "site 'z'"),
        ({"window": 3}, InputError, "states of the stream"),
        ({"samples": 0}, InputError, "samples is 0"),
        ({"noise": 0}, InputError, "noise 0"),
        ({"subjects": SUBJECT & False}, InputError, "text 0 has no subject"),
        ({"subjects": SUBJECT[:, :3]}, ShapeError, "subjects"),
        ({"subjects": SUBJECT.int()}, ShapeError, "subjects"),
        ({"subjects": ["a", "b"]}, InputError, "give texts, not token ids"),
        ({"metric": "probability", "answers": None, "positions": [1, 2]}, InputError, "name one"),
    ],
)
def test_what_cannot_be_traced_is_refused(models, options, error, match):
    given = {"site": "resid_post", "where": "after", "subjects": SUBJECT} | OPTIONS | options
    with pytest.raises(error, match=match):
        trace_causes(models[1], IDS, **given)


def test_other_seeds_are_other_noise(models):
    same = trace_causes(models[1], IDS, SUBJECT, where="after", seed=0, **OPTIONS)
    assert torch.equal(
        same.corrupted,
        trace_causes(models[1], IDS, SUBJECT, where="after", seed=0, **OPTIONS).corrupted,
    )
    one = OPTIONS | {"samples": 1}
    first, second = (
        trace_causes(models[1], IDS, SUBJECT, where="after", seed=s, **one).corrupted
        for s in (0, 1)
    )
    assert not torch.isclose(first, second).any()
    # the second draw of one seed is not the first of the next
    both = trace_causes(models[1], IDS, SUBJECT, where="after", seed=0, **OPTIONS).corrupted
    assert not torch.isclose(2 * both - first, second).any()


def test_a_subject_that_is_not_in_its_text_is_named(demo):
    with pytest.raises(InputError, match="text 0: the word 'castle' is not in"):
        trace_causes(demo, ["The bridge is"], ["castle"], where="after")
