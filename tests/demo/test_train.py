"""Training: repeatable, resumable, and it learns."""

import json

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

import bloomlab as bl
from bloomlab.demo import train
from bloomlab.errors import CheckpointError, InputError
from tests.demo.corpora import tiny_recipe, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("texts"))


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("straight")
    recipe = tiny_recipe(snapshots=(0, 6))
    train.Run(recipe, corpus, out, device="cpu", heldout=corpus).train(log_every=4)
    return out


def test_a_killed_run_ends_as_the_unbroken_one(corpus, finished, tmp_path, monkeypatch):
    recipe = tiny_recipe(snapshots=(0, 6))
    run = train.Run(recipe, corpus, tmp_path, device="cpu", heldout=corpus)

    class Kill(BaseException):
        pass

    def advance(self, go=train.Run._advance):
        if self.step == 7:
            raise Kill
        return go(self)

    monkeypatch.setattr(train.Run, "_advance", advance)
    with pytest.raises(Kill):
        run.train(log_every=4, save_every=0.0)
    monkeypatch.undo()
    again = train.Run(recipe, corpus, tmp_path, device="cpu", heldout=corpus)
    assert again.step == 7
    again.train(log_every=4)
    assert same(weights(tmp_path / "checkpoint"), weights(finished / "checkpoint"))
    assert same(weights(tmp_path / "step6"), weights(finished / "step6"))
    logs = [(out / "log.jsonl").read_text("utf-8") for out in (tmp_path, finished)]
    assert logs[0] == logs[1]
    assert [json.loads(line)["step"] for line in logs[0].splitlines()] == [4, 8, 12]
    assert [json.loads(line)["tokens"] for line in logs[0].splitlines()] == [256, 1024, 1792]


def test_a_kill_while_saving_leaves_the_older_state(corpus, tmp_path, monkeypatch):
    run = train.Run(tiny_recipe(), corpus, tmp_path, device="cpu")
    run._advance()
    run._save()

    def broken(state, file):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", broken)
    run._advance()
    with pytest.raises(KeyboardInterrupt):
        run._save()
    assert train.Run(tiny_recipe(), corpus, tmp_path, device="cpu").step == 1


def test_another_seed_gives_another_model_and_is_refused_in_the_same_folder(
    corpus, finished, tmp_path
):
    recipe = tiny_recipe(snapshots=(0, 6))
    folder = train.Run(recipe, corpus, tmp_path, device="cpu", seed=1).train()
    assert not same(weights(folder), weights(finished / "checkpoint"))
    with pytest.raises(CheckpointError, match="holds a run with another seed"):
        train.Run(recipe, corpus, finished, device="cpu", seed=1)
    with pytest.raises(CheckpointError, match="another recipe"):
        train.Run(tiny_recipe(), corpus, finished, device="cpu")


def test_the_checkpoint_loads_in_both_libraries(finished):
    model = bl.load(finished / "checkpoint", device="cpu", dtype="auto")
    assert model.dtype == torch.bfloat16
    theirs = model.to_hf()
    ids = model.to_tokens("the cat sat on a mat")
    assert torch.equal(model(ids).logits, theirs(ids).logits)
    assert bl.load(finished / "step0", device="cpu", dtype="auto").dtype == torch.float16


def test_it_learns(corpus, tmp_path):
    stages = tiny_recipe().stages
    longer = tiny_recipe(
        stages=(*stages[:1], type(stages[1])(steps=60, rows=8, length=48, mix={"text": 1.0})),
        warmup=5,
    )
    run = train.Run(longer, corpus, tmp_path, device="cpu", heldout=corpus)
    before = train.text_loss(run.model, run.heldout["en"], limit=2000)
    run.train()
    after = train.text_loss(run.model, run.heldout["en"], limit=2000)
    assert after.bits < 0.75 * before.bits


def test_every_parameter_has_one_optimizer(corpus, tmp_path):
    run = train.Run(tiny_recipe(), corpus, tmp_path, device="cpu")
    owned = [id(p) for o in run.optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in run.model.parameters())
    matrices = [p for group in run.optimizers[0].param_groups for p in group["params"]]
    assert {id(p) for p in matrices} == {
        id(p) for p in run.model.blocks.parameters() if p.ndim == 2
    }


def test_wrong_folders_are_told(corpus, tmp_path):
    with pytest.raises(InputError, match="should hold the corpus"):
        train.Run(tiny_recipe(), tmp_path, tmp_path / "out", device="cpu")
    with pytest.raises(InputError, match=r"holds none of en\.txt"):
        train.Run(tiny_recipe(), corpus, tmp_path / "out", device="cpu", heldout=tmp_path)


def test_the_command_trains(corpus, tmp_path, monkeypatch):
    app = train.typer.Typer()
    app.command()(train.main)
    monkeypatch.setitem(train.RUNS, "demo", tiny_recipe())
    ran = CliRunner().invoke(app, ["--corpus", str(corpus), "--out", str(tmp_path / "new")])
    assert ran.exit_code == 0, ran.output
    assert "bl.load(" in ran.output
    assert (tmp_path / "new" / "checkpoint" / "config.json").exists()
    wrong = ["--corpus", str(corpus), "--out", str(tmp_path), "--recipe", "cake"]
    assert "no recipe 'cake'" in CliRunner().invoke(app, wrong).output
