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


def takes_cache(model):
    """Whether the cache has the name it has since transformers 5.24."""
    return "cache" in inspect.signature(model.forward).parameters


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
    name = "cache" if takes_cache(theirs) else "past_key_values"
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


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")
def test_the_cache_has_both_names():
    theirs, ours = pair()
    whole = theirs(IDS).logits[:, 5:]
    for model in (theirs, ours):
        for name in ("past_key_values", "cache"):
            past = model(IDS[:, :5], use_cache=True).past_key_values
            rest = model(IDS[:, 5:], **{name: past})
            if model is ours or name == "past_key_values" or takes_cache(theirs):
                assert (rest.logits - whole).abs().max() < 1e-4
                assert rest.past_key_values is past
            else:
                assert (rest.logits - whole).abs().max() > 0.01  # swallowed


def test_a_row_that_is_all_padding_is_uniform_as_theirs():
    mask = torch.ones_like(IDS)
    mask[0] = 0
    for model in pair():
        patterns = model(IDS, attention_mask=mask, output_attentions=True).attentions
        for pattern in patterns:
            torch.testing.assert_close(pattern[0], torch.full_like(pattern[0], 1 / 9))


GENERATE = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "prompt_lookup_num_tokens": 2,
    "assistant_model": None,
    "cache_implementation": "static",
    "dola_layers": "high",
    "num_beam_groups": 2,
    "penalty_alpha": 0.5,
    "constraints": None,
}
LOADING = {"quantization_config": {}, "load_in_8bit": True, "device_map": "auto"}
LOADING |= {"offload_folder": "x"}


def test_what_is_not_there_is_refused():
    theirs, ours = pair()
    for name, value in GENERATE.items():
        with pytest.raises(bl.errors.UnknownArgumentError, match=f"unknown argument '{name}'"):
            ours.generate(IDS, max_new_tokens=2, **{name: value})
    for name, value in LOADING.items():
        with pytest.raises(bl.errors.UnknownArgumentError, match=f"unknown argument '{name}'"):
            bl.BloomForCausalLM.from_pretrained("demo", **{name: value})
    with pytest.raises(bl.errors.UnknownArgumentError, match="shift_labels"):
        ours(IDS, labels=IDS, shift_labels=IDS)
    shifted = torch.cat([IDS[:, 1:], torch.full((2, 1), -100)], 1)  # as theirs takes it
    loss = theirs(IDS, labels=IDS, shift_labels=shifted).loss
    torch.testing.assert_close(loss, ours(IDS, labels=IDS).loss)
    square = torch.ones(2, 1, 9, 9).tril()
    with pytest.raises(ValueError, match="unpack"):
        theirs(IDS, attention_mask=square)
    with pytest.raises(bl.errors.ShapeError, match=r"expected \[2, 9\]"):
        ours(IDS, attention_mask=square)


def test_a_tuple_is_no_cache_any_more():
    theirs, ours = pair()
    past = ((torch.randn(2, 6, 3, ours.config.hidden_size // 6),) * 2,) * 2
    with pytest.raises(AttributeError):
        theirs(IDS, **{"cache" if takes_cache(theirs) else "past_key_values": past})
    with pytest.raises(bl.errors.CacheError, match=r"DynamicCache\(past_key_values\) makes one"):
        ours(IDS, past_key_values=past)


def test_what_is_not_an_attribute_is_one_of_to_hf():
    _, ours = pair()
    theirs = ours.to_hf()
    for name in ("resize_token_embeddings", "push_to_hub", "num_parameters", "generation_config"):
        assert hasattr(theirs, name)
        assert not hasattr(ours, name)
    n_token = ours.config.vocab_size
    theirs.resize_token_embeddings(n_token + 4, mean_resizing=False)
    longer = bl.BloomForCausalLM.from_hf(theirs)
    assert longer.config.vocab_size == n_token + 4
    torch.testing.assert_close(longer(IDS).logits[..., :n_token], ours(IDS).logits)
