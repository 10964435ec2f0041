"""What caches have in common is stored once, and attention over it loses nothing."""

import pytest
import torch

import bloomlab as bl
from bloomlab.model import fused
from tests.tiny import distance_in_eps, pair, tokens

COLUMN = 2 * 2 * 48 * 4  # bytes of a token: k and v, layers, width, float32
P = 100


def prefix(ours, rows=1, length=P):
    return ours(tokens(rows, length)).past_key_values


def unshared(past):
    """The same contents, every row stored."""
    return bl.KVCache.from_hf(past.to_hf(), past.valid)


@torch.no_grad()
def test_384_forks_store_the_prefix_once_and_each_new_token_for_itself():
    _, ours = pair()
    past = prefix(ours, length=1000)
    one, forks = past.nbytes, past.fork(384)
    assert forks.nbytes < 1.1 * one
    text = tokens(1, 1000).expand(384, -1)
    for column in range(3):
        new = tokens(384, 1, seed=column)
        got = ours(new, past_key_values=forks).logits
        text = torch.cat([text, new], 1)
        assert forks.nbytes <= one + 384 * 9 * COLUMN  # the new columns and room for 8 more
    assert distance_in_eps(got[::50], ours(text[::50]).logits[:, -1:]) < 300
    assert past.nbytes == one


@torch.no_grad()
def test_nested_forks_store_every_level_once():
    _, ours = pair()
    past = prefix(ours)
    rows, size = tokens(1, P), past.nbytes
    for level in range(4):
        past = past.fork(3)
        rows = rows.repeat_interleave(3, 0)
        for _ in range(2):
            new = tokens(len(rows), 1, seed=level)
            rows = torch.cat([rows, new], 1)
            got = ours(new, past_key_values=past).logits
        assert distance_in_eps(got, ours(rows).logits[:, -1:]) < 300
    assert past.n_rows == 81
    stored = [[(piece.rows, piece.length) for piece in pieces] for pieces in past._layers]
    assert stored == [[(1, P), (3, 2), (9, 2), (81, 4)]] * 2  # the last level holds two
    assert past.nbytes < size + 81 * 20 * COLUMN
    assert past.crop(P).nbytes == size


@torch.no_grad()
def test_rows_gathered_within_their_groups_go_on_sharing():
    _, ours = pair()
    past = prefix(ours, rows=2)
    size, forks = past.nbytes, past.fork(3)
    ours(tokens(6, 1), past_key_values=forks)
    beams = forks.gather([2, 2, 0, 3, 5, 5])
    assert beams.nbytes <= size + 6 * COLUMN
    across = forks.gather([0, 3, 1, 4, 2, 5])
    assert across.nbytes >= 3 * size
    shrunk = forks.gather([1])
    assert shrunk.nbytes <= size / 2 + COLUMN
    for cache, rows in ((beams, [0, 0, 0, 1, 1, 1]), (across, [0, 1] * 3), (shrunk, [0])):
        assert torch.equal(cache.keys(1)[:, :, :P], past.keys(1)[rows])


@torch.no_grad()
@pytest.mark.parametrize("reindex", [True, False])
def test_eviction_from_forks_frees_the_columns_and_keeps_sharing(reindex):
    _, ours = pair(n_layer=1)
    mask = torch.ones(2, P, dtype=torch.long)
    mask[0, :7] = 0  # the two prompts lose different columns
    past = ours(tokens(2, P), attention_mask=mask).past_key_values
    forks = past.fork(8)
    ours(tokens(16, 1), past_key_values=forks)
    thin = forks.evict(list(range(40)), reindex)
    assert thin._layers[0][0].rows == 2
    assert thin._layers[0][0].length == P - 40
    assert thin.nbytes < forks.nbytes - 2 * 39 * COLUMN // 2
    assert thin.valid.sum(-1).tolist() == [P - 47 + 1] * 8 + [P - 40 + 1] * 8
    alone = unshared(forks).evict(list(range(40)), reindex)
    new = tokens(16, 2)
    got, expected = (ours(new, past_key_values=c).logits for c in (thin, alone))
    assert distance_in_eps(got, expected) < 200


