"""Branches from one cache, against whole generations with the same interventions."""

import pytest
import torch

import bloomlab as bl
from bloomlab import interventions as iv
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.branches import compare_branches
from bloomlab.experiments.readings import read_generation
from bloomlab.experiments.readouts import linear_readout
from tests.tiny import pair, tokens

PROMPT, NEW, D = 7, 8, 48
GREEDY = {"max_new_tokens": NEW, "eos_token_id": []}
SAMPLED = GREEDY | {"do_sample": True, "seed": 11, "temperature": 1.3, "top_k": 0}


def padded():
    ids, mask = tokens(3, PROMPT), torch.ones(3, PROMPT, dtype=torch.long)
    mask[0, :4], mask[2, :1] = 0, 0
    return ids, mask


def vector(seed=5):
    return 3 * torch.randn(D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def negated(value, hook):
    return -value


EDITS = {
    "steered": [iv.steer(1, vector())],
    "later": [iv.steer(1, vector()).at_steps([5, 6])],
    "pair": [("blocks.0.hook_mlp_out", negated)],
    "column": [iv.mask_heads(0, None).at_columns([PROMPT + 4])],
    "row": [iv.scale_heads(1, [0, 3], factor=4.0).on_rows([2]).during("generation")],
    "outside": [iv.steer(0, vector(6)).at_steps(4).outside_cache()],
    "edge": [iv.knock_out(1, [0, 2, 4], keys=[5, 6])],
}


def scheduled(edits, step):
    """The interventions in force from a step on, in a whole generation."""

    class From:
        def __init__(self, edit):
            self.edit, self.enters_cache = edit, getattr(edit, "enters_cache", True)

        def hooks(self, start, at):
            if at < step:
                return []
            return self.edit.hooks(start, at) if hasattr(self.edit, "hooks") else [self.edit]

    return [From(edit) for edit in edits]


def whole(model, ids, mask, edits, options):
    steps = list(model.stream(ids, attention_mask=mask, interventions=edits, **options))
    return torch.stack([s.token for s in steps], 1), torch.stack([s.logits for s in steps], 1)


@pytest.mark.parametrize("options", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("step", [0, 1, 4, NEW - 1])
def test_each_branch_equals_a_generation_of_its_own(options, step):
    _, model = pair(dtype=torch.float64)
    ids, mask = padded()
    found = compare_branches(
        model, ids, {"as it is": [], **EDITS}, from_step=step, attention_mask=mask, **options
    )
    plain, logits = whole(model, ids, mask, [], options)
    assert torch.equal(found.tokens_of("as it is"), plain)
    assert torch.equal(
        torch.cat([ids, plain], 1), model.generate(ids, attention_mask=mask, **options)
    )
    assert found.from_step == step
    p = logits[:, step:].log_softmax(-1)
    for place, (name, edits) in enumerate(EDITS.items(), 1):
        said, theirs = whole(model, ids, mask, scheduled(edits, step), options)
        assert torch.equal(found.tokens_of(name), said), name
        assert torch.equal(found.tokens_of(name)[:, :step], plain[:, :step])
        expected = torch.nn.functional.kl_div(
            theirs[:, step:].log_softmax(-1), p, reduction="none", log_target=True
        ).sum(-1)
        assert (found.kl[place] - expected).abs().max() < 1e-9
        for row in range(3):
            differs = (said[row] != plain[row]).nonzero()
            first = int(differs[0]) if len(differs) else -1
            assert found.first_difference[place, row] == first
    assert found.kl[0].abs().max() < 1e-12
    assert (found.first_difference[1:] >= 0).any()  # else nothing was compared


def test_an_edit_before_the_branch_does_nothing():
    _, model = pair(dtype=torch.float64)
    ids = tokens(2, PROMPT)
    early = [iv.steer(1, vector()).during("prompt"), iv.mask_heads(0, None).at_steps([1, 2])]
    found = compare_branches(model, ids, {"plain": [], "early": early}, from_step=3, **GREEDY)
    assert found.kl.abs().max() < 1e-12


def test_sampled_branches_part_only_where_their_predictions_do():
    """Common random numbers: an edit too small to move a choice leaves all tokens."""
    _, model = pair(dtype=torch.float64)
    ids = tokens(4, PROMPT)
    tiny = [iv.steer(1, 1e-9 * vector())]
    found = compare_branches(model, ids, {"plain": [], "tiny": tiny}, from_step=2, **SAMPLED)
    assert (found.first_difference == -1).all()
    unseeded = {name: value for name, value in SAMPLED.items() if name != "seed"}
    torch.manual_seed(3)
    one, other = (
        compare_branches(model, ids, {"plain": [], "tiny": tiny}, from_step=2, **unseeded)
        for _ in range(2)
    )
    assert (one.first_difference == -1).all()
    assert not torch.equal(one.tokens, other.tokens)


def test_the_shared_cache_is_left_as_it_was():
    _, model = pair()
    ids, mask = padded()
    found = compare_branches(
        model, ids, {"plain": [], **EDITS}, from_step=4, attention_mask=mask, **GREEDY
    )
    past = bl.KVCache()
    for _ in zip(
        range(4),
        model.stream(ids, attention_mask=mask, past_key_values=past, **GREEDY),
        strict=False,
    ):
        pass
    assert len(found.cache) == len(past) == PROMPT + 3
    for layer in range(2):
        assert torch.equal(found.cache.keys(layer), past.keys(layer))
        assert torch.equal(found.cache.values(layer), past.values(layer))
    assert torch.equal(found.cache.valid, past.valid)
    again = compare_branches(
        model, ids, {"plain": [], **EDITS}, from_step=4, attention_mask=mask, **GREEDY
    )
    assert torch.equal(again.tokens, found.tokens)
    forked = found.cache.fork()
    text = torch.cat([ids, found.tokens_of("plain")[:, :4]], 1)
    full = torch.cat([mask, torch.ones(3, 4).long()], 1)
    said = model.generate(
        text, attention_mask=full, past_key_values=forked, max_new_tokens=NEW - 4, eos_token_id=[]
    )
    assert torch.equal(said[:, PROMPT:], found.tokens_of("plain"))


def test_rows_and_branches_end_each_on_their_own():
    _, model = pair(dtype=torch.float64)
    ids, mask = padded()
    free, _ = whole(model, ids, mask, [], SAMPLED)
    options = SAMPLED | {"eos_token_id": [int(free[0, 1]), int(free[1, 5])]}
    found = compare_branches(
        model, ids, {"plain": [], **EDITS}, from_step=3, attention_mask=mask, **options
    )
    n = found.tokens.shape[2]
    for name in found.names:
        edits = scheduled(EDITS.get(name, []), 3)
        said, _ = whole(model, ids, mask, edits, options)
        place = found.names.index(name)
        assert torch.equal(found.tokens_of(name)[:, : said.shape[1]], said)
        assert (found.tokens_of(name)[:, said.shape[1] :] == 3).all()  # padding
        ends = torch.isin(said, torch.tensor(options["eos_token_id"]))
        for row in range(3):
            end = int(ends[row].int().argmax()) + 1 if ends[row].any() else said.shape[1]
            assert found.counts[place, row].tolist() == [i < end for i in range(n)]
    assert found.kl[:, 0].isnan().all()  # ended before the branches
    assert not found.kl[:, 2, 0].isnan().any()
    assert len(found.frame) == int(found.counts.sum())


def test_readouts_of_every_branch_equal_those_of_its_own_generation():
    _, model = pair(dtype=torch.float64)
    ids, mask = padded()
    readout = linear_readout("probe", "resid_post", torch.stack([vector(1), vector(2)]) / D)
    free, _ = whole(model, ids, mask, [], SAMPLED)
    for options in (GREEDY, SAMPLED | {"eos_token_id": [int(free[0, 0]), int(free[1, 4])]}):
        found = compare_branches(
            model,
            ids,
            {"plain": [], "steered": EDITS["steered"]},
            from_step=2,
            attention_mask=mask,
            readouts=readout,
            **options,
        )
        for name in found.names:
            own = read_generation(
                model,
                ids,
                readout,
                attention_mask=mask,
                interventions=scheduled(EDITS.get(name, []), 2),
                **options,
            )
            assert torch.equal(found.readings[name].tokens, own.tokens)
            assert torch.equal(found.readings[name].counts, own.counts)
            for key, value in own.values.items():
                got = found.readings[name].values[key]
                assert (got - value)[own.counts[:, :-1]].abs().max() < 1e-10


def test_the_frame_and_texts_of_the_demo(demo):
    prompt = ["The river is", "Le chat"]
    found = compare_branches(
        demo,
        prompt,
        {"plain": [], "silent": [iv.mask_heads(layer, None) for layer in range(6)]},
        from_step=3,
        max_new_tokens=6,
    )
    whole_text = demo.generate(prompt, max_new_tokens=6)[:, -6:]
    assert found.texts["plain"] == demo.tokenizer.batch_decode(whole_text)
    frame = found.frame
    assert list(frame.columns) == ["branch", "row", "step", "token", "same", "kl"]
    assert frame[frame.step < 3].kl.isna().all()
    assert frame[frame.step < 3].same.all()
    assert (frame[(frame.branch == "silent") & (frame.step >= 3)].kl > 0).all()


def test_what_cannot_branch_is_refused():
    _, model = pair()
    ids = tokens(2, 4)
    with pytest.raises(InputError, match="no branches"):
        compare_branches(model, ids, {}, from_step=1)
    for step in (-1, 5, True):
        with pytest.raises(InputError, match="expected 0 to 4"):
            compare_branches(model, ids, {"a": []}, from_step=step, max_new_tokens=5)
    with pytest.raises(UnknownNameError, match="'plan'.*'plain'"):
        compare_branches(model, ids, {"plain": []}, from_step=1, reference="plan")
    with pytest.raises(UnknownNameError, match="hook point"):
        compare_branches(model, ids, {"a": [("blocks.9.hook_z", print)]}, from_step=1)
    for refused in ({"num_beams": 2}, {"use_cache": False}):
        with pytest.raises(InputError, match=next(iter(refused))):
            compare_branches(model, ids, {"a": []}, from_step=1, **refused)
    with pytest.raises(TypeError, match="max_new_token"):
        compare_branches(model, ids, {"a": []}, from_step=1, max_new_token=3)
    first = model.generate(ids, max_new_tokens=1)[:, -1].tolist()
    with pytest.raises(InputError, match=r"all rows ended after 1 tokens.*step 2"):
        compare_branches(model, ids, {"a": []}, from_step=2, eos_token_id=first)
