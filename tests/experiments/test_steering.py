"""Directions against means taken text by text; erasing against the formula, and in generation."""

import pytest
import torch

from bloomlab.errors import InputError, ShapeError, UnknownNameError
from bloomlab.experiments.probing import probe
from bloomlab.experiments.readings import read_generation
from bloomlab.experiments.readouts import linear_readout, probe_readout
from bloomlab.experiments.steering import erase, mean_difference, probe_directions
from tests.tiny import pair, tokens

D = 48


def some(lengths, seed):
    return [tokens(1, n, seed=seed + i) for i, n in enumerate(lengths)]


def padded(texts, side):
    n = max(ids.shape[1] for ids in texts)
    ids, mask = torch.full((len(texts), n), 3), torch.zeros(len(texts), n, dtype=torch.long)
    for row, one in enumerate(texts):
        where = slice(n - one.shape[1], n) if side == "left" else slice(one.shape[1])
        ids[row, where], mask[row, where] = one[0], 1
    return {"input_ids": ids, "attention_mask": mask}


def draw(*shape, seed=5):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("pool", ["last", "mean"])
def test_a_direction_is_the_difference_of_means_of_texts(pool):
    _, model = pair(dtype=torch.float64)
    groups = some((5, 8, 3), 10), some((4, 6), 20)
    sites = ["resid_pre", "mlp_out", "blocks.1.mlp.hook_post"]
    expected = {}
    for sign, texts in zip((1, -1), groups, strict=True):
        for ids in texts:
            _, cache = model.run_with_cache(ids)
            for name in [
                *(f"blocks.{i}.hook_{point}" for point in ("resid_pre", "mlp_out") for i in (0, 1)),
                "blocks.1.mlp.hook_post",
            ]:
                value = cache[name][0]
                value = value[-1] if pool == "last" else value.mean(0)
                expected[name] = expected.get(name, 0) + sign * value / len(texts)
    for side in ("left", "right"):
        found = mean_difference(
            model, *(padded(texts, side) for texts in groups), sites=sites, pool=pool, rows=2
        )
        assert found.vectors.keys() == expected.keys()
        for name, vector in expected.items():
            assert (found.vectors[name] - vector).abs().max() < 1e-12, (side, name)
    frame = found.frame
    assert frame.norm.tolist() == pytest.approx([v.norm().item() for v in found.vectors.values()])
    assert found.unit.frame.norm.tolist() == pytest.approx([1] * 5)


def test_a_direction_of_single_tokens_is_the_difference_of_their_embeddings():
    """In layer 0 a text of one token is its embedding: a closed form."""
    theirs, model = pair(dtype=torch.float64)
    positive, negative = tokens(3, 1), tokens(4, 1, seed=9)
    found = mean_difference(model, positive, negative)
    with torch.no_grad():
        embedded = [
            theirs.transformer.word_embeddings_layernorm(theirs.transformer.word_embeddings(ids))
            for ids in (positive, negative)
        ]
    expected = embedded[0].mean((0, 1)) - embedded[1].mean((0, 1))
    assert (found.at(0) - expected).abs().max() < 1e-12
    # steering by it moves a negative text's mean onto the positive ones'
    _, cache = model.run_with_cache(negative)
    with model.hooks(fwd_hooks=[found.steer(0)]):
        _, moved = model.run_with_cache(negative)
    got = (moved["resid_pre", 0] - cache["resid_pre", 0]).mean((0, 1))
    assert (got - expected).abs().max() < 1e-12


def test_erasing_leaves_nothing_along_a_direction_and_all_else():
    _, model = pair(dtype=torch.float64)
    ids, directions = tokens(2, 6), draw(3, D)
    _, cache = model.run_with_cache(ids)
    before = cache["resid_pre", 1]
    for given in (directions[0], directions):
        edit = erase(1, given)
        with model.hooks(fwd_hooks=[edit]):
            _, edited = model.run_with_cache(ids)
        after = edited["resid_pre", 1]
        rows = given if given.ndim == 2 else given[None]
        projector = rows.T @ torch.linalg.pinv(rows.T)
        assert (after @ rows.T).abs().max() < 1e-12
        assert (after - (before - before @ projector)).abs().max() < 1e-12
        with model.hooks(fwd_hooks=[edit, edit]):
            _, twice = model.run_with_cache(ids)
        assert (twice["resid_pre", 1] - after).abs().max() < 1e-12
    u = directions[0] / directions[0].norm()
    with model.hooks(fwd_hooks=[erase("blocks.0.hook_mlp_out", directions[0])]):
        _, edited = model.run_with_cache(ids)
    out = cache["mlp_out", 0]
    expected = out - (out @ u)[..., None] * u
    assert (edited["mlp_out", 0] - expected).abs().max() < 1e-12


