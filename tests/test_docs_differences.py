"""What docs/differences.md says of transformers is still so; else the page must change."""

import inspect

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoTokenizer, StoppingCriteria

import bloomlab as bl
from tests.tiny import make_hf, pair, tokens

IDS = tokens(2, 9)


class RowIsOver(StoppingCriteria):
    """Ends the first row at once."""

    def __call__(self, input_ids, scores, **unused):
        return torch.arange(len(input_ids)) == 0


def distance(a, b):
    return (a.logits - b.logits).abs().max().item()


def test_theirs_ignores_a_head_mask_and_misspelt_arguments():
    theirs, ours = pair()
    mask = torch.zeros(2, 6)
    assert distance(theirs(IDS, head_mask=mask, outputattentions=True), theirs(IDS)) == 0
    assert distance(ours(IDS, head_mask=mask), ours(IDS)) > 0.1
    with pytest.raises(bl.BloomlabError, match="Did you mean 'output_attentions'"):
        ours(IDS, outputattentions=True)


def test_theirs_forgets_biases_when_slow_but_exact():
    exact = {"slow_but_exact": True, "pretraining_tp": 2}
    assert distance(make_hf(**exact)(IDS), make_hf()(IDS)) > 0.1
    assert distance(pair(**exact)[1](IDS), pair()[1](IDS)) < 1e-3


def test_theirs_swallows_the_number_of_items_in_task_classes():
    theirs, ours = pair("BloomForTokenClassification")
    given = {"labels": IDS % 2, "num_items_in_batch": 100}
    assert theirs(IDS, **given).loss == theirs(IDS, labels=IDS % 2).loss
    with pytest.raises(bl.BloomlabError, match="num_items_in_batch"):
        ours(IDS, **given)


def test_theirs_broadcasts_a_mask_that_is_too_short():
    theirs, ours = pair()
    past, others = (m(IDS[:, :8], use_cache=True).past_key_values for m in (ours, theirs))
    short = torch.ones(2, 1, dtype=torch.long)
    named = inspect.signature(theirs.forward).parameters
    name = "cache" if "cache" in named else "past_key_values"  # renamed in transformers 5.24
    with torch.no_grad():
        wrong = theirs(IDS[:, 8:], attention_mask=short, **{name: others}).logits
        right = theirs(IDS).logits[:, 8:]
    assert (wrong - right).abs().max() > 0.01
    with pytest.raises(bl.BloomlabError, match="attention_mask"):
        ours(IDS[:, 8:], attention_mask=short, past_key_values=past)


def test_theirs_goes_on_with_a_row_that_a_criterion_ended():
    theirs, ours = pair(eos_token_id=None)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 3}
    options |= {"stopping_criteria": [RowIsOver()]}
    ended, going = ours.generate(IDS, **options), theirs.generate(IDS, **options)
    assert (ended[0, 10:] == 3).all()
    assert (going[0, 10:] != 3).any()
    assert torch.equal(ended[1], going[1])


def test_theirs_ignores_the_prefix_space(tmp_path):
    bl.load("demo").tokenizer.save_pretrained(tmp_path)
    plain, spaced = (
        AutoTokenizer.from_pretrained(tmp_path, add_prefix_space=space)("word").input_ids
        for space in (False, True)
    )
    assert plain == spaced
    ours = bl.BloomTokenizer.from_pretrained(tmp_path, add_prefix_space=True)
    assert ours("word").input_ids != plain


def test_theirs_gives_nan_to_padded_rows_in_float16():
    _, ours = pair(dtype=torch.float16)
    with torch.no_grad():
        for block in ours.blocks:
            block.attn.b_Q[:], block.attn.b_K[:] = 9, -9
    mask = torch.ones_like(IDS)
    mask[0, :3] = 0
    assert torch.isfinite(ours(IDS, attention_mask=mask).logits).all()
    assert torch.isnan(ours.to_hf().eval()(IDS, attention_mask=mask).logits[0]).all()


def test_theirs_writes_the_kind_of_problem_into_the_configuration():
    theirs, ours = pair("BloomForSequenceClassification", num_labels=3)
    for model in (theirs, ours):
        model(IDS, labels=torch.tensor([0, 2]))
    assert theirs.config.problem_type == "single_label_classification"
    assert ours.config.problem_type is None
    several = torch.tensor([[1.0, 0, 1], [0, 1, 1]])  # of several labels, this time
    expected = binary_cross_entropy_with_logits(ours(IDS).logits, several)
    assert ours(IDS, labels=several).loss.item() == pytest.approx(expected.item())
    assert theirs(IDS, labels=several).loss.item() != pytest.approx(expected.item())


def test_theirs_pads_beams_with_the_end_token_where_padding_is_token_0():
    theirs, ours = pair()
    options = {"num_beams": 2, "max_new_tokens": 6, "do_sample": False, "early_stopping": True}
    options |= {"eos_token_id": 25, "pad_token_id": 0}
    assert ours.generate(IDS, **options)[0, 9:].tolist() == [25, 0]
    assert theirs.generate(IDS, **options)[0, 9:].tolist() == [25, 25]
