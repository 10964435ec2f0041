"""Patched grids equal TransformerLens' patching, one full forward a cell."""

import pytest
import torch
import transformers
from transformer_lens import patching as tl

import bloomlab as bl
from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments import Patching, patch_activations
from bloomlab.experiments.edits import Evaluations
from bloomlab.experiments.patch_cells import Cell

N_LAYER, N_HEAD, LENGTH = 3, 2, 5
RIGHT, WRONG = 5, 9


def made(dtype=torch.float64, **fields):
    torch.manual_seed(0)
    config = transformers.BloomConfig(
        vocab_size=60,
        hidden_size=32,
        n_layer=N_LAYER,
        n_head=N_HEAD,
        initializer_range=0.2,
        **fields,
    )
    return bl.BloomForCausalLM.from_hf(transformers.BloomForCausalLM(config).eval().to(dtype))


@pytest.fixture(scope="module")
def model():
    return made()


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
    cut = [text[:1, :4] for text in texts]
    expected = by_lens(model, tl.get_act_patch_attn_head_pattern_dest_src_pos, *cut[::-1])
    answers = torch.tensor([[RIGHT, WRONG]])
    ours = patch_activations(model, *cut, "pattern", by="edge", answers=answers)
    for cell, effect in zip(ours.cells, ours.effects[:, 0], strict=True):
        value = effect + ours.corrupted[0]
        assert abs(value - expected[cell.layer, cell.head, cell.position, cell.key]) < 1e-6


def by_hooks(model, site, direction, texts, cells):
    """The mean metric of one full forward a cell, with its values put in by hooks."""
    base, source = texts[::-1] if direction == "denoise" else texts
    _, cache = model.run_with_cache(source)
    return [hooked(model, site, base, cache, cell) for cell in cells]


def hooked(model, site, base, cache, cell):
    inside = "attn." if site in ("attn_scores", "pattern", "q", "k", "v", "z", "kv") else ""
    hooks = []
    for part in ("k", "v") if site == "kv" else (site,):
        name = f"blocks.{cell.layer}.{inside}hook_{part}"

        def edit(old, hook, new=cache[name]):
            where = (slice(None), cell.position, cell.head)
            if cell.head is None:
                where = where[:2]
            elif cell.position is None:  # of a grid
                where = (slice(None), cell.head)
            old[where] = new[where]
            return old

        hooks.append((name, edit))
    with torch.no_grad():
        return difference(model.run_with_hooks(base, fwd_hooks=hooks))


@pytest.mark.parametrize("site", ["attn_scores", "kv", "resid_post", "z", "k"])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_equals_hooks(model, texts, site, direction):
    ours = found(model, texts, site, direction=direction)
    expected = torch.stack(by_hooks(model, site, direction, texts, ours.cells))
    assert (ours.values.mean(-1) - expected).abs().max() < 1e-10


@pytest.mark.parametrize("site", ["resid_mid", "mlp_out", "attn_out", "z", "q", "pattern"])
@pytest.mark.parametrize(
    ("fields", "tolerance"),
    [
        ({"apply_residual_connection_post_layernorm": True}, 1e-10),
        ({"dtype": torch.float32}, 5e-6),
        ({"dtype": torch.bfloat16}, 0.015),  # half a step of its logits,
    ],
    ids=["post-norm", "float32", "bfloat16"],
)
def test_other_models_equal_hooks(site, fields, tolerance):
    model = made(**fields)
    texts = torch.randint(4, 60, (2, 3, LENGTH), generator=torch.Generator().manual_seed(1))
    texts = tuple(texts)
    ours = found(model, texts, site, layers=[1])
    expected = torch.stack(by_hooks(model, site, "denoise", texts, ours.cells))
    assert (ours.values.mean(-1) - expected).abs().max() < tolerance
    assert ours.effects.mean(-1).abs().max() > 3 * tolerance  # there is something to find


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
        z[:, :, 1] = cache["z", 1][:, :, 1]
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
    place = ours.cells.index(Cell(layer=1, head=1))
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


def test_errors_of_share_are_those_of_a_ratio():
    source = torch.Generator().manual_seed(0)
    corrupted, total, noise = torch.randn(3, 500, generator=source, dtype=torch.float64)
    total = total + 3
    ours = Patching(
        cells=[Cell(layer=0)],
        axes=("layer",),
        values=(corrupted + 0.4 * total + noise)[None],
        clean=corrupted + total,
        corrupted=corrupted,
        site="resid_pre",
        direction="denoise",
        metric="any",
        evaluations=Evaluations(),
    )
    row, effects = ours.frame.iloc[0], ours.effects[0]
    without = (effects.sum() - effects) / (total.sum() - total)  # the jackknife (Quenouille, 1949)
    assert row.share == pytest.approx(float(effects.mean() / total.mean()))
    assert row.share_stderr == pytest.approx(float(without.std(correction=0)) * 499**0.5, rel=0.02)
    assert row.stderr == pytest.approx(float(effects.std()) / 500**0.5)


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
    with pytest.raises(InputError, match="example 0 has 5 tokens clean and 4 corrupted"):
        patch_activations(model, clean, corrupted[:, :4], answers=answers)
    assert patch_activations(model, clean, clean, answers=answers).share.isnan().all()
    last = found(model, texts, "resid_pre", columns=-1, layers=-1)
    assert last.cells == [Cell(layer=N_LAYER - 1, position=LENGTH - 1)]
    with pytest.raises(InputError, match="layers is"):
        found(model, texts, "z", layers=[N_LAYER])
    with pytest.raises(InputError, match="heads is"):
        found(model, texts, "resid_pre", heads=[0])
    with pytest.raises(InputError, match="answers"):
        patch_activations(model, clean, corrupted)
