"""Generation under odd circumstances: it says so, or does what a plain forward would."""

import pytest
import torch
from transformers import DynamicCache, LogitsProcessor

import bloomlab as bl
from bloomlab import interventions as iv
from bloomlab.errors import CacheError, InputError, NumericalError
from tests.tiny import distance_in_eps, pair, tokens

PLAIN = {"max_new_tokens": 6, "eos_token_id": []}


@pytest.mark.parametrize("step", [0, 2])
def test_a_broken_step_is_taken_back_out_of_a_cache_with_a_policy(step):
    _, ours = pair()
    past = bl.KVCache(policy=bl.SinkWindow(sinks=2, window=4))
    broken = iv.steer(0, torch.full((48,), torch.nan)).at_steps([step])
    with pytest.raises(NumericalError, match="blocks.0"):
        list(ours.stream(tokens(1, 9), past_key_values=past, interventions=[broken], **PLAIN))
    assert past.seen == (0 if step == 0 else 9 + step - 1)
    assert isinstance(past.policy, bl.SinkWindow)
    assert bool(past.valid.all())


def test_a_trace_does_not_follow_a_policy():
    _, ours = pair()
    past = bl.KVCache(policy=bl.SinkWindow(sinks=2, window=4))
    with pytest.raises(InputError, match="policy drops tokens"):
        ours.stream(tokens(1, 9), past_key_values=past, trace=True)


