"""What outside code relies on: names, parameters and meanings that must not change silently."""

import inspect

import pandas as pd
import pytest
import torch
import transformer_lens
from transformers.utils import ModelOutput

import bloomlab as bl
from tests.tiny import pair, tokens

NAMES = (
    "BloomConfig BloomForCausalLM BloomForQuestionAnswering BloomForSequenceClassification "
    "BloomForTokenClassification BloomModel BloomTokenizer BloomTokenizerFast BloomlabError "
    "KVCache Lab Session Trace analysis errors experiments interventions load plots prune_heads "
    "widgets"
)
FORWARD = (
    "input_ids attention_mask head_mask inputs_embeds past_key_values use_cache output_attentions "
    "output_hidden_states return_dict return_type"
)
GENERATE = (
    "input_ids attention_mask head_mask past_key_values generation_config max_new_tokens "
    "max_length min_new_tokens min_length do_sample num_beams length_penalty early_stopping "
    "num_return_sequences temperature top_k top_p min_p typical_p repetition_penalty "
    "no_repeat_ngram_size eos_token_id pad_token_id stop_strings logits_processor "
    "stopping_criteria streamer use_cache"
)
SIGNATURES = {  # a name below bloomlab -> the parameters it takes; positional ones in their order
    "load": "name device dtype revision",
    "prune_heads": "model heads compensate data",
    "BloomModel.forward": FORWARD,
    "BloomForCausalLM.forward": f"{FORWARD} labels logits_to_keep num_items_in_batch",
    "BloomForSequenceClassification.forward": f"{FORWARD} labels",
    "BloomForTokenClassification.forward": f"{FORWARD} labels",
    "BloomForQuestionAnswering.forward": f"{FORWARD} start_positions end_positions",
    "BloomModel.from_pretrained": "path dtype device",
    "BloomModel.save_pretrained": "path max_shard_size",
    "BloomModel.from_hf": "hf_model share",
    "BloomModel.to_hf": "",
    "BloomModel.hf_named_parameters": "",
    "BloomModel.gradient_checkpointing_enable": "gradient_checkpointing_kwargs",
    "BloomModel.gradient_checkpointing_disable": "",
    "BloomModel.run_with_cache": "names_filter device remove_batch_dim incl_bwd pos_slice",
    "BloomModel.run_with_hooks": "fwd_hooks bwd_hooks",
    "BloomModel.hooks": "fwd_hooks bwd_hooks",
    "BloomModel.to_tokens": "text prepend_bos padding_side",
    "BloomModel.to_str_tokens": "text prepend_bos",
    "BloomModel.to_single_token": "text",
    "BloomModel.to_string": "tokens",
    "BloomForCausalLM.generate": GENERATE,
    "BloomForCausalLM.stream": f"{GENERATE} trace interventions".replace(" streamer", ""),
    "Trace.pattern": "layer head queries",
    "Trace.scores": "layer head queries",
    "Trace.alibi": "layer head queries",
    "Trace.thumbnails": "size",
    "KVCache.fork": "n",
    "KVCache.crop": "length",
    "KVCache.gather": "rows",
    "KVCache.evict": "positions reindex",
    "KVCache.to": "device",
    "experiments.ablate_heads": "model tokens metric kind heads positions attention_mask",
    "experiments.head_importance": "model batches kind norm",
    "experiments.prune_curve": "model data rankings results",
}
DEFAULTS = {
    "experiments.ablate_heads": {
        "metric": "cross_entropy",
        "heads": None,
        "positions": None,
        "attention_mask": None,
    },
    "experiments.head_importance": {"kind": "example_abs", "norm": None},
    "prune_heads": {"compensate": "zero", "data": None},
    "BloomModel.save_pretrained": {"max_shard_size": "5GB"},
    "BloomModel.from_pretrained": {"dtype": None, "device": None},
    "BloomModel.from_hf": {"share": False},
    "Trace.thumbnails": {"size": 64},
    "KVCache.evict": {"reindex": False},
}


