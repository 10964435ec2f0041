"""TransformerLens' model protocol: weights as views, state that copies well, text, `cfg`."""

import copy
import gc
import inspect
import io
import pickle
import weakref

import pytest
import torch
from transformer_lens import SVDInterpreter
from transformer_lens.model_protocol import (
    TrainableTransformerLensModel,
    TransformerLensModel,
    TransformerLensModelWithWeights,
)
from transformer_lens.tools.analysis import attention_head_subspace_affinity

import bloomlab as bl
from bloomlab.errors import InputError, TokenizerError
from tests.bridge import bridge_of
from tests.points import BATCH, LEFT, POS, assert_same
from tests.tiny import CLASSES, pair, tokens

TEXT = "The cat sat on the mat."


@pytest.fixture(scope="module")
def models():
    return pair(n_head=4, dtype=torch.float64)


def test_the_model_keeps_transformer_lens_protocols(models):
    protocols = TransformerLensModel, TransformerLensModelWithWeights, TrainableTransformerLensModel
    assert all(isinstance(models[1], protocol) for protocol in protocols)
    for member in ("blocks", "ln_final", "cfg", "accumulated_bias", "to_single_token"):
        inspect.getattr_static(models[1], member)  # how Python 3.12 and beartype look


def test_cfg_says_what_transformer_lens_says_of_the_same_model():
    theirs, ours = pair()
    expected = bridge_of(theirs).cfg
    for name in (
        *("d_model", "d_head", "n_heads", "n_layers", "d_mlp", "d_vocab", "n_ctx", "eps", "dtype"),
        *("normalization_type", "positional_embedding_type", "default_prepend_bos", "attn_only"),
        *("n_key_value_heads", "parallel_attn_mlp", "final_rms", "tie_word_embeddings"),
    ):
        assert getattr(ours.cfg, name) == getattr(expected, name), name
    assert ours.cfg.device == "cpu"
    assert ours.double().cfg.dtype == torch.float64


# -- weights ---------------------------------------------------------------------------------------


def test_stacked_weights_equal_transformer_lens():
    theirs, ours = pair(n_head=4)
    expected = bridge_of(theirs)
    for kind in ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out"):
        assert torch.equal(getattr(ours, kind), getattr(expected, kind)), kind
        bias = kind.replace("W", "b")
        assert torch.equal(getattr(ours, bias).reshape(-1), getattr(expected, bias).reshape(-1))
    for name in ("W_E", "W_U", "b_U"):
        assert torch.equal(getattr(ours, name), getattr(expected, name))
    assert ours.all_head_labels == expected.all_head_labels
    for mode in "QKV":
        got, scores = (m.all_composition_scores(mode) for m in (ours, expected))
        assert_same(got, scores.scores, limit=1e-5)
        got, pairs = (
            attention_head_subspace_affinity(m, target_role=mode) for m in (ours, expected)
        )
        assert_same(got.scores, pairs.scores, limit=1e-5)
    with pytest.raises(InputError, match="mode is 'X'"):
        ours.all_composition_scores("X")


@torch.no_grad()
def test_residual_directions_equal_transformer_lens(models):
    _, ours = models
    expected = bridge_of(pair(n_head=4)[0])
    for ids in (5, torch.tensor(5), torch.tensor([5]), torch.tensor([5, 7]), tokens(2, 3)):
        got = ours.tokens_to_residual_directions(ids)
        assert_same(got, expected.tokens_to_residual_directions(ids).double(), limit=1e-7)
    for layer, mlp_input in ((0, False), (0, True), (1, False), (1, True), (2, False)):
        got = ours.accumulated_bias(layer, mlp_input)
        assert_same(got, expected.accumulated_bias(layer, mlp_input).double(), limit=1e-6)


def test_weights_are_views_that_a_training_step_moves_with_the_parameter():
    _, ours = pair()
    attn, ids = ours.blocks[0].attn, tokens(1, 5)
    named = ours.tl_parameters()
    fused = {p.untyped_storage().data_ptr() for p in ours.parameters()}
    zeros = named.pop("unembed.b_U")
    assert not zeros.any()
    assert all(value.untyped_storage().data_ptr() in fused for value in named.values())
    assert len({value.data_ptr() for value in named.values()}) == len(named) - 1  # tied W_E, W_U
    w_q, before = attn.W_Q, attn.qkv.weight.detach().clone()
    optimizer = torch.optim.SGD(ours.parameters(), lr=0.1)
    ours(ids, return_type="loss").backward()
    optimizer.step()
    after = attn.qkv.weight.detach().view(6, 3, 8, 48)
    assert (after - before.view(6, 3, 8, 48)).abs().amax((0, 2, 3)).min() > 0  # q, k and v
    for part, weight in enumerate((attn.W_Q, attn.W_K, attn.W_V)):
        assert torch.equal(weight, after[:, part].mT)
    assert torch.equal(w_q, attn.W_Q)  # the view taken before