class Wrapped(torch.nn.Module):
    """A stand-in for an adapter."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) * 2


def wrap(model):
    model.blocks[1].mlp.fc_in = Wrapped(model.blocks[1].mlp.fc_in)


def hook_block(model):
    model.blocks[1].register_forward_hook(lambda *args: (args[2][0] * 2, args[2][1]))


def new_data(model):
    model.blocks[1].mlp.fc_in.weight.data = model.blocks[1].mlp.fc_in.weight.data * 2


def in_place(model):
    model.blocks[1].mlp.fc_in.weight.data.mul_(2)


@pytest.mark.parametrize("edit", [wrap, hook_block, new_data, in_place])
def test_a_model_changed_between_two_steps_is_noticed(edit):
    forced, ids = tokens(1, 6, seed=3), tokens(1, 5)
    _, ours = pair()
    got = []
    for step in ours.stream(ids, forced=forced):
        got.append(step.logits)
        if step.index == 2:
            edit(ours)
    _, other = pair()
    past, expected = bl.KVCache(), []
    with torch.no_grad():
        for i, new in enumerate([ids, *forced.split(1, 1)][:6]):
            expected.append(other(new, past_key_values=past).logits[:, -1])
            if i == 2:
                edit(other)
    for mine, theirs in zip(got, expected, strict=True):
        assert distance_in_eps(mine, theirs) < 200


def test_a_processor_that_changes_the_model_is_followed():
    class Meddler(LogitsProcessor):
        calls = 0

        def __call__(self, input_ids, scores):
            self.calls += 1
            if self.calls == 3:
                ours.blocks[0].attn.slopes = ours.blocks[0].attn.slopes * 5
            return scores

    texts = []
    for use_cache in (True, False):
        _, ours = pair()
        processors = [Meddler()]
        texts.append(
            ours.generate(tokens(2, 5), logits_processor=processors, use_cache=use_cache, **PLAIN)
        )
    assert texts[0].shape == texts[1].shape
    assert torch.equal(texts[0][:, :8], texts[1][:, :8])


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"num_return_sequences": 2}])
def test_a_head_mask_of_rows_may_be_a_list(options):
    _, ours = pair()
    mask = torch.rand(2, 2, 6).round(decimals=2)
    options = {**PLAIN, **options, "do_sample": "num_beams" not in options, "seed": 1}
    options = {k: v for k, v in options.items() if k != "seed" or options["do_sample"]}
    got = [ours.generate(tokens(2, 5), head_mask=m, **options) for m in (mask, mask.tolist())]
    assert torch.equal(*got)


def test_transformers_cache_grows_with_generation():
    theirs, ours = pair()
    ids = tokens(2, 7)
    expected = theirs.generate(ids, do_sample=False, **PLAIN)
    cache = DynamicCache()
    assert torch.equal(ours.generate(ids, past_key_values=cache, **PLAIN), expected)
    assert cache.get_seq_length() == 7 + 5
    more = theirs.generate(expected, do_sample=False, **PLAIN)
    assert torch.equal(ours.generate(expected, past_key_values=cache, **PLAIN), more)


def test_gradients_through_a_pattern_survive_a_growing_cache():
    _, ours = pair()
    ours.requires_grad_(False)
    weight = torch.ones(6, 1, 1, requires_grad=True)
    past, total = bl.KVCache(), 0
    name = "blocks.0.attn.hook_pattern"
    with ours.hooks(fwd_hooks=[(name, lambda value, hook: value * weight)]):
        for column in range(4):
            new = tokens(1, 4)[:, column : column + 1]
            total = total + ours(new, past_key_values=past).logits.square().sum()
        total.backward()
        got, weight.grad = weight.grad, None
        ours(tokens(1, 4)).logits.square().sum().backward()
    assert distance_in_eps(got, weight.grad) < 200


def test_edits_that_count_are_refused_where_the_count_is_unknown():
    _, ours = pair()
    ids, edit = tokens(1, 7), iv.mask_heads(0, None).at_columns([1])
    past = ours(ids).past_key_values
    with ours.hooks(fwd_hooks=[edit]):
        with pytest.raises(InputError, match="goes on from 7 cached tokens"):
            ours(ids[:, :1], past_key_values=past)
        with pytest.raises(InputError, match="interventions="):
            ours.generate(ids, **PLAIN)
        assert ours.generate(ids, use_cache=False, **PLAIN).shape == (1, 13)
    assert ours(ids[:, :1], past_key_values=past).logits.shape[1] == 1
    with ours.hooks(fwd_hooks=iv.mask_heads(0, None)):  # a lone one, in force everywhere
        assert ours.generate(ids, **PLAIN).shape == (1, 13)


def test_generate_takes_interventions():
    _, ours = pair()
    ids, edit = tokens(2, 7), iv.mask_heads(0, None).at_steps([1, 2])
    steps = list(ours.stream(ids, interventions=[edit], **PLAIN))
    got = ours.generate(ids, interventions=edit, **PLAIN)
    assert torch.equal(got, torch.cat([ids, *(s.token[:, None] for s in steps)], 1))
    with pytest.raises(InputError, match="without beams"):
        ours.generate(ids, interventions=[edit], num_beams=2)


def test_a_cache_that_grows_behind_the_streams_back_is_noticed():
    _, ours = pair()
    past = bl.KVCache()
    steps = ours.stream(tokens(1, 7), past_key_values=past, **PLAIN)
    next(steps)
    ours(tokens(1, 1), past_key_values=past)
    with pytest.raises(CacheError, match=r"holds 8 tokens where 7 were read"):
        next(steps)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"do_sample": "no"}, "do_sample is 'no'"),
        ({"use_cache": "no"}, "use_cache is 'no'"),
        ({"generator": 5}, "expected a torch.Generator"),
        ({"logits_processor": 5}, "logits_processor is 5"),
        ({"stopping_criteria": len}, "stopping_criteria is"),
        ({"eos_token_id": 999}, "from 0 to 96"),
        ({"eos_token_id": [-5]}, "from 0 to 96"),
        ({"streamer": object()}, "expected one of transformers' streamers"),
        ({"past_key_values": 3}, "past_key_values is a int"),
    ],
)
def test_wrong_arguments_are_told_before_anything_runs(arguments, message):
    _, ours = pair()
    arguments = {"past_key_values": bl.KVCache(), **arguments}
    with pytest.raises((InputError, CacheError), match=message):
        ours.generate(tokens(1, 5), **arguments)
    past = arguments["past_key_values"]
    assert not isinstance(past, bl.KVCache) or len(past) == 0
