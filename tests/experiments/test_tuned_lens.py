"""The tuned lens: what it learns, that it is kept, and whom it belongs to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import bloomlab as bl
from bloomlab.errors import CheckpointError, InputError, UnknownNameError, UnsupportedError
from bloomlab.experiments.logit_lens import logit_lens
from bloomlab.experiments.tuned_lens import TunedLens, train_tuned_lens
from bloomlab.model.prune import prune_heads
from tests.tiny import pair, tokens

TEXT = Path(__file__).parents[1] / "demo" / "inaugural_1829.txt"


def trained(model, ids, mask=None, **options):
    return train_tuned_lens(model, ids, mask, **{"steps": 6, "progress": False} | options)


def test_held_out_text_of_the_demo_is_foretold_better(demo):
    ids = demo.to_tokens(TEXT.read_text("utf-8"))[0][: 24 * 32].view(24, 32)
    lens = trained(demo, ids[:20], steps=10, batch=2, limit=48, learning_rate=3e-3)
    before, after = (
        logit_lens(demo, ids[20:], k=1, sites="post", lens=one).frame.groupby("layer").kl.mean()
        for one in (None, lens)
    )
    assert (after[:5] < 0.8 * before[:5]).all()
    assert after[5] == before[5] == 0
    assert list(lens.frame.columns) == ["step", "layer", "site", "kl"]


def test_one_step_is_adams_from_gradients_of_the_divergence():
    theirs, model = pair(dtype=torch.float64)
    ids, rate = tokens(1, 6), 1e-2
    lens = trained(model, ids, steps=1, learning_rate=rate)
    states = model(ids, output_hidden_states=True)  # transformers' softmax would be of float32
    stream, final = states.hidden_states[1].detach()[0], states.logits.detach()[0]
    A, b = torch.zeros(48, 48).double().requires_grad_(), torch.zeros(48).double().requires_grad_()
    read = theirs.lm_head(theirs.transformer.ln_f(stream + stream @ A.T + b)).log_softmax(-1)
    loss = torch.nn.functional.kl_div(
        read, final.log_softmax(-1), reduction="batchmean", log_target=True
    )
    loss.backward()
    torch.optim.Adam([A, b], lr=rate).step()
    assert lens.places == ((0, "post"),)
    assert lens.losses.item() == pytest.approx(loss.item())
    torch.testing.assert_close(lens.A[0], A.detach(), atol=1e-9, rtol=0)
    torch.testing.assert_close(lens.b[0], b.detach(), atol=1e-9, rtol=0)


def test_a_saved_lens_reads_the_same(tmp_path):
    _, model = pair()
    ids = tokens(4, 6)
    lens = trained(model, ids, sites=("mid", "post"))
    lens.save(tmp_path / "new" / "lens.safetensors")
    again = TunedLens.load(tmp_path / "new" / "lens.safetensors")
    assert again.places == lens.places == ((0, "mid"), (0, "post"), (1, "mid"))
    assert again.model == lens.model
    assert all(torch.equal(getattr(again, n), getattr(lens, n)) for n in ("A", "b", "losses"))
    first, second = (logit_lens(model, ids, lens=one).frame for one in (lens, again))
    assert first.equals(second)
    plain = logit_lens(model, ids).frame
    last = (first.layer == 1) & (first.site == "post")
    assert first[last].equals(plain[last])  # the prediction itself
    assert (first[~last].kl != plain[~last].kl).all()
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["lens.safetensors"]


def test_a_seed_decides_everything_and_the_model_stays_as_it_is():
    _, model = pair()
    ids, before = tokens(9, 6), {n: v.clone() for n, v in model.state_dict().items()}
    one, same, other = (trained(model, ids, batch=2, limit=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.A, same.A)
    assert not torch.equal(one.A, other.A)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_padding_is_never_trained_on():
    _, model = pair()
    ids = tokens(3, 6)
    wide = torch.cat([torch.full((3, 4), 3), ids], 1)
    mask = (torch.arange(10) >= 4).long().expand(3, -1)
    alone, padded = trained(model, ids), trained(model, wide, mask)
    np.testing.assert_allclose(padded.losses, alone.losses, atol=1e-4)


def test_a_lens_refuses_other_models_and_other_sites():
    _, model = pair()
    _, stranger = pair(seed=1)
    ids = tokens(2, 5)
    lens = trained(model, ids)
    for other in (stranger, prune_heads(model, {0: [1]}), pair(dtype=torch.float64)[1]):
        with pytest.raises(InputError, match="belongs to the model"):
            logit_lens(other, ids, sites="post", lens=lens)
    with pytest.raises(UnknownNameError, match="no place of the lens 'mid of layer 0'"):
        logit_lens(model, ids, lens=lens)


def test_files_that_hold_no_lens_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        TunedLens.load(tmp_path / "none.safetensors")
    save_file({"A": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no tuned lens"):
        TunedLens.load(tmp_path / "other.safetensors")


def test_wrong_training_is_refused():
    theirs, model = pair()
    ids = tokens(2, 5)
    for wrong in ({"steps": 0}, {"batch": 0}, {"limit": -1}, {"learning_rate": 0.0}):
        with pytest.raises(InputError, match="numbers above 0"):
            trained(model, ids, **wrong)
    with pytest.raises(InputError, match="one layer"):
        trained(pair(n_layer=1)[1], ids)
    with pytest.raises(UnsupportedError, match="no unembedding"):
        trained(bl.BloomModel.from_hf(theirs.transformer), ids)