@torch.no_grad()
def test_writing_to_a_view_changes_the_model():
    theirs, ours = pair()
    ids = tokens(1, 5)
    ours.blocks[1].attn.W_O[3] = 0
    theirs.transformer.h[1].self_attention.dense.weight[:, 24:32] = 0
    assert_same(ours(ids).logits, theirs(ids).logits, limit=1e-5)
    ours.blocks[0].attn.W_V[2] *= 2
    theirs.transformer.h[0].self_attention.query_key_value.weight.view(6, 3, 8, 48)[2, 2] *= 2
    assert_same(ours(ids).logits, theirs(ids).logits, limit=1e-5)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@torch.no_grad()
def test_singular_vectors_equal_those_of_transformers_weights(models):
    theirs, ours = models
    block, unembed = theirs.transformer.h[1], theirs.lm_head.weight
    qkv = block.self_attention.query_key_value.weight.view(4, 3, 12, 48)
    ov = qkv[2, 2].T @ block.self_attention.dense.weight[:, 24:36].T
    w_in = block.mlp.dense_h_to_4h.weight * block.post_attention_layernorm.weight
    w_out = block.mlp.dense_4h_to_h.weight.T
    interpreter = SVDInterpreter(ours)
    for kind, matrix, head in (("OV", ov, 2), ("w_in", w_in, None), ("w_out", w_out, None)):
        got = interpreter.get_singular_vectors(kind, 1, num_vectors=3, head_index=head)[:, 0]
        expected = unembed @ torch.linalg.svd(matrix)[2][:3].T
        assert_same(got.abs(), expected.abs(), kind, limit=1e-8)
    assert_same(ours.OV[1, 2].AB, ov)
    assert_same(ours.QK[1, 2].AB, qkv[2, 0].T @ qkv[2, 1])


# -- resuming --------------------------------------------------------------------------------------


@pytest.mark.parametrize("post", [False, True])
@pytest.mark.parametrize("mask", [None, LEFT])
@torch.no_grad()
def test_stopping_and_starting_at_a_layer_resumes_exactly(post, mask):
    theirs, ours = pair(n_layer=3, apply_residual_connection_post_layernorm=post)
    ids = tokens(BATCH, POS)
    whole = ours(ids, attention_mask=mask).logits
    states = theirs(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    seen = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    for layer in range(4):
        stream = ours(ids, attention_mask=mask, stop_at_layer=layer)
        assert torch.equal(ours(stream, start_at_layer=layer, attention_mask=mask).logits, whole)
        if layer < 3:  # transformers' last state is normalised
            assert_same(stream, states[layer], seen=seen, limit=1e-5)
            back = ours(ids, attention_mask=mask, stop_at_layer=layer - 3)
            assert torch.equal(back, stream)


def test_only_the_layers_that_run_fire():
    _, ours = pair(n_layer=3)
    fired = []
    every = [(lambda _: True, lambda value, hook: fired.append(hook.name))]
    with ours.hooks(fwd_hooks=every):
        stream = ours(tokens(1, 3), stop_at_layer=1)
    assert {name.split(".")[1] for name in fired if name.startswith("blocks")} == {"0"}
    fired.clear()
    ours.run_with_hooks(stream, fwd_hooks=every, start_at_layer=1)
    assert {name[:8] for name in fired} == {"blocks.1", "blocks.2", "ln_final"}


# -- copies and memory -----------------------------------------------------------------------------


def by_torch(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), by_torch]
)
@torch.no_grad()
def test_a_copy_works_and_is_independent(duplicate):
    _, ours = pair()
    ids = tokens(1, 5)
    logits = ours(ids).logits
    twin = duplicate(ours)
    assert torch.equal(twin(ids).logits, logits)
    assert twin.unembed.W_U.data_ptr() == twin.embed.weight.data_ptr()
    assert twin.run_with_cache(ids)[1]["z", 1].shape == (1, 5, 6, 8)
    twin.embed.weight.mul_(2)
    twin.add_hook("blocks.0.hook_attn_out", lambda value, hook: value * 0)
    assert not ours.list_hooks()
    assert torch.equal(ours(ids).logits, logits)
    assert not torch.equal(twin(ids).logits, logits)
    twin.reset_hooks()
    twin.embed.weight.zero_()
    twin.blocks[0].attn.slopes.zero_()
    assert twin(ids).logits.abs().max() == 0  # the tied unembedding went with its own embedding
    assert torch.equal(ours(ids).logits, logits)


