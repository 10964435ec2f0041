"""Gradient checkpointing: less memory, the same gradients, whatever else is going on."""

import pytest
import torch

from bloomlab.errors import UnsupportedError
from tests.tiny import distance_in_eps, pair, tokens


def gradients(model, run):
    model.zero_grad()
    run().backward()
    return torch.cat([value.grad.flatten() for value in model.parameters()])


def test_gradient_checkpointing_changes_memory_not_gradients():
    _, ours = pair(n_layer=3)
    ids = tokens(2, 9)
    gradients, saved = [], []
    ours.train()
    for switch in (ours.gradient_checkpointing_disable, ours.gradient_checkpointing_enable):
        switch()
        ours.zero_grad()
        sizes = []

        def count(tensor, sizes=sizes):
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            out = ours(ids, labels=ids)
        out.loss.backward()
        gradients.append(torch.cat([value.grad.flatten() for value in ours.parameters()]))
        saved.append(sum(sizes))
    assert out.past_key_values is None  # transformers' rule
    assert distance_in_eps(*gradients) < 200
    assert saved[1] < saved[0] / 2
    with pytest.raises(UnsupportedError, match="offload"):
        ours.activation_checkpointing_enable(offload=True)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradients_with_hooks_are_those_without_checkpointing(use_reentrant):
    _, ours = pair(n_layer=3)
    ids = tokens(2, 9)
    ours.train()
    hooks = [("blocks.1.attn.hook_z", lambda value, hook: value * 0.5)]

    def run():
        return ours.run_with_hooks(ids, labels=ids, return_type="loss", fwd_hooks=hooks)

    expected = gradients(ours, run)
    ours.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    assert distance_in_eps(gradients(ours, run), expected) < 200


def test_gradients_through_a_cache_are_those_without_checkpointing():
    _, ours = pair(n_layer=3)
    ids = tokens(2, 9)
    past = ours(ids[:, :4]).past_key_values
    ours.train()

    def run():
        logits = ours(ids[:, 4:], past_key_values=past.fork(), return_type="logits")
        return logits.square().mean()

    with torch.no_grad():
        past = ours(ids[:, :4]).past_key_values
    expected = gradients(ours, run)
    ours.gradient_checkpointing_enable()
    assert distance_in_eps(gradients(ours, run), expected) < 200


def test_the_flag_may_be_set_by_hand():
    _, ours = pair()
    ours.train().gradient_checkpointing = True
    assert torch.isfinite(ours(tokens(2, 5), return_type="loss"))
