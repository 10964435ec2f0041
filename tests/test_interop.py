"""Other tools on our models and traces: they take them, and find the same numbers."""

import json
import re

import pytest
import torch

import bloomlab as bl
from bloomlab.errors import InputError, UnknownNameError, UnsupportedError
from bloomlab.interop import to_bertviz, to_circuitsvis
from bloomlab.printable import printable_tokens
from tests.points import LEFT
from tests.tiny import pair, tokens

IDS = tokens(2, 9)
TEXT = "The bridge over the river is closed."


@pytest.fixture(scope="module")
def models():
    return pair(dtype=torch.float64)


@torch.no_grad()
def test_a_trace_for_bertviz_is_transformers_attentions(models):
    theirs, ours = models
    expected = theirs(IDS, output_attentions=True).attentions
    for found, attention in zip(to_bertviz(ours.trace(IDS)), expected, strict=True):
        assert found.shape == attention.shape
        assert (found - attention).abs().max() < 1e-6  # transformers' softmax is float32


@torch.no_grad()
def test_of_a_padded_batch_each_row_is_transformers_attention_alone(models):
    theirs, ours = models
    patterns = to_bertviz(ours.trace(IDS, attention_mask=LEFT))
    for row, mask in enumerate(LEFT.bool()):
        expected = theirs(IDS[row, mask][None], output_attentions=True).attentions
        for found, attention in zip(patterns, expected, strict=True):
            seen = found[row][:, mask]
            assert (seen[..., mask] - attention[0]).abs().max() < 1e-6
            assert (seen[..., ~mask] == 0).all()


@torch.no_grad()
def test_a_trace_for_circuitsvis_is_one_row_of_transformers_attentions(models):
    theirs, ours = models
    expected = theirs(IDS, output_attentions=True).attentions
    trace = ours.trace(IDS)
    for layer in (0, 1, -1):
        for row in (0, 1):
            view = to_circuitsvis(trace, layer, row=row)
            assert (view.attention - expected[layer][row]).abs().max() < 1e-6
            assert view.attention_head_names == [f"L{layer % 2}H{head}" for head in range(6)]


@torch.no_grad()
def test_heads_of_a_pruned_model_keep_their_numbers(models):
    _, ours = models
    pruned = bl.prune_heads(ours, {0: [1, 4]})
    trace = pruned.trace(IDS)
    view = to_circuitsvis(trace, 0)
    assert view.attention_head_names == ["L0H0", "L0H2", "L0H3", "L0H5"]
    full = to_circuitsvis(ours.trace(IDS), 0).attention
    assert (view.attention - full[[0, 2, 3, 5]]).abs().max() < 1e-9
    with pytest.raises(UnsupportedError, match="differ in heads"):
        to_bertviz(trace)


def test_a_layer_without_heads_has_no_patterns(models):
    trace = bl.prune_heads(models[1], {0: range(6)}).trace(IDS)
    assert to_circuitsvis(trace, 0).attention.shape == (0, 9, 9)


def test_what_a_trace_lacks_is_refused(models):
    _, ours = models
    with pytest.raises(InputError, match="was not kept"):
        to_bertviz(ours.trace(IDS, keep=["resid"]))
    with pytest.raises(InputError, match="layer 0 was not kept"):
        to_circuitsvis(ours.trace(IDS, layers=[1]), 0)
    with pytest.raises((InputError, UnknownNameError), match="layer"):
        to_circuitsvis(ours.trace(IDS), 7)
    with pytest.raises((InputError, UnknownNameError), match="row"):
        to_circuitsvis(ours.trace(IDS), 0, row=2)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # bertviz' own scripts
@torch.no_grad()
def test_bertviz_shows_a_trace(demo):
    bertviz = pytest.importorskip("bertviz", reason="bertviz is an extra: bloomlab[interop]")
    trace = demo.trace(TEXT)
    labels = printable_tokens(demo.tokenizer, trace.tokens[0])
    for view in (bertviz.head_view, bertviz.model_view):
        page = view(to_bertviz(trace), labels, html_action="return").data
        shown = json.loads(re.search(r'"attn": (\[.*?\]\]\]\])', page)[1])
        assert torch.equal(torch.tensor(shown), torch.cat(to_bertviz(trace)))
        assert json.loads(re.search(r'"left_text": (\[.*?"\])', page)[1]) == labels


@torch.no_grad()
def test_circuitsvis_shows_a_trace(demo):
    attention = pytest.importorskip(
        "circuitsvis.attention", reason="CircuitsVis is an extra: bloomlab[interop]"
    )
    trace = demo.trace(TEXT)
    labels = printable_tokens(demo.tokenizer, trace.tokens[0])
    view = to_circuitsvis(trace, 1)
    shown = str(attention.attention_heads(tokens=labels, **view._asdict()))
    assert "L1H2" in shown
    assert f"{trace.pattern(1, 2)[0, -1, 0].item():.6f}"[:7] in shown


@torch.no_grad()
def test_nnsight_on_the_transformers_model_finds_the_same_activations(models):
    nnsight = pytest.importorskip("nnsight", reason="nnsight is an extra: bloomlab[interop]")
    _, ours = models
    wrapped = nnsight.NNsight(ours.to_hf())
    logits, cache = ours.run_with_cache(IDS)
    with wrapped.trace(IDS):
        first = wrapped.transformer.h[0].output.save()
        mlp = wrapped.transformer.h[1].mlp.output.save()
        final = wrapped.transformer.ln_f.output.save()
        theirs = wrapped.output.save()
    first = first[0] if isinstance(first, tuple) else first
    assert (first - cache["blocks.0.hook_resid_post"]).abs().max() < 1e-5
    assert (mlp - cache["blocks.1.hook_resid_post"]).abs().max() < 1e-5  # BLOOM adds inside
    assert (final - ours.backbone(IDS, use_cache=False).last).abs().max() < 1e-5
    assert (theirs.logits - logits).abs().max() < 1e-5


@torch.no_grad()
def test_an_edit_by_nnsight_is_the_same_edit_by_a_hook(models):
    nnsight = pytest.importorskip("nnsight", reason="nnsight is an extra: bloomlab[interop]")
    _, ours = models
    wrapped = nnsight.NNsight(ours.to_hf())
    push = torch.linspace(-1, 1, 48, dtype=torch.float64)
    with wrapped.trace(IDS):
        wrapped.transformer.word_embeddings_layernorm.output[:, 3] += push
        theirs = wrapped.output.logits.save()

    def add(value, hook):
        value[:, 3] += push
        return value

    got = ours.run_with_hooks(IDS, fwd_hooks=[("hook_embed", add)])
    assert (got - theirs).abs().max() < 1e-5
    assert (got - ours(IDS).logits).abs().max() > 0.1
