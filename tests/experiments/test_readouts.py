"""Read-outs taken while tokens are generated, against one forward of the whole text."""

import inspect

import numpy as np
import pytest
import torch

import bloomlab as bl
from bloomlab import interventions as iv
from bloomlab.errors import InputError, ShapeError, UnknownNameError, UnsupportedError
from bloomlab.experiments.readings import read_generation, read_stream
from bloomlab.experiments.readouts import Readout, linear_readout
from tests.tiny import pair, tokens

PROMPT, NEW, D = 7, 6, 48


def padded():
    ids, mask = tokens(3, PROMPT), torch.ones(3, PROMPT, dtype=torch.long)
    mask[0, :4], mask[2, :1] = 0, 0
    return ids, mask


def weights(dtype=torch.float64, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


def whole(model, readings, mask, edits=()):
    """All hooks of one forward over the text but its last token."""
    text = readings.tokens[:, :-1]
    full = torch.cat([mask, torch.ones(len(mask), text.shape[1] - mask.shape[1]).long()], 1)
    with model.hooks(fwd_hooks=list(edits)):
        return model.run_with_cache(text, attention_mask=full)[1], full.bool()


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=["fp32", "fp64"]
)
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("edited", [False, True])
def test_values_equal_those_of_one_forward(dtype, bound, use_cache, edited):
    _, model = pair(dtype=dtype)
    ids, mask = padded()
    w, b = weights(dtype, 3, D) / D, weights(dtype, 3)
    by_layer = weights(dtype, 2, 4, D) / D
    per_head = weights(dtype, 6, 2, 8)
    readouts = [
        linear_readout("probe", ["resid_post", "hook_embed"], w, b, outputs=["a", "b", "c"]),
        linear_readout("own", "resid_mid", by_layer),
        linear_readout("heads", "z", per_head[0]),
        Readout(name="wide", sites="mlp_post", function=lambda x: x.amax(-1, keepdim=True)),
    ]
    steer = iv.steer(1, weights(dtype, D)).at_columns([PROMPT + 1, PROMPT + 3])
    found = read_generation(
        model,
        ids,
        readouts,
        attention_mask=mask,
        interventions=[steer] if edited else [],
        max_new_tokens=NEW,
        eos_token_id=[],
        use_cache=use_cache,
        do_sample=True,
        seed=4,
    )
    cache, seen = whole(model, found, mask, [steer] if edited else [])
    expected = {("probe", "hook_embed"): cache["hook_embed"] @ w.T + b}
    for layer in range(2):
        name = f"blocks.{layer}"
        expected["probe", f"{name}.hook_resid_post"] = cache["resid_post", layer] @ w.T + b
        expected["own", f"{name}.hook_resid_mid"] = cache["resid_mid", layer] @ by_layer[layer].T
        expected["heads", f"{name}.attn.hook_z"] = cache["z", layer] @ per_head[0].T
        post = cache[f"{name}.mlp.hook_post"]
        expected["wide", f"{name}.mlp.hook_post"] = post.amax(-1, keepdim=True)
    assert found.values.keys() == expected.keys()
    for key, value in expected.items():
        assert found.values[key].shape == value.shape
        scale = value[seen].abs().max()
        assert (found.values[key][seen] - value[seen]).abs().max() < bound * max(scale, 1), key
    assert found.counts[:, :-1].equal(seen)


def test_the_frame_names_every_number():
    _, model = pair(dtype=torch.float64)
    ids, mask = padded()
    w = weights(torch.float64, 2, 8)
    some = [
        linear_readout("z", "z", w, outputs=["no", "yes"]),
        Readout(name="norm", sites="resid_post", function=lambda x: x.norm(dim=-1, keepdim=True)),
    ]
    found = read_generation(
        model, ids, some, attention_mask=mask, max_new_tokens=3, eos_token_id=[]
    )
    frame = found.frame
    n_token = int(mask.sum()) + 3 * 2  # the last token is not read
    assert len(frame) == n_token * 2 * (6 * 2 + 1)
    cache, _ = whole(model, found, mask)
    for row in frame.sample(40, random_state=0).itertuples():
        assert row.token == found.tokens[row.row, row.column]
        assert row.step == max(0, row.column - PROMPT + 1)
        if row.readout == "norm":
            expected = cache["resid_post", row.layer][row.row, row.column].norm()
            assert row.output == 0
        else:
            vector = cache["z", row.layer][row.row, row.column, row.head]
            expected = vector @ w[["no", "yes"].index(row.output)]
        assert row.value == pytest.approx(float(expected), abs=1e-10)
    assert frame[frame.readout == "norm"]["head"].isna().all()
    assert np.array_equal(np.sort(frame[frame.row == 0].column.unique()), [4, 5, 6, 7, 8])


@pytest.mark.slow
def test_reading_keeps_the_tokens_and_the_fast_way():
    _, model = pair()
    ids, mask = padded()
    ways = []

    def norm(value):
        ways.append(any(frame.filename.endswith("lean.py") for frame in inspect.stack()))
        return value.norm(dim=-1, keepdim=True)

    sites = ["embed", "resid_pre", "q", "z", "attn_out", "resid_mid", "mlp_post", "resid_post"]
    options = {"attention_mask": mask, "max_new_tokens": NEW, "eos_token_id": []}
    found = read_generation(model, ids, Readout(name="n", sites=sites, function=norm), **options)
    assert torch.equal(found.tokens, model.generate(ids, **options))
    n_hook = 1 + 2 * 7
    assert ways == [False] * n_hook + [True] * n_hook * (NEW - 1)


