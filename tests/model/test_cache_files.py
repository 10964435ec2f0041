"""A saved cache is the cache; any other file is refused."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bloomlab as bl
from bloomlab.errors import CacheError, CheckpointError
from tests.tiny import pair, tokens

N = 8


def caches():
    _, ours = pair()
    mask = torch.ones(2, N, dtype=torch.long)
    mask[1, :3] = 0
    plain = ours(tokens(2, N)).past_key_values
    forked = plain.fork(8)
    ours(tokens(16, 1), past_key_values=forked)
    padded = ours(tokens(2, N), attention_mask=mask).past_key_values
    heavy = bl.KVCache(policy=bl.HeavyHitters(heavy=2, recent=3, reindex=True))
    ours(tokens(2, N), past_key_values=heavy)
    thin = plain.evict([2, 3])
    return {
        "plain": plain,
        "forked": forked,
        "padded": padded,
        "heavy": heavy,
        "thin": thin,
        "nothing left": plain.evict(list(range(N))),
        "empty": bl.KVCache(policy=bl.SinkWindow(window=9)),
        "half": plain.replace(1, k=0.0),
    }


@pytest.mark.parametrize("name", list(caches()))
def test_a_saved_cache_goes_on_as_the_cache_itself(tmp_path, name):
    _, ours = pair()
    past, file = caches()[name], tmp_path / "past.safetensors"
    past.save(file)
    again = bl.KVCache.load(file)
    assert again.policy == past.policy
    assert (again.n_rows, len(again), again.seen) == (past.n_rows, len(past), past.seen)
    assert again.has_evicted == past.has_evicted
    rows = past.n_rows or 2
    for _ in range(2):
        new = tokens(rows, 1, seed=4)
        got, expected = (ours(new, past_key_values=p).logits for p in (again, past))
        assert torch.equal(got, expected)
        assert torch.equal(again.positions, past.positions)
        assert torch.equal(again.valid, past.valid)
    assert list(tmp_path.iterdir()) == [file]


def test_shared_rows_are_written_once(tmp_path):
    past = caches()["plain"]
    past.save(tmp_path / "one")
    past.fork(384).save(tmp_path / "many")
    one, many = ((tmp_path / name).stat().st_size for name in ("one", "many"))
    assert abs(many - one) < 100
    assert bl.KVCache.load(tmp_path / "many").nbytes == past.nbytes


def test_saving_replaces_the_old_file_and_keeps_no_spare_room(tmp_path):
    past, file = caches()["forked"], tmp_path / "past"
    for _ in range(2):
        past.save(file)
    again = bl.KVCache.load(str(file), device="cpu")
    assert again.nbytes < past.nbytes
    assert all(torch.equal(again.keys(i), past.keys(i)) for i in range(2))


def rewritten(change):
    """A change of a saved file's tensors and description."""

    def apply(file):
        tensors = load_file(file)
        with safe_open(file, framework="pt") as opened:
            about = json.loads(opened.metadata()["bloomlab.KVCache"])
        change(tensors, about)
        save_file(tensors, file, {"bloomlab.KVCache": json.dumps(about)})

    return apply


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def forget(file):
    save_file(load_file(file), file)


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (truncate, "truncated"),
        (lambda file: file.write_bytes(b"past"), "truncated"),
        (forget, "no KVCache"),
        (lambda file: file.unlink(), "no file"),
        (rewritten(lambda t, about: about.update(version=2)), "version 2"),
        (rewritten(lambda t, about: about.pop("version")), "inconsistent"),
        (rewritten(lambda t, about: about.update(n_layer=1)), "unexpected tensors"),
        (rewritten(lambda t, about: about.update(n_layer=3)), "layer 2 holds 0"),
        (rewritten(lambda t, about: about.update(n_layer="2")), "a count"),
        (rewritten(lambda t, about: about.update(rows=3)), "rows|positions"),
        (rewritten(lambda t, about: about.update(length=7)), "tokens|positions"),
        (rewritten(lambda t, about: about.update(seen=1)), "evicted"),
        (rewritten(lambda t, about: about.update(evicted=1)), "evicted"),
        (rewritten(lambda t, about: about.update(policy=["Mine", {}])), "inconsistent"),
        (rewritten(lambda t, about: about.update(policy=["SinkWindow", {"window": 0}])), "window"),
        (rewritten(lambda t, about: t.pop("layers.1.0.v")), "inconsistent"),
        (rewritten(lambda t, about: t.update({"layers.1.0.v": torch.ones(1)})), "layer 1"),
        (rewritten(lambda t, about: t.update(extra=torch.ones(1))), "extra"),
        (rewritten(lambda t, about: t.pop("positions")), "inconsistent"),
        (rewritten(lambda t, about: t.update(valid=torch.ones(2, 8))), "validity"),
        (rewritten(lambda t, about: t.update(received=torch.ones(2, 2))), "received"),
    ],
)
def test_a_foreign_or_damaged_file_is_refused(tmp_path, damage, text):
    file = tmp_path / "past"
    caches()["padded"].save(file)
    bl.KVCache.load(file)
    damage(file)
    with pytest.raises(CheckpointError, match=text):
        bl.KVCache.load(file)


def test_what_cannot_be_saved_is_refused(tmp_path):
    class Mine:
        reindex = watches_pattern = False

        def kept(self, valid, received):
            return None

    past = caches()["plain"]
    with pytest.raises(CheckpointError, match="cannot save"):
        past.save(tmp_path / "nowhere" / "past")
    past.policy = Mine()
    with pytest.raises(CacheError, match="policy"):
        past.save(tmp_path / "past")
    assert list(tmp_path.iterdir()) == []


def test_offloading_and_back_gives_the_same():
    _, ours = pair()
    for past in caches().values():
        there = past.to("meta")  # stands for another device: where tensors are is followed
        assert there.device == torch.device("meta" if past.n_rows else "cpu")
        back = past.to("cpu")
        rows = past.n_rows or 2
        assert back.policy == past.policy
        expected = ours(tokens(rows, 1), past_key_values=past.fork() if past.n_rows else past)
        got = ours(tokens(rows, 1), past_key_values=back)
        assert torch.equal(got.logits, expected.logits)
    past = caches()["plain"].fork(384)
    assert past.to("cpu").nbytes == past.nbytes
