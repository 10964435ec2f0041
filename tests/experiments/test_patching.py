"""Patched grids equal TransformerLens' patching, one full forward a cell."""

import pytest
import torch
import transformers
from transformer_lens import patching as tl

import bloomlab as bl
from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments import patch_activations

N_LAYER, N_HEAD, LENGTH = 3, 4, 7
RIGHT, WRONG = 5, 9


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.BloomConfig(
        vocab_size=60, hidden_size=32, n_layer=N_LAYER, n_head=N_HEAD, initializer_range=0.2
    )
    return bl.BloomForCausalLM.from_hf(transformers.BloomForCausalLM(config).eval().double())


@pytest.fixture(scope="module")
def texts():
    source = torch.Generator().manual_seed(1)
    clean = torch.randint(4, 60, (3, LENGTH), generator=source)
    corrupted = clean.clone()
    corrupted[:, 2] = torch.tensor([11, 12, 13])
    return clean, corrupted


def difference(logits):
    return (logits[:, -1, RIGHT] - logits[:, -1, WRONG]).mean()


def by_lens(model, patch, base, source):
    _, cache = model.run_with_cache(source)
    with torch.no_grad():
        return patch(model, base, cache, difference)


def found(model, texts, site, **options):
    answers = torch.tensor([[RIGHT, WRONG]] * 3)
    return patch_activations(model, *texts, site, answers=answers, progress=False, **options)


LENS = {
    ("resid_pre", "position"): tl.get_act_patch_resid_pre,
    ("resid_mid", "position"): tl.get_act_patch_resid_mid,
    ("attn_out", "position"): tl.get_act_patch_attn_out,
    ("mlp_out", "position"): tl.get_act_patch_mlp_out,
    ("z", "position"): tl.get_act_patch_attn_head_out_by_pos,
    ("q", "position"): tl.get_act_patch_attn_head_q_by_pos,
    ("k", "position"): tl.get_act_patch_attn_head_k_by_pos,
    ("v", "position"): tl.get_act_patch_attn_head_v_by_pos,
    ("z", "head"): tl.get_act_patch_attn_head_out_all_pos,
    ("q", "head"): tl.get_act_patch_attn_head_q_all_pos,
    ("k", "head"): tl.get_act_patch_attn_head_k_all_pos,
    ("v", "head"): tl.get_act_patch_attn_head_v_all_pos,
    ("pattern", "head"): tl.get_act_patch_attn_head_pattern_all_pos,
    ("pattern", "position"): tl.get_act_patch_attn_head_pattern_by_pos,
}


@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(("site", "by"), list(LENS))
def test_equals_transformer_lens(model, texts, site, by, direction):
    base, source = texts[::-1] if direction == "denoise" else texts
    expected = by_lens(model, LENS[site, by], base, source)
    ours = found(model, texts, site, by=by, direction=direction, rows=16)
    start, total = (ours.corrupted if direction == "denoise" else ours.clean), ours.total.mean()
    assert (ours.grid * total + start.mean() - expected).abs().max() < 1e-6  # theirs is float32
    assert ours.frame.columns.tolist()[: len(ours.axes)] == list(ours.axes)


def test_edges_equal_transformer_lens(model, texts):
    cut = [text[:1, :5] for text in texts]
    expected = by_lens(model, tl.get_act_patch_attn_head_pattern_dest_src_pos, *cut[::-1])
    answers = torch.tensor([[RIGHT, WRONG]])
    ours = patch_activations(model, *cut, "pattern", by="edge", answers=answers)
    for cell, effect in zip(ours.cells, ours.effects[:, 0], strict=True):
        value = effect + ours.corrupted[0]
        assert abs(value - expected[cell.layer, cell.head, cell.position, cell.key]) < 1e-6