def test_live_steps_carry_the_values_of_what_they_read():
    _, model = pair(dtype=torch.float64)
    ids, mask = padded()
    readout = linear_readout("probe", "resid_post", weights(torch.float64, 2, D))
    options = {"attention_mask": mask, "max_new_tokens": NEW, "eos_token_id": []}
    found = read_generation(model, ids, readout, **options)
    pieces, said = [], []
    for step, values in read_stream(model, ids, readout, **options):
        assert {name for _, name in values} == {f"blocks.{i}.hook_resid_post" for i in range(2)}
        pieces.append(values["probe", "blocks.1.hook_resid_post"])
        said.append(step.token)
    assert [piece.shape[1] for piece in pieces] == [PROMPT] + [1] * (NEW - 1)
    assert torch.equal(torch.cat(pieces, 1), found.at("probe", "blocks.1.hook_resid_post"))
    assert torch.equal(torch.stack(said, 1), found.tokens[:, PROMPT:])


def test_after_a_cache_only_what_is_read_has_values():
    _, model = pair(dtype=torch.float64)
    ids = tokens(2, PROMPT)
    past = model(ids[:, :4]).past_key_values
    readout = linear_readout("probe", "resid_post", weights(torch.float64, 2, D))
    options = {"max_new_tokens": 3, "eos_token_id": []}
    found = read_generation(model, ids, readout, past_key_values=past, **options)
    expected = read_generation(model, ids, readout, **options)
    assert found.start == 4
    name = "blocks.1.hook_resid_post"
    got, want = found.at("probe", name), expected.at("probe", name)[:, 4:]
    assert (got - want).abs().max() < 1e-10
    assert found.frame.column.min() == 4


def test_ended_rows_have_no_values_after_their_end():
    _, model = pair()
    ids = tokens(2, PROMPT)
    free = model.generate(ids, max_new_tokens=NEW, eos_token_id=[])
    end = int(free[0, PROMPT + 1])
    found = read_generation(
        model,
        ids,
        linear_readout("probe", "resid_post", weights(torch.float32, 1, D)),
        max_new_tokens=NEW,
        eos_token_id=end,
    )
    ends = [(row == end).nonzero()[:1].flatten().tolist() for row in free[:, PROMPT:]]
    for row, stop in enumerate(ends):
        last = PROMPT + (stop[0] if stop else NEW)
        columns = found.frame[found.frame.row == row].column
        assert columns.max() == min(last, found.tokens.shape[1] - 2)


def test_an_edit_outside_the_cache_is_read_where_it_acts():
    _, model = pair(dtype=torch.float64)
    ids, forced = tokens(2, PROMPT), tokens(2, NEW, seed=8)
    edit = iv.steer(0, weights(torch.float64, D)).at_steps(2)
    readout = linear_readout("probe", "resid_pre", weights(torch.float64, 1, D))
    name = "blocks.0.hook_resid_pre"
    plain, edited = (
        read_generation(model, ids, readout, interventions=some, forced=forced).at("probe", name)
        for some in ([], [edit.outside_cache()])
    )
    moved = (edited - plain).abs().amax((0, 2)) > 1e-6
    assert moved.nonzero()[:, 0].tolist() == [PROMPT + 1]


def test_bad_readouts_are_refused():
    _, model = pair()
    ids = tokens(1, 4)
    good = linear_readout("probe", "resid_post", weights(torch.float32, 2, D))
    with pytest.raises(UnknownNameError, match=r"resid_pots.*resid_post"):
        read_generation(model, ids, linear_readout("p", "resid_pots", weights(torch.float32, 2, D)))
    with pytest.raises(UnknownNameError, match="layer 2"):
        read_generation(
            model, ids, linear_readout("p", "resid_post", weights(torch.float32, 3, 2, D))
        )
    with pytest.raises(InputError, match="called 'probe'"):
        read_generation(model, ids, [good, good])
    with pytest.raises(InputError, match="expected a Readout"):
        read_generation(model, ids, ["resid_post"])
    with pytest.raises(ShapeError, match="bias"):
        linear_readout("p", "resid_post", weights(torch.float32, 2, D), torch.zeros(3))
    with pytest.raises(ShapeError, match="2 names"):
        linear_readout("p", "resid_post", weights(torch.float32, 2, D), outputs=["one"])
    with pytest.raises(ShapeError, match=r"\[output 48\]"):
        read_generation(model, ids, linear_readout("p", "resid_post", torch.ones(2, D - 1)))
    with pytest.raises(ShapeError, match=r"\(1, 4, k\)"):
        read_generation(model, ids, Readout(name="p", sites="resid_post", function=torch.sum))
    with pytest.raises(InputError, match="may only read"):
        read_generation(
            model, ids, Readout(name="p", sites="resid_post", function=lambda x: x.mul_(2))
        )
    with pytest.raises(InputError, match="expected a function"):
        read_generation(model, ids, Readout(name="p", sites="resid_post", function=3))
    dropping = bl.KVCache(policy=bl.SinkWindow(sinks=1, window=2))
    with pytest.raises(UnsupportedError, match="read_stream"):
        read_generation(model, ids, good, past_key_values=dropping)
    assert not any(point._forward_hooks for point in model.hook_dict.values())
