"""Law 1 and 3: the same numbers as transformers, for every class, dtype, head count and padding."""

import pytest
import torch

import bloomlab as bl
from bloomlab.model.outputs import PAST
from tests.tiny import CLASSES, distance_in_eps, make_hf, pair, tokens

LIMIT = {torch.float32: 200, torch.bfloat16: 10, torch.float16: 10}  # eps of the largest value
MASKS = {
    "none": None,
    "left": [[0, 0, 0, 1, 1, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1, 1, 1, 0]],
    "ragged": [[0, 0, 1, 1, 0, 1, 1, 1, 0], [1, 1, 0, 0, 1, 1, 1, 1, 1]],
}


def mask_of(padding):
    return None if MASKS[padding] is None else torch.tensor(MASKS[padding])


def labels_for(kind, ids):
    if kind == "BloomForCausalLM":
        return {"labels": ids.masked_fill(ids % 5 == 0, -100)}
    if kind == "BloomForSequenceClassification":
        return {"labels": torch.tensor([1, 0])}
    if kind == "BloomForTokenClassification":
        return {"labels": ids % 2}
    if kind == "BloomForQuestionAnswering":
        return {"start_positions": torch.tensor([2, 4]), "end_positions": torch.tensor([5, 60])}
    return {}


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("dtype", LIMIT)
@pytest.mark.parametrize("kind", CLASSES)
def test_every_output_equals_transformers(kind, dtype, padding):
    theirs, ours = pair(kind, dtype=dtype)
    ids, mask = tokens(2, 9), mask_of(padding)
    # the rows of padding itself: float16 transformers overflows there (reference, defect b)
    seen = torch.ones(2, 9, dtype=torch.bool) if mask is None else mask.bool()
    if dtype != torch.float16:
        seen[:] = True
    arguments = {"attention_mask": mask, "output_hidden_states": True, **labels_for(kind, ids)}
    if dtype == torch.float16 and padding in ("left", "ragged"):
        arguments |= dict.fromkeys(labels_for(kind, ids), None)
    eager = ours(ids, output_attentions=True, **arguments)
    with torch.no_grad():  # with gradients, padded rows would be eager too
        fused = ours(ids, **arguments)
    expected = theirs(ids, output_attentions=True, **arguments)
    assert set(eager.keys()) == set(expected.keys())
    for got in (eager, fused):
        for name in set(got.keys()) - {PAST}:
            for a, b in zip(as_list(got[name]), as_list(expected[name]), strict=True):
                if a.shape[:2] == seen.shape:
                    a, b = a[seen], b[seen]
                elif a.ndim == 4:
                    a, b = (t.transpose(1, 2)[seen] for t in (a, b))
                assert distance_in_eps(a, b, dtype) < LIMIT[dtype], name


def as_list(value):
    return list(value) if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize(
    ("n_head", "width"), [(1, 8), (3, 48), (6, 48), (12, 48), (16, 64), (112, 224)]
)
def test_head_counts_and_skip_variants_equal_transformers(n_head, width, post_norm):
    theirs, ours = pair(
        n_head=n_head, hidden_size=width, apply_residual_connection_post_layernorm=post_norm
    )
    ids, mask = tokens(2, 9), mask_of("ragged")
    for dtype, limit in LIMIT.items():
        theirs, ours = theirs.to(dtype), ours.to(dtype)
        rows = mask.bool()
        got, expected = (m(ids, attention_mask=mask).logits[rows] for m in (ours, theirs))
        assert distance_in_eps(got, expected) < limit


@pytest.mark.slow
@pytest.mark.parametrize("dtype", LIMIT)
def test_long_prompts_equal_transformers(dtype):
    theirs, ours = pair(dtype=dtype, n_head=12)
    ids = tokens(1, 1200)
    assert distance_in_eps(ours(ids).logits, theirs(ids).logits) < LIMIT[dtype]


