"""Law 9: state is passed, never kept."""

import copy
import pickle

import pytest
import torch

import bloomlab as bl
from bloomlab.errors import (
    ConfigError,
    InputError,
    ShapeError,
    UnknownArgumentError,
    UnknownNameError,
)
from tests.tiny import pair, tokens


def test_activations_depend_on_the_input_alone():
    """A cache kept on a module would shift scores after a longer prompt."""
    _, ours = pair()
    ids, longer = tokens(1, 5), tokens(3, 20)
    _, before = ours.run_with_cache(ids)
    ours(longer, output_attentions=True, head_mask=torch.zeros(6))
    ours.generate(longer, max_new_tokens=3)
    _, after = ours.run_with_cache(ids)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_an_exception_in_a_hook_leaves_no_hook_behind():
    _, ours = pair()
    ids = tokens(1, 5)

    def fail(value, hook):
        raise RuntimeError("stop here")

    for run in (
        lambda: ours.run_with_hooks(ids, fwd_hooks=[("blocks.0.hook_resid_mid", fail)]),
        lambda: ours.run_with_cache(ids, attention_mask=torch.ones(1, 9)),
    ):
        with pytest.raises(Exception, match="stop here|attention_mask"):
            run()
        assert not any(p._forward_hooks or p._backward_hooks for p in ours.hook_points())


def test_inputs_are_not_changed():
    _, ours = pair()
    ids, mask, heads = tokens(2, 9), torch.ones(2, 9), torch.rand(2, 6)
    copies = ids.clone(), mask.clone(), heads.clone()
    ours(ids, attention_mask=mask, head_mask=heads)
    ours.generate(ids, attention_mask=mask, head_mask=heads, max_new_tokens=2)
    assert all(torch.equal(a, b) for a, b in zip((ids, mask, heads), copies, strict=True))


def test_autocast_matches_the_half_precision_it_asks_for():
    _, ours = pair()
    ids, mask = tokens(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[0, :4] = 0
    with torch.autocast("cpu", torch.bfloat16):
        out = ours(ids, attention_mask=mask, labels=ids)
        out.loss.backward()
    assert torch.isfinite(out.logits).all()
    assert all(torch.isfinite(value.grad).all() for value in ours.parameters())


def test_models_made_from_one_config_share_nothing():
    theirs, _ = pair()
    first = bl.BloomForCausalLM(theirs.config)
    second = bl.BloomForCausalLM(first.config)
    first.alibi = "exact"
    assert second.alibi == "hf"
    config = first.config
    config.n_head = 5
    with pytest.raises(ConfigError, match="n_head"):
        bl.BloomForCausalLM(config)
    with pytest.raises(InputError, match="from_pretrained"):
        bl.BloomForCausalLM("demo")


def test_errors_travel_between_processes():
    for error in (
        ShapeError("mask", got=(1, 2), expected="[1]"),
        UnknownNameError("hook point", "a", ["ab"]),
        UnknownArgumentError("load", "dtpe", ["dtype"]),
    ):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again)) == (type(error), str(error))
        assert str(copy.copy(error)) == str(error)