@torch.no_grad()
def test_caches_can_lose_every_token():
    _, ours = pair()
    past = prefix(ours, length=5).evict(range(5))
    assert (len(past), past.n_rows, past.nbytes, past.seen) == (0, 1, 0, 5)
    assert past.next_position.tolist() == [5]
    ids = tokens(2, 3)
    got = ours(ids, past_key_values=past.fork(2)).logits
    assert distance_in_eps(got, ours(ids).logits) < 200  # only distances count


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alibi", ["hf", "exact"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("n_new", [2, 300])
def test_chunks_over_a_shared_prefix(n_new, padded, alibi, dtype, monkeypatch):
    """Blocks of queries too; padding may differ between rows that share the prefix."""
    _, ours = pair(dtype=dtype)
    ours.alibi = alibi
    monkeypatch.setattr(fused, "SCORES_AT_ONCE", 4 * 6 * 500 * 200)
    limit = 500 if dtype == torch.float32 else 12
    ids, mask = tokens(2, 40), torch.ones(4, 40 + n_new, dtype=torch.long)
    if padded:
        mask[:2, :3], mask[1, 40], mask[3, -1] = 0, 0, 0
    past = ours(ids, attention_mask=mask[::2, :40]).past_key_values.fork(2)
    new = tokens(4, n_new, seed=2)
    got = ours(new, attention_mask=mask, past_key_values=past.fork()).logits
    whole = torch.cat([ids.repeat_interleave(2, 0), new], 1)
    expected = ours(whole, attention_mask=mask).logits[:, 40:]
    shown = mask[:, 40:].bool()
    assert distance_in_eps(got[shown], expected[shown]) < limit
    watched = ours(new, attention_mask=mask, past_key_values=past, output_attentions=True)
    assert distance_in_eps(watched.logits[shown], expected[shown]) < limit


@torch.no_grad()
def test_hooks_see_shared_pieces_as_any_others():
    _, ours = pair()
    past = prefix(ours, rows=2, length=9).fork(3)
    ours(tokens(6, 2), past_key_values=past)
    new, alone = tokens(6, 3, seed=2), unshared(past)
    (_, got), (_, expected) = (
        ours.run_with_cache(new, past_key_values=c, use_cache=True) for c in (past, alone)
    )
    for name, value in expected.items():
        assert distance_in_eps(got[name], value) < 200, name


@pytest.mark.parametrize("frozen_prefix", [True, False])
def test_gradients_through_shared_pieces(frozen_prefix):
    _, ours = pair()
    new, gradients = tokens(6, 4, seed=2), []
    for share in (True, False):
        with torch.set_grad_enabled(not frozen_prefix):
            past = prefix(ours, rows=2, length=9)
            rows = past.fork(3)
        if not share and frozen_prefix:
            rows = unshared(rows)
        if not share and not frozen_prefix:  # one full forward
            whole = torch.cat([tokens(2, 9).repeat_interleave(3, 0), new], 1)
            logits = ours(whole).logits[:, 9:]
        else:
            logits = torch.cat(
                [ours(part, past_key_values=rows).logits for part in new.split(2, 1)], 1
            )
        if share:
            assert [piece.rows for piece in rows._layers[0]] == [2, 6]
        logits.square().mean().backward()
        gradients.append({name: value.grad.clone() for name, value in ours.named_parameters()})
        ours.zero_grad()
    top = max(value.abs().max() for value in gradients[1].values())
    for name, value in gradients[1].items():
        assert (gradients[0][name] - value).abs().max() < 300 * 1.2e-7 * top, name


def test_gradients_through_values_alone():
    """Keys may be constants, as when a hook detaches them."""
    _, ours = pair()
    ids = tokens(1, 6)
    hooks = [(f"blocks.{i}.attn.hook_k", lambda k, hook: k.detach()) for i in range(2)]

    def detached(part, past):
        return ours.run_with_hooks(part, past_key_values=past, fwd_hooks=hooks, use_cache=True)

    gradients = []
    for split in ([6], [3, 1, 1, 1]):
        past = bl.KVCache()
        parts = [detached(part, past) for part in ids.split(split, 1)]
        torch.cat(parts, 1).square().mean().backward()
        gradients.append(ours.blocks[0].attn.qkv.weight.grad.clone())
        ours.zero_grad()
    assert distance_in_eps(gradients[1], gradients[0]) < 300


def test_a_prefix_from_inference_mode_goes_on_outside():
    _, ours = pair()
    ids = tokens(1, 12)
    with torch.inference_mode():
        past = ours(ids[:, :5]).past_key_values
        for column in range(5, 8):
            ours(ids[:, column : column + 1], past_key_values=past)
    with torch.no_grad():
        got = [ours(ids[:, i : i + 2], past_key_values=past).logits for i in (8, 10)]
        assert distance_in_eps(torch.cat(got, 1), ours(ids).logits[:, 8:]) < 200


@torch.no_grad()
def test_a_failed_forward_leaves_shared_caches_as_they_were():
    _, ours = pair()
    past = prefix(ours, length=5).fork(2)
    ours(tokens(2, 1), past_key_values=past)
    twin, before = past.fork(), [past.keys(i).clone() for i in range(2)]

    def fail(value, hook):
        raise RuntimeError("in the middle")

    for _ in range(6):
        with pytest.raises(RuntimeError, match="middle"):
            ours.run_with_hooks(
                tokens(2, 3), past_key_values=past, fwd_hooks=[("blocks.1.attn.hook_z", fail)]
            )
        ours(tokens(2, 1, seed=4), past_key_values=twin)
    assert (len(past), len(twin)) == (6, 12)
    for layer, keys in enumerate(before):
        assert torch.equal(past.keys(layer), keys)
        assert torch.equal(twin.keys(layer)[:, :, :6], keys)