def found(name):
    thing = bl
    for part in name.split("."):
        thing = getattr(thing, part)
    return thing


def test_the_public_names_are_these():
    assert set(NAMES.split()) <= set(bl.__all__)
    assert bl.__all__ == sorted(bl.__all__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_function_takes_these_parameters(name):
    known = inspect.signature(found(name)).parameters
    assert [one for one in SIGNATURES[name].split() if one not in known] == []


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_parameter_left_out_has_this_value(name):
    known = inspect.signature(found(name)).parameters
    assert {one: known[one].default for one in DEFAULTS[name]} == DEFAULTS[name]


@pytest.mark.parametrize("name", ["load", "prune_heads", "experiments.ablate_heads"])
def test_what_is_given_by_place_stands_in_this_order(name):
    places = [
        one.name
        for one in inspect.signature(found(name)).parameters.values()
        if one.kind is one.POSITIONAL_OR_KEYWORD
    ]
    assert places == [one for one in SIGNATURES[name].split() if one in places]


def test_a_bloom_with_a_head_is_a_bloom():
    for name in NAMES.split()[1:5]:
        assert issubclass(found(name), bl.BloomModel)
    assert issubclass(bl.BloomModel, transformer_lens.HookedRootModule)
    assert bl.BloomTokenizer is bl.BloomTokenizerFast


@pytest.fixture(scope="module")
def model():
    return pair()[1]


IDS = tokens(2, 7)


def test_a_forward_gives_an_output_or_tensors(model):
    out = model(IDS, labels=IDS, output_attentions=True, output_hidden_states=True, use_cache=True)
    assert isinstance(out, ModelOutput)
    assert out["past_key_values"] is out.past_key_values  # under any transformers' name for it
    assert {"loss", "logits", "hidden_states", "attentions"} < set(out)
    assert len(out.hidden_states) == 3
    torch.testing.assert_close(model(IDS, return_type="logits"), out.logits)
    torch.testing.assert_close(model(IDS, return_dict=False)[0], out.logits)
    logits, loss = model(IDS, return_type="both")
    torch.testing.assert_close((logits, loss), (out.logits, out.loss))
    torch.testing.assert_close(model(IDS, return_type="loss"), loss)


@pytest.mark.parametrize("shape", [(6,), (2, 6), (2, 2, 6)])  # head; layer head; batch layer head
def test_a_head_mask_scales_heads_and_returned_attentions(model, shape):
    mask = torch.full(shape, 0.5)
    plain = model(IDS, output_attentions=True).attentions
    masked = model(IDS, head_mask=mask, output_attentions=True).attentions
    torch.testing.assert_close(masked[0], plain[0] / 2)
    with model.hooks([("blocks.0.attn.hook_z", lambda value, hook: value / 2)]), torch.no_grad():
        halved = model(IDS, return_type="logits", head_mask=torch.tensor([[1.0] * 6, [0.5] * 6]))
    torch.testing.assert_close(halved, model(IDS, head_mask=mask, return_type="logits"))


def test_a_run_with_cache_holds_what_transformer_lens_holds(model):
    logits, cache = model.run_with_cache(IDS, names_filter="blocks.1.attn.hook_pattern")
    assert isinstance(cache, transformer_lens.ActivationCache)
    assert list(cache) == ["blocks.1.attn.hook_pattern"]
    torch.testing.assert_close(logits, model(IDS, return_type="logits"))
    with pytest.raises(bl.BloomlabError):
        model.run_with_cache(IDS, names_filter="blocks.1.attn.hook_patern")


def test_weights_stand_under_transformer_lens_names(model):
    cfg = model.cfg
    attention = (cfg.n_layers, cfg.n_heads, cfg.d_model, cfg.d_head)
    assert model.W_Q.shape == model.W_K.shape == model.W_V.shape == attention
    assert model.W_O.shape == (cfg.n_layers, cfg.n_heads, cfg.d_head, cfg.d_model)
    assert model.b_Q.shape == model.b_K.shape == model.b_V.shape == attention[:2] + attention[3:]
    assert model.b_O.shape == (cfg.n_layers, cfg.d_model)
    assert model.W_E.shape == (cfg.d_vocab, cfg.d_model)
    assert model.W_U.shape == (cfg.d_model, cfg.d_vocab)


def test_weights_stand_under_transformers_names():
    theirs, ours = pair()
    theirs, ours = dict(theirs.named_parameters()), dict(ours.hf_named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[name].numel() == theirs[name].numel() for name in theirs)


def test_a_trace_and_a_cache_have_these_parts(model):
    trace = model.trace(IDS)
    assert isinstance(trace, bl.Trace)
    assert trace.pattern(1, 2).shape == trace.scores(1, 2).shape == (2, 7, 7)
    assert trace.thumbnails(size=4).shape == (2, 2, 6, 4, 4)
    assert isinstance(trace.nbytes, int)
    past = model(IDS, use_cache=True).past_key_values
    assert isinstance(past, bl.KVCache)
    assert past.positions.shape == past.valid.shape == (2, 7)
    assert past.fork(3).positions.shape == (6, 7)
    assert past.fork(3).gather([0, 1]).crop(4).valid.shape == (2, 4)
    assert past.to("cpu").nbytes > 0


def test_a_stream_tells_token_logits_and_trace(model):
    silent = ("blocks.0.attn.hook_z", lambda value, hook: torch.zeros_like(value))
    steps = model.stream(IDS, max_new_tokens=2, trace=True, interventions=[silent])
    for number, step in enumerate(steps):
        assert step.token.shape == (2,)
        assert step.logits.shape == (2, model.config.vocab_size)
        assert step.trace.pattern(0, 0).shape == (2, 7 + number, 7 + number)
    torch.testing.assert_close(
        model.generate(IDS, max_new_tokens=2)[:, :7], IDS
    )  # prompts come first, as in transformers


def test_results_of_experiments_have_frames(model):
    def metric(logits, ids):
        return logits[:, -1, 5]

    swept = bl.experiments.ablate_heads(model, IDS, metric=metric, progress=False)
    assert list(swept.frame.columns) == ["layer", "head", "effect", "stderr"]
    silent = torch.ones(2, 6)
    silent[0, 3] = 0
    change = metric(model(IDS, head_mask=silent).logits, IDS) - metric(model(IDS).logits, IDS)
    row = swept.frame.query("layer == 0 and head == 3")
    assert row.effect.item() == pytest.approx(change.mean().item(), abs=1e-5)
    scored = bl.experiments.head_importance(model, [{"input_ids": IDS}])
    assert list(scored.frame.columns) == ["layer", "head", "score"]
    curve = bl.experiments.prune_curve(model, IDS, n_random=1, kept=[0, 12], progress=False)
    assert isinstance(curve.frame, pd.DataFrame)


@pytest.mark.parametrize("kind", ["zero", "mean", "resample"])
def test_heads_are_ablated_in_these_ways(model, kind):
    got = bl.experiments.ablate_heads(model, IDS, kind=kind, heads=[(1, 2)], progress=False)
    assert got.frame[["layer", "head"]].to_numpy().tolist() == [[1, 2]]


@pytest.mark.parametrize("compensate", ["zero", "mean"])
def test_a_pruned_model_tells_which_heads_it_kept(model, compensate):
    data = None if compensate == "zero" else IDS
    small = bl.prune_heads(model, {1: [0, 4]}, compensate=compensate, data=data)
    assert isinstance(small, bl.BloomForCausalLM)
    kept = {layer: list(heads) for layer, heads in small.kept_heads.items()}
    assert kept == {0: [0, 1, 2, 3, 4, 5], 1: [1, 2, 3, 5]}


def test_the_demo_model_is_a_language_model_with_its_tokenizer(demo):
    assert isinstance(demo, bl.BloomForCausalLM)
    assert isinstance(demo.tokenizer, bl.BloomTokenizer)
    assert demo.to_string(demo.to_tokens("The cat")[0]) == "The cat"