def test_erasing_from_a_step_on_is_a_forward_with_those_columns_erased():
    _, model = pair(dtype=torch.float64)
    ids, mask = tokens(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    direction, start = draw(D), 3
    readout = linear_readout("along", "resid_pre", direction[None] / direction.norm())
    edit = erase(1, direction).when(lambda step, column: step >= start)
    found = read_generation(
        model,
        ids,
        readout,
        attention_mask=mask,
        interventions=[edit],
        max_new_tokens=7,
        eos_token_id=[],
    )
    along = found.at("along", "blocks.1.hook_resid_pre")[..., 0]
    assert along[:, 6 + start - 1 :].abs().max() < 1e-12
    assert along[:, : 6 + start - 1].abs().min() > 1e-4
    text = found.tokens[:, :-1]
    full = torch.cat([mask, torch.ones(2, 6, dtype=torch.long)], 1)
    columns = erase(1, direction).at_columns(range(6 + start - 1, 12))
    logits = model.run_with_hooks(text, attention_mask=full, fwd_hooks=[columns])
    assert torch.equal(logits[:, 5:].argmax(-1), found.tokens[:, 6:])


def test_erasing_in_half_precision_and_with_gradients():
    _, model = pair(dtype=torch.bfloat16)
    value = tokens(1, 5)
    logits = model.run_with_hooks(value, fwd_hooks=[erase(1, draw(D).float())])
    assert logits.dtype == torch.bfloat16
    assert logits.requires_grad


def test_directions_of_fitted_probes_steer_and_are_read():
    _, model = pair()
    texts = tokens(40, 5)
    labels = ["odd" if ids[-1] % 2 else "even" for ids in texts.tolist()]
    probes = probe(model, texts, labels, sites=["resid_post", "z"], kind="ridge")
    found = probe_directions(probes, "odd", site="resid_post")
    assert list(found.vectors) == ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]
    assert torch.equal(found.at(1), probes.direction(1, "odd", site="resid_post"))
    _, cache = model.run_with_cache(texts[:3])
    stream = cache["resid_post", 1]
    base, moved = (
        probes.read(one, 1, site="resid_post") for one in (stream, stream + 0.1 * found.at(1))
    )
    odd = probes.classes.index("odd")
    assert ((moved - base)[..., odd] > 0).all()
    options = {"forced": tokens(3, 2, seed=8)}
    for site, heads in (("resid_post", [None]), ("z", range(6))):
        values = read_generation(
            model, texts[:3], probe_readout("parity", probes, site=site), **options
        )
        text = values.tokens[:, :-1]
        _, cache = model.run_with_cache(text)
        name = f"blocks.1.{'attn.hook_z' if site == 'z' else 'hook_resid_post'}"
        for head in heads:
            place = (..., slice(None)) if head is None else (..., head, slice(None))
            expected = probes.read(cache[name][place], 1, site=site, head=head)
            assert (values.at("parity", name)[place] - expected).abs().max() < 1e-4
        assert set(values.frame.output) == {"odd", "even"}
    with pytest.raises(InputError, match="single heads"):
        probe_directions(probes, "odd", site="z")
    with pytest.raises(UnknownNameError, match="probed site 'mlp_out'"):
        probe_directions(probes, "odd", site="mlp_out")
    with pytest.raises(InputError, match="by site="):
        probe_readout("parity", probes)


def test_bad_directions_are_refused():
    _, model = pair()
    texts = tokens(2, 4)
    with pytest.raises(InputError, match="for each head"):
        mean_difference(model, texts, texts, sites="z")
    with pytest.raises(UnknownNameError, match="site 'resid_por'"):
        mean_difference(model, texts, texts, sites="resid_por")
    with pytest.raises(UnknownNameError, match="'median'"):
        mean_difference(model, texts, texts, pool="median")
    with pytest.raises(InputError, match="empty"):
        mean_difference(model, texts, torch.zeros(0, 3, dtype=torch.long))
    found = mean_difference(model, texts, tokens(2, 4, seed=3), sites=["resid_pre", "mlp_out"])
    with pytest.raises(UnknownNameError, match="direction 2"):
        found.at(2)
    with pytest.raises(InputError, match="Name one"):
        found.steer(0)
    for wrong in (torch.zeros(D), torch.ones(2, D), torch.full((D,), torch.nan)):
        with pytest.raises(InputError, match="depend on each other"):
            erase(0, wrong)
    with pytest.raises(InputError, match=r"expected a tensor \[d\]"):
        erase(0, [1.0, 2.0])
    with pytest.raises(ShapeError, match=r"direction 48"):
        model.run_with_hooks(texts, fwd_hooks=[erase(0, torch.ones(D - 1))])