@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("n_head", [3, 12])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_equals_transformers_to_the_last_bit(dtype, n_head, padding):
    theirs, ours = pair(dtype=dtype, n_head=n_head)
    ids, mask = tokens(2, 9), mask_of(padding)
    rows = torch.ones(2, 9, dtype=torch.bool) if mask is None else mask.bool()
    expected = theirs(ids, attention_mask=mask).logits[rows]
    assert torch.equal(ours(ids, attention_mask=mask).logits[rows], expected)
    with torch.no_grad():
        assert torch.equal(ours(ids, attention_mask=mask).logits[rows], expected)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("padding", ["none", "left"])
def test_gradients_of_every_parameter_equal_transformers(kind, padding):
    theirs, ours = pair(kind)
    ids, mask = tokens(2, 9), mask_of(padding)
    for model in (theirs, ours):
        model.zero_grad()
        out = model(ids, attention_mask=mask, **labels_for(kind, ids))
        loss = out[0].square().mean() if kind == "BloomModel" else out.loss
        loss.backward()
    expected = {name: value.grad for name, value in theirs.named_parameters()}
    top = max(gradient.abs().max() for gradient in expected.values())
    for name, value in ours.hf_named_parameters():
        assert (value.grad - expected[name]).abs().max() < 200 * 1.2e-7 * top, name


@pytest.mark.parametrize("kind", CLASSES[1:])
def test_bfloat16_gradients_equal_transformers(kind):
    theirs, ours = pair(kind, dtype=torch.bfloat16)
    ids = tokens(2, 9)
    for model in (theirs, ours):
        model(ids, **labels_for(kind, ids)).loss.backward()
    expected = {name: value.grad for name, value in theirs.named_parameters()}
    top = max(gradient.abs().max() for gradient in expected.values())
    for name, value in ours.hf_named_parameters():
        error = (value.grad - expected[name]).abs().max()
        assert error < LIMIT[torch.bfloat16] * torch.finfo(torch.bfloat16).eps * top, name


@pytest.mark.parametrize("kind", CLASSES)
def test_dropout_acts_where_transformers_has_it(kind):
    theirs, ours = pair(kind, hidden_dropout=0.2, attention_dropout=0.3)
    ids = tokens(2, 9)
    outputs = []
    for model in (theirs.train(), ours.train()):
        torch.manual_seed(0)
        outputs.append(model(ids)[0])
    assert distance_in_eps(outputs[1], outputs[0]) < 200


@pytest.mark.parametrize("pretraining_tp", [2, 5])
def test_slow_but_exact_keeps_the_biases_transformers_forgets(pretraining_tp):
    theirs, plain = pair()
    slow = bl.BloomForCausalLM.from_hf(make_hf(slow_but_exact=True, pretraining_tp=pretraining_tp))
    ids = tokens(2, 9)
    assert distance_in_eps(slow(ids).logits, plain(ids).logits) < 200
    with torch.no_grad():
        hf = make_hf(slow_but_exact=True, pretraining_tp=pretraining_tp)
        for model in (hf, slow):
            for name, value in model.named_parameters():
                if name.endswith(
                    ("dense.bias", "dense_4h_to_h.bias", "attn.o.bias", "fc_out.bias")
                ):
                    value.zero_()
    assert distance_in_eps(slow(ids).logits, hf(ids).logits) < 200


@pytest.mark.parametrize("kind", CLASSES)
def test_a_tuple_holds_what_the_output_holds(kind):
    _, ours = pair(kind)
    ids = tokens(2, 9)
    arguments = {"output_hidden_states": True, "output_attentions": True, "use_cache": False}
    output = ours(ids, **arguments, **labels_for(kind, ids))
    bare = ours(ids, return_dict=False, **arguments, **labels_for(kind, ids))
    assert isinstance(bare, tuple)
    assert len(bare) == len(output.keys())


@pytest.mark.parametrize(
    "keep",
    [0, 1, 4, torch.tensor([0, 3]), torch.tensor([[0, 3], [5, 2]]), torch.rand(2, 9) > 0.5],
)
def test_logits_to_keep_equals_transformers(keep):
    theirs, ours = pair()
    ids = tokens(2, 9)
    got, expected = (m(ids, logits_to_keep=keep).logits for m in (ours, theirs))
    assert got.shape == expected.shape
    assert distance_in_eps(got, expected) < 200


