"""Direct logit attribution: it sums to transformers' logits, and each part is what it says."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import bloomlab as bl
from bloomlab.errors import InputError, NumericalError, ShapeError, UnsupportedError
from bloomlab.experiments.attribution import attribute_logits
from bloomlab.model.prune import prune_heads
from tests.planted import induction_circuit
from tests.tiny import pair, tokens


@pytest.fixture(scope="module")
def models():
    return pair(dtype=torch.float64)


@torch.no_grad()
def test_the_stream_is_the_sum_of_what_components_write(models):
    _, model = models
    _, cache = model.run_with_cache(tokens(2, 7), names_filter=lambda name: True)
    total = cache["hook_embed"]
    for layer, block in enumerate(model.blocks):
        total = total + cache[f"blocks.{layer}.attn.hook_result"].sum(2) + block.attn.b_O
        total = total + cache[f"blocks.{layer}.hook_mlp_out"]
        assert (total - cache[f"blocks.{layer}.hook_resid_post"]).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("positions", "columns"), [(-1, [6]), (None, range(7)), ([0, 3, -2], [0, 3, 5])]
)
def test_contributions_sum_to_the_logits(models, positions, columns):
    theirs, model = models
    ids, answers = tokens(3, 7), torch.tensor([5, 60, 96])
    logits, rounded = (m(ids).logits.detach() for m in (model, theirs))
    found = attribute_logits(model, ids, answers=answers, positions=positions)
    sums = found.frame.groupby(["text", "pos"]).contribution.sum()
    assert sums.index.tolist() == [(text, pos) for text in range(3) for pos in columns]
    for (text, pos), total in sums.items():
        assert total == pytest.approx(logits[text, pos, answers[text]].item(), abs=1e-10)
        # transformers' softmax is of float32 in a float64 model
        assert total == pytest.approx(rounded[text, pos, answers[text]].item(), abs=1e-5)
    assert found.error < 1e-10
    found.check()


def test_differences_sum_to_differences_and_the_default_answer_is_the_likeliest(models):
    _, model = models
    ids, answers = tokens(2, 6), torch.tensor([[5, 60], [96, 4]])
    logits = model(ids).logits.detach()[:, -1]
    found = attribute_logits(model, ids, answers=answers).frame
    both = logits.gather(1, answers)
    sums = found.groupby("text").contribution.sum()
    assert sums.tolist() == pytest.approx((both[:, 0] - both[:, 1]).tolist(), abs=1e-10)
    assert found.answer.unique().tolist() == [5, 96]
    assert found.versus.unique().tolist() == [60, 4]
    one, other = (
        attribute_logits(model, ids, answers=answers[:, i]).frame.contribution for i in range(2)
    )
    assert found.contribution.to_numpy() == pytest.approx((one - other).to_numpy(), abs=1e-10)
    likeliest = attribute_logits(model, ids, positions=None)
    assert likeliest.answers[:, 0].tolist() == model(ids).logits.argmax(-1).flatten().tolist()
    assert likeliest.error < 1e-10


@torch.no_grad()
def test_each_contribution_is_what_the_logit_loses_with_the_norm_frozen(models):
    theirs, model = models
    ids, answer = tokens(1, 6), 8
    found = attribute_logits(model, ids, answers=[answer]).frame.set_index("component")
    _, cache = model.run_with_cache(ids, names_filter=lambda name: True)
    norm, column = theirs.transformer.ln_f, theirs.lm_head.weight[answer]
    stream = cache["resid_post", 1][0, -1]
    sigma = (stream.var(correction=0) + norm.eps).sqrt()

    def logit(x):
        return ((x - x.mean()) / sigma * norm.weight + norm.bias) @ column

    writes = {
        "embed": cache["hook_embed"],
        "L0H4": cache["result", 0][:, :, 4],
        "L1H0": cache["result", 1][:, :, 0],
        "L0 attn_bias": model.blocks[0].attn.b_O.expand(1, 6, -1),
        "L1 mlp": cache["mlp_out", 1],
    }
    for name, value in writes.items():
        lost = logit(stream) - logit(stream - value[0, -1])
        assert found.contribution[name] == pytest.approx(lost.item(), abs=1e-10), name
    assert found.contribution["final_bias"] == pytest.approx((norm.bias @ column).item())
    assert len(found) == 1 + 2 * (6 + 2) + 1
    assert found.loc["L1H0", ["kind", "layer", "head"]].tolist() == ["head", 1, 0]
    assert found.loc["embed", ["layer", "head"]].isna().all()


def test_padding_changes_nothing(models):
    _, model = models
    ids = tokens(2, 5)
    alone = attribute_logits(model, ids, positions=[0, -1]).frame
    for left, right in ((3, 0), (0, 2), (1, 2)):
        rows = F.pad(ids, (left, right), value=3)
        mask = F.pad(torch.ones_like(ids), (left, right))
        again = attribute_logits(model, rows, mask, positions=[0, -1]).frame
        assert again.drop(columns="contribution").equals(alone.drop(columns="contribution"))
        np.testing.assert_allclose(again.contribution, alone.contribution, atol=1e-10)
    ragged = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    both = attribute_logits(model, ids, ragged)
    assert both.pos.tolist() == [2, 3]
    for text, some in enumerate((ids[:1, :3], ids[1:, 1:])):
        expected = attribute_logits(model, some).contributions[0]
        torch.testing.assert_close(both.contributions[text], expected, atol=1e-10, rtol=0)


def test_heads_of_a_pruned_model_keep_their_numbers(models):
    _, model = models
    ids = tokens(2, 5)
    pruned = prune_heads(model, {0: [0, 3], 1: range(6)})
    mask = torch.ones(2, 6)
    mask[0, [0, 3]] = mask[1] = 0
    found = attribute_logits(pruned, ids)
    heads = found.frame.query("kind == 'head' and text == 0")
    assert heads.component.tolist() == ["L0H1", "L0H2", "L0H4", "L0H5"]
    assert heads["head"].tolist() == [1, 2, 4, 5]
    with torch.no_grad():
        logits = model(ids, head_mask=mask).logits[:, -1].amax(-1)
    sums = found.contributions.sum(-1)
    torch.testing.assert_close(sums, logits, atol=1e-10, rtol=0)


def test_the_planted_copying_head_does_it_all():
    circuit = induction_circuit()
    ids = circuit.ids()
    answers = ids[:, -1]  # what followed the last token but one when it first came
    found = attribute_logits(circuit.model, ids[:, :-1], answers=answers)
    heads = found.frame.query("kind == 'head'").groupby(["layer", "head"]).contribution.mean()
    assert heads.idxmax() == circuit.matchers[0]
    assert heads.max() > 0.99 * heads.sum()
    assert found.error < 1e-10


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 0.5)])
def test_rounding_is_all_that_is_lost_in_other_formats(dtype, limit):
    _, model = pair(dtype=dtype)
    found = attribute_logits(model, tokens(2, 6), positions=None)
    assert found.error < limit * found.contributions.abs().max()
    assert found.contributions.dtype == torch.float32
    found.check()


def test_text_and_its_answers(demo):
    found = attribute_logits(
        demo, ["The cat sat on", "A"], answers=[[" the", " a"], [" man", " b"]]
    )
    assert found.answers[0].tolist() == [demo.to_single_token(" the"), demo.to_single_token(" a")]
    logits = demo("A").logits[0, -1]
    expected = logits[found.answers[1, 0]] - logits[found.answers[1, 1]]
    assert found.contributions[1].sum().item() == pytest.approx(expected.item(), abs=1e-3)


def test_an_edited_component_is_noticed(models):
    _, model = models
    double = [("blocks.1.hook_attn_out", lambda value, hook: value * 2)]
    with model.hooks(fwd_hooks=double):
        found = attribute_logits(model, tokens(1, 5))
    with pytest.raises(NumericalError, match="hooks attached"):
        found.check()


def test_wrong_requests_are_refused(models):
    theirs, model = models
    ids = tokens(2, 5)
    for positions in (5, [0, -6], [], 0.5, True):
        with pytest.raises(InputError, match="every text needs"):
            attribute_logits(model, ids, positions=positions)
    with pytest.raises(InputError, match="from -3 to 2"):
        attribute_logits(model, ids, torch.tensor([[1] * 5, [0, 0, 1, 1, 1]]), positions=3)
    for answers in ([4], torch.ones(2, 3).long(), torch.ones(2, 2, 1).long()):
        with pytest.raises(ShapeError, match="answers has shape"):
            attribute_logits(model, ids, answers=answers)
    with pytest.raises(InputError, match="not as many"):
        attribute_logits(model, ids, answers=[[4], [4, 5]])
    with pytest.raises(InputError, match="97 is no token"):
        attribute_logits(model, ids, answers=[4, 97])
    _, post = pair(apply_residual_connection_post_layernorm=True)
    with pytest.raises(UnsupportedError, match="apply_residual_connection_post_layernorm"):
        attribute_logits(post, ids)
    with pytest.raises(UnsupportedError, match="no unembedding"):
        attribute_logits(bl.BloomModel.from_hf(theirs.transformer), ids)
