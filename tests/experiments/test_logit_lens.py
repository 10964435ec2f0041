"""The logit lens against transformers' weights, TransformerLens' cache and the model itself."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import bloomlab as bl
from bloomlab.errors import InputError, TokenizerError, UnknownNameError, UnsupportedError
from bloomlab.experiments.logit_lens import logit_lens
from bloomlab.model.prune import prune_heads
from tests.bridge import bridge_of
from tests.tiny import pair, tokens

NUMBERS = ["top_probability", "last_probability", "next_probability", "entropy", "kl"]


def padded(ids, left, right=0):
    rows = F.pad(ids, (left, right), value=3)
    return rows, F.pad(torch.ones_like(ids), (left, right))


def test_predictions_are_those_of_transformer_lens_streams():
    theirs, model = pair()
    ids = tokens(2, 4)
    found = logit_lens(model, ids, k=3, tokens_of_interest=[5, 90], sites=("pre", "mid", "post"))
    _, cache = bridge_of(theirs).run_with_cache(ids)
    norm, head = theirs.transformer.ln_f, theirs.lm_head
    final = theirs(ids).logits.detach().log_softmax(-1)
    frame = found.frame.set_index(["layer", "site", "text", "pos"])
    top = found.top.set_index(["layer", "site", "text", "pos"])
    interest = found.interest.set_index(["layer", "site", "text", "pos"])
    assert len(frame) == 2 * 3 * 2 * 4
    for (layer, site), _ in frame.groupby(["layer", "site"]):
        with torch.no_grad():
            logprob = head(norm(cache[f"blocks.{layer}.hook_resid_{site}"])).log_softmax(-1)
        entropy = -(logprob.exp() * logprob).sum(-1)
        kl = (final.exp() * (final - logprob)).sum(-1)
        for text in range(2):
            for pos in range(4):
                at, p = (layer, site, text, pos), logprob[text, pos].exp()
                row, order = frame.loc[at], p.argsort(descending=True).tolist()
                assert row.token == ids[text, pos]
                assert row.entropy == pytest.approx(entropy[text, pos].item(), abs=1e-4)
                assert row.kl == pytest.approx(kl[text, pos].item(), abs=1e-4)
                assert row["last"] == final[text, pos].argmax()
                assert row.last_rank == order.index(row["last"])
                assert top.loc[at].predicted.tolist() == order[:3]
                assert top.loc[at].probability.tolist() == pytest.approx(
                    p[order[:3]].tolist(), abs=1e-5
                )
                assert interest.loc[at].predicted.tolist() == [5, 90]
                assert interest.loc[at]["rank"].tolist() == [order.index(5), order.index(90)]
                assert interest.loc[at].probability.tolist() == pytest.approx(
                    p[[5, 90]].tolist(), abs=1e-5
                )
                if pos < 3:
                    after = int(ids[text, pos + 1])
                    assert (row.next, row.next_rank) == (after, order.index(after))
                    assert row.next_probability == pytest.approx(p[after].item(), abs=1e-5)
    ends = found.frame[found.frame.pos == 3]
    assert ends[["next", "next_rank", "next_probability"]].isna().all(axis=None)


def test_the_last_stream_is_the_models_own_prediction(demo):
    found = logit_lens(demo, ["The cat sat on the mat.", "Le chat"], k=1)
    last = found.frame[(found.frame.layer == 5) & (found.frame.site == "post")]
    assert (last.kl == 0).all()
    assert (last.last_rank == 0).all()
    logits = demo("The cat sat on the mat.").logits[0]
    assert last[last.text == 0].top.tolist() == logits.argmax(-1).tolist()
    assert found.top.label.str.len().min() > 0
    earlier = found.frame[found.frame.site == "post"].groupby("layer").kl.mean()
    assert earlier.is_monotonic_decreasing


@pytest.mark.parametrize(("left", "right"), [(3, 0), (0, 2), (2, 2)])
def test_padding_changes_nothing(left, right):
    _, model = pair()
    ids = tokens(2, 6)
    alone = logit_lens(model, ids).frame
    rows, mask = padded(ids, left, right)
    again = logit_lens(model, rows, mask).frame
    assert list(again.columns) == list(alone.columns)
    for name in alone.columns:
        if name in NUMBERS:
            np.testing.assert_allclose(again[name], alone[name], atol=2e-5)
        else:
            assert again[name].equals(alone[name]), name


def test_a_ragged_batch_reads_each_text_as_alone():
    _, model = pair()
    ids = tokens(2, 6)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]])
    both = logit_lens(model, {"input_ids": ids, "attention_mask": mask}).frame
    for text, some in enumerate((ids[:1, 2:], ids[1:, :5])):
        alone = logit_lens(model, some).frame
        mine = both[both.text == text].reset_index(drop=True)
        assert mine.token.tolist() == alone.token.tolist()
        np.testing.assert_allclose(mine[NUMBERS], alone[NUMBERS], atol=2e-5)


def test_a_pruned_model_is_read_like_a_masked_one():
    _, model = pair()
    ids, mask = tokens(2, 6), torch.ones(2, 6)
    mask[0, [1, 4]] = mask[1] = 0
    pruned = prune_heads(model, {0: [1, 4], 1: range(6)})
    with torch.no_grad():
        logits = model(ids, head_mask=mask).logits
    found = logit_lens(pruned, ids, sites="post").frame
    last = found[found.layer == 1]
    expected = logits.softmax(-1).amax(-1).flatten().numpy()
    assert last.top_probability.to_numpy() == pytest.approx(expected, abs=1e-5)


def test_wrong_requests_are_refused():
    theirs, model = pair()
    ids = tokens(1, 5)
    with pytest.raises(UnknownNameError, match="no site of the stream 'posr'"):
        logit_lens(model, ids, sites="posr")
    with pytest.raises(InputError, match="expected some of"):
        logit_lens(model, ids, sites=())
    for wrong in (97, -1, True, 0.5, [3, 97]):
        with pytest.raises(InputError, match="is no token"):
            logit_lens(model, ids, tokens_of_interest=wrong)
    with pytest.raises(TokenizerError):
        logit_lens(model, ids, tokens_of_interest="cat")
    with pytest.raises(InputError, match="k is 98"):
        logit_lens(model, ids, k=98)
    with pytest.raises(UnsupportedError, match="BloomModel has no unembedding"):
        logit_lens(bl.BloomModel.from_hf(theirs.transformer), ids)