def test_loss_is_divided_by_num_items_in_batch():
    theirs, ours = pair()
    ids = tokens(2, 9)
    for items in (7, torch.tensor(7)):
        got, expected = (m(ids, labels=ids, num_items_in_batch=items).loss for m in (ours, theirs))
        assert distance_in_eps(got, expected) < 200


def test_embeddings_may_replace_ids():
    theirs, ours = pair()
    embeds = torch.randn(2, 9, 48)
    got, expected = (m(inputs_embeds=embeds).logits for m in (ours, theirs))
    assert distance_in_eps(got, expected) < 200


@pytest.mark.parametrize("problem", ["regression", "one number", "single", "multi"])
def test_sequence_losses_equal_transformers(problem):
    n = {"regression": 3, "one number": 1, "single": 3, "multi": 3}[problem]
    theirs, ours = pair("BloomForSequenceClassification", num_labels=n)
    ids = tokens(4, 9)
    labels = {
        "regression": torch.randn(4, 3),
        "one number": torch.randn(4),
        "single": torch.tensor([0, 2, 1, 1]),
        "multi": torch.randint(0, 2, (4, 3)).float(),
    }[problem]
    if problem == "regression":
        ours.config.problem_type = theirs.config.problem_type = "regression"
    got, expected = (m(ids, labels=labels) for m in (ours, theirs))
    assert distance_in_eps(got.loss, expected.loss) < 200


def test_sequence_classifier_reads_the_last_token_that_is_no_padding():
    theirs, ours = pair("BloomForSequenceClassification")
    ids = tokens(3, 9)
    ids[0, 6:], ids[1, :4] = 3, 3
    mask = (ids != 3).long()
    got, expected = (m(ids, attention_mask=mask).logits for m in (ours, theirs))
    assert distance_in_eps(got, expected) < 200


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_alone_equals_the_row_in_a_padded_batch(dtype):
    _, ours = pair(dtype=dtype)
    rows = [tokens(1, n, seed=n) for n in (3, 9, 6)]
    for side in ("left", "right"):
        ids, mask = torch.full((3, 9), 3), torch.zeros(3, 9, dtype=torch.long)
        for i, row in enumerate(rows):
            place = slice(9 - row.shape[1], 9) if side == "left" else slice(0, row.shape[1])
            ids[i, place], mask[i, place] = row[0], 1
        together = ours(ids, attention_mask=mask).logits
        for i, row in enumerate(rows):
            alone = ours(row).logits[0]
            assert distance_in_eps(together[i][mask[i].bool()], alone) < 200


@pytest.mark.parametrize("eager", [False, True])
@pytest.mark.parametrize("alibi", ["hf", "exact"])
@pytest.mark.parametrize("dtype", [*LIMIT, torch.float64])
def test_padding_never_gives_nan(dtype, alibi, eager):
    _, ours = pair(dtype=dtype)
    ours.alibi = alibi
    with torch.no_grad():  # scores far below -16, where float16 transformers overflows to -inf
        for block in ours.blocks:
            block.attn.b_Q[:], block.attn.b_K[:] = 9, -9
    ids, mask = tokens(2, 9), mask_of("left")
    out = ours(ids, attention_mask=mask, output_attentions=eager, labels=ids)
    assert torch.isfinite(out.logits).all()
    out.loss.backward()
    assert all(torch.isfinite(value.grad).all() for value in ours.parameters())


def test_float64_is_float64_throughout():
    theirs, ours = pair(dtype=torch.float64)
    ids = tokens(1, 9)
    # transformers' softmax is float32 even here; ours must be nearer to a float64 softmax
    fused, eager = ours(ids).logits, ours(ids, output_attentions=True).logits
    assert distance_in_eps(fused, eager) < 200
    assert 1e-12 < (theirs(ids).logits - fused).abs().max() / fused.abs().max() < 1e-5