def test_memory_is_freed_without_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        _, ours = pair()
        ids = tokens(1, 5)
        cache = ours.run_with_cache(ids)[1]
        ours.run_with_hooks(ids, fwd_hooks=[("hook_embed", lambda value, hook: value)])
        with pytest.raises(InputError):
            ours.run_with_cache(ids + 1000)
        ours(ids, return_type="loss").backward()
        ours.generate(ids, max_new_tokens=2)
        watched = [weakref.ref(ours), weakref.ref(ours.embed.weight), weakref.ref(cache["z", 0])]
        del ours, cache
        assert [ref() for ref in watched] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", CLASSES)
@torch.no_grad()
def test_every_class_has_the_same_points(kind):
    theirs, ours = pair(kind)
    ids = tokens(1, 5)
    logits, cache = ours.run_with_cache(ids)
    expected = theirs(ids)
    first = expected.end_logits if "Question" in kind else expected[0]
    assert_same(logits[..., 1] if "Question" in kind else logits, first, limit=1e-5)
    assert set(ours.hook_dict) == set(pair()[1].hook_dict)
    states = theirs(ids, output_hidden_states=True).hidden_states
    assert_same(cache["resid_pre", 1], states[1], limit=1e-5)


# -- text ------------------------------------------------------------------------------------------


def test_text_and_tokens_are_the_tokenizers(demo):
    ids = demo.tokenizer(TEXT)["input_ids"]
    assert demo.to_tokens(TEXT).tolist() == [ids]
    assert demo.to_tokens(TEXT, prepend_bos=True).tolist() == [[1, *ids]]
    assert demo.to_string(ids) == TEXT
    assert demo.to_string(demo.to_tokens([TEXT, TEXT])) == [TEXT, TEXT]
    pieces = [demo.tokenizer.decode([i]) for i in ids]
    for text in (TEXT, ids, demo.to_tokens(TEXT), torch.tensor(ids)):
        assert demo.to_str_tokens(text) == pieces
    assert demo.to_str_tokens([TEXT, TEXT]) == [pieces, pieces]
    assert demo.to_single_token(pieces[1]) == ids[1]
    assert demo.to_single_str_token(ids[1]) == pieces[1]
    assert demo.get_token_position(ids[3], TEXT) == ids.index(ids[3])
    assert demo.get_token_position(pieces[0], ids * 2, mode="last") == len(ids)
    with pytest.raises(InputError, match="tokens .*, expected one"):
        demo.to_single_token(TEXT)
    with pytest.raises(InputError, match="does not occur"):
        demo.get_token_position(3, TEXT)
    with pytest.raises(InputError, match="text 1 is empty"):
        demo.to_tokens([TEXT, ""])


@torch.no_grad()
def test_texts_of_different_lengths_are_padded_and_masked(demo):
    texts = [TEXT, "The cat"]
    left, mask = demo.to_tokens_and_mask(texts)
    assert mask.sum(-1).tolist() == [len(demo.tokenizer(text)["input_ids"]) for text in texts]
    assert torch.equal(left != 3, mask.bool())
    assert not mask[1, 0]
    assert demo.to_tokens(texts, padding_side="right")[1, -1] == 3
    assert demo.tokenizer.padding_side == "left"
    logits, cache = demo.run_with_cache(texts)
    _, alone = demo.run_with_cache(texts[1])
    n_pad = int((mask[1] == 0).sum())
    assert_same(cache["resid_post", -1][1:, n_pad:], alone["resid_post", -1], limit=1e-4)
    assert_same(logits[1:, n_pad:], demo(texts[1]).logits, limit=1e-4)


def test_a_model_without_tokenizer_says_so(models):
    with pytest.raises(TokenizerError, match="takes token ids only"):
        models[1](TEXT)


def test_the_beginning_of_text_follows_cfg(demo):
    model = copy.deepcopy(demo)
    model.cfg.default_prepend_bos = True
    assert model.to_tokens(TEXT)[0, 0] == 1
    assert model.to_tokens(TEXT, prepend_bos=False)[0, 0] != 1
    assert model.to_single_token(" the") == demo.to_single_token(" the")
    assert isinstance(model, bl.BloomForCausalLM)