@pytest.mark.parametrize("site", ["attn_scores", "kv", "resid_post", "z", "k"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_other_sites_equal_hooks(model, texts, site, direction):
    base, source = texts[::-1] if direction == "denoise" else texts
    _, cache = model.run_with_cache(source)
    names = {"resid_post": ["hook_resid_post"], "kv": ["attn.hook_k", "attn.hook_v"]}
    ours = found(model, texts, site, direction=direction)
    for cell, value in zip(ours.cells, ours.values.mean(-1), strict=True):
        hooks = []
        for point in names.get(site, [f"attn.hook_{site}"]):
            name = f"blocks.{cell.layer}.{point}"

            def edit(old, hook, cell=cell, new=cache[name]):
                if site == "attn_scores":
                    old[:, cell.head] = new[:, cell.head]
                elif cell.head is None:
                    old[:, cell.position] = new[:, cell.position]
                else:
                    old[:, cell.position, cell.head] = new[:, cell.position, cell.head]
                return old

            hooks.append((name, edit))
        logits = model.run_with_hooks(base, fwd_hooks=hooks)
        assert abs(value - difference(logits)) < 1e-10


def test_everything_patched_is_the_other_run(model, texts):
    ours = found(model, texts, "resid_post", by="layer")
    assert torch.allclose(ours.values, ours.clean.expand_as(ours.values), atol=1e-12)
    assert torch.allclose(ours.share, torch.ones(N_LAYER, dtype=torch.double))
    before = found(model, texts, "resid_pre", columns=[0, 1])
    assert before.effects.abs().max() < 1e-12  # the texts do not differ yet


@pytest.mark.parametrize("metric", ["kl", "cross_entropy", "probability", "accuracy"])
def test_other_metrics(model, texts, metric):
    clean, corrupted = texts
    asked = {"positions": None} if metric != "probability" else {"answers": clean[:, 0]}
    ours = patch_activations(model, clean, corrupted, "z", metric, by="head", **asked)
    _, cache = model.run_with_cache(clean)

    def edit(z, hook):
        z[:, :, 2] = cache["z", 1][:, :, 2]
        return z

    logits = model.run_with_hooks(corrupted, fwd_hooks=[("blocks.1.attn.hook_z", edit)])
    log = logits.log_softmax(-1)
    base = model(clean).logits.log_softmax(-1)
    right = log[:, :-1].gather(-1, clean[:, 1:, None])[..., 0]
    expected = {
        "kl": (base.exp() * (base - log)).sum(-1).mean(-1),
        "cross_entropy": -right.mean(-1),
        "accuracy": (log[:, :-1].argmax(-1) == clean[:, 1:]).double().mean(-1),
        "probability": log[:, -1].gather(-1, clean[:, :1])[:, 0].exp(),
    }[metric]
    place = ours.cells.index(bl.experiments.patch_cells.Cell(layer=1, head=2))
    assert torch.allclose(ours.values[place], expected, atol=1e-12)


def test_padding_changes_nothing(model, texts):
    clean, corrupted = (text[:1] for text in texts)
    answers = torch.tensor([[RIGHT, WRONG]])
    for site in ("resid_mid", "k", "kv"):
        alone = patch_activations(model, clean, corrupted, site, answers=answers)
        pad = torch.full((1, 2), 3)
        mask = torch.tensor([[0, 0] + [1] * LENGTH])
        padded = [
            {"input_ids": torch.cat([pad, text], 1), "attention_mask": mask}
            for text in (clean, corrupted)
        ]
        beside = patch_activations(
            model, *padded, site, answers=answers, columns=range(2, LENGTH + 2)
        )
        assert torch.allclose(beside.values, alone.values, atol=1e-10)


def test_errors_of_share_are_those_of_a_ratio(model, texts):
    ours = found(model, texts, "resid_pre")
    row = ours.frame.iloc[8]
    effects, total = ours.effects[8], ours.total
    leave = [(effects.sum() - e) / (total.sum() - t) for e, t in zip(effects, total, strict=True)]
    jackknife = torch.stack(leave).std(correction=0) * 2**0.5
    assert row.share == pytest.approx(float(effects.mean() / total.mean()))
    assert row.share_stderr == pytest.approx(float(jackknife), rel=0.5)


def test_wrong_input_is_explained(model, texts):
    clean, corrupted = texts
    answers = torch.tensor([[RIGHT, WRONG]] * 3)
    with pytest.raises(UnknownNameError, match="resid_pre"):
        patch_activations(model, clean, corrupted, "residual", answers=answers)
    with pytest.raises(UnknownNameError, match="position"):
        patch_activations(model, clean, corrupted, "z", by="edge", answers=answers)
    with pytest.raises(UnknownNameError, match="denoise"):
        patch_activations(model, clean, corrupted, direction="both", answers=answers)
    with pytest.raises(ShapeError, match="corrupted"):
        patch_activations(model, clean, corrupted[:2], answers=answers)
    with pytest.raises(InputError, match="example 0 has 7 tokens clean and 6 corrupted"):
        patch_activations(model, clean, corrupted[:, :6], answers=answers)
    assert patch_activations(model, clean, clean, answers=answers).share.isnan().all()
    with pytest.raises(InputError, match="layers is"):
        found(model, texts, "z", layers=[N_LAYER])
    with pytest.raises(InputError, match="heads is"):
        found(model, texts, "resid_pre", heads=[0])
    with pytest.raises(InputError, match="answers"):
        patch_activations(model, clean, corrupted)
