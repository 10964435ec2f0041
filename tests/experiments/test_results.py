"""A results folder: it holds what repeats a study, goes on after a kill, and is of one study."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch

from bloomlab.errors import InputError, ResultsError
from bloomlab.experiments import ablate_heads, identity
from bloomlab.experiments.results import Results, read_results, read_run
from tests.tiny import pair, tokens

CHILD = """
import sys, time
import bloomlab as bl
from bloomlab.experiments import ablate_heads, results

class Slow(results.Results):
    def append(self, row):
        super().append(row)
        print(len(self), flush=True)
        time.sleep(0.05)

results.Results = Slow
model = bl.load("demo", device="cpu")
ablate_heads(model, TEXTS, heads=HEADS, results=sys.argv[1], progress=False)
"""
HEADS = [[layer, head] for layer in range(4) for head in range(4)]
TEXTS = ["A kill may come at any time.", "Nothing is lost by it.", "Il ne se perd rien."]


@pytest.fixture(scope="module")
def model():
    return pair()[1]


def study(model, folder, **changed):
    options = {"data": tokens(3, 6), "metric": "kl", "results": folder, "progress": False} | changed
    return ablate_heads(model, options.pop("data"), **options)


def same(one, other):
    pd.testing.assert_frame_equal(one.frame, other.frame, check_exact=True)
    assert torch.equal(one.effects, other.effects)
    assert torch.equal(one.clean, other.clean)


def test_a_stored_sweep_is_the_sweep_and_is_read_back(model, tmp_path):
    plain, stored = study(model, None, rows=3), study(model, tmp_path / "a")
    torch.testing.assert_close(stored.effects, plain.effects, rtol=0, atol=1e-6)
    same(study(model, tmp_path / "a"), stored)
    frame = read_results(tmp_path / "a")
    assert len(frame) == 12
    assert frame.heads.tolist()[:2] == ["L0H0", "L0H1"]
    assert torch.equal(torch.tensor(frame.effect[3].tolist()).float(), stored.effects[3])
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        "rows-00000000.parquet",
        "run.json",
    ]


def test_what_repeats_a_study_is_stored(model, tmp_path):
    first = study(model, tmp_path / "a", kind="resample", seed=3, heads=[(0, 1), (1, 2)])
    run = read_run(tmp_path / "a")
    assert run["seed"] == 3
    assert run["versions"]["torch"] == torch.__version__
    assert run["data"]["shape"] == [3, 6]
    arguments = {name: value for name, value in run["arguments"].items() if value is not None}
    again = ablate_heads(model, tokens(3, 6), **arguments, seed=run["seed"], progress=False)
    torch.testing.assert_close(again.effects, first.effects, rtol=0, atol=1e-6)


def test_an_interrupted_sweep_goes_on(model, tmp_path, monkeypatch):
    whole = study(model, tmp_path / "whole")
    count = iter(range(5))

    def append(self, row, put=Results.append):
        put(self, row)
        if next(count) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Results, "append", append)
    with pytest.raises(KeyboardInterrupt):
        study(model, tmp_path / "cut")
    monkeypatch.undo()
    assert len(read_results(tmp_path / "cut")) == 5
    same(study(model, tmp_path / "cut"), whole)


@pytest.mark.slow
def test_a_kill_loses_one_row_at_most_and_the_table_is_the_same(demo, tmp_path):
    code = CHILD.replace("TEXTS", repr(TEXTS)).replace("HEADS", repr(HEADS))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "cut")],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert child.stdout is not None
    for line in child.stdout:
        told = int(line)
        if told == 7:
            child.send_signal(signal.SIGKILL)
            break
    child.wait()
    child.stdout.close()
    assert child.returncode == -signal.SIGKILL
    left = len(read_results(tmp_path / "cut"))
    assert told <= left <= told + 1
    asked = {"data": TEXTS, "metric": "cross_entropy", "heads": HEADS}
    whole = study(demo, tmp_path / "whole", **asked)
    same(study(demo, tmp_path / "cut", **asked), whole)
    pd.testing.assert_frame_equal(
        read_results(tmp_path / "cut"), read_results(tmp_path / "whole"), check_exact=True
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data": tokens(3, 6, seed=2)}, "data.sha256 was"),
        ({"metric": "cross_entropy"}, 'arguments.metric was "kl", is "cross_entropy"'),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"heads": [(0, 0)]}, "arguments.heads was"),
    ],
)
def test_a_folder_of_another_study_is_refused(model, tmp_path, changed, said):
    study(model, tmp_path / "a")
    (tmp_path / "a-2").mkdir()
    with pytest.raises(ResultsError, match=said) as caught:
        study(model, tmp_path / "a", **changed)
    assert f"{str(tmp_path / 'a-3')!r} is free" in str(caught.value)
    assert len(read_results(tmp_path / "a")) == 12


def test_a_folder_of_another_model_slope_or_code_is_refused(model, tmp_path, monkeypatch):
    study(model, tmp_path / "a")
    other = pair(seed=1)[1]
    with pytest.raises(ResultsError, match="model.sha256 was"):
        study(other, tmp_path / "a")
    slope = model.blocks[1].attn.slopes[2].item()
    model.blocks[1].attn.slopes[2] = 0
    with pytest.raises(ResultsError, match="model.sha256 was"):
        study(model, tmp_path / "a")
    model.blocks[1].attn.slopes[2] = slope
    monkeypatch.setattr(identity, "code_hash", lambda: "of another version")
    with pytest.raises(ResultsError, match='code was .* is "of another version"'):
        study(model, tmp_path / "a")
    run = json.loads((tmp_path / "a" / "run.json").read_text())
    run["versions"]["bloomlab"] = "0.0.1"
    (tmp_path / "a" / "run.json").write_text(json.dumps(run))
    with pytest.raises(ResultsError, match='versions.bloomlab was "0.0.1"'):
        study(model, tmp_path / "a")


def test_what_is_no_results_folder_is_refused(model, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ResultsError, match=r"holds notes.txt but no run.json"):
        study(model, tmp_path)
    with pytest.raises(ResultsError, match="is a file, expected a folder"):
        study(model, tmp_path / "notes.txt")
    with pytest.raises(ResultsError, match=r"no run.json in"):
        read_results(tmp_path / "nowhere")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_broken_file_is_named(model, tmp_path):
    study(model, tmp_path / "a")
    file = tmp_path / "a" / "rows-00000000.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ResultsError, match="rows-00000000.parquet cannot be read"):
        study(model, tmp_path / "a")
    file.unlink()
    assert len(study(model, tmp_path / "a").frame) == 12


def test_functions_are_known_by_their_code_and_objects_are_refused(model, tmp_path):
    def last(logits, ids):
        return logits[:, -1].logsumexp(-1)

    def other(logits, ids):
        return logits[:, -1].amax(-1)

    study(model, tmp_path / "a", metric=last)
    other.__qualname__ = last.__qualname__
    with pytest.raises(ResultsError, match="arguments.metric.sha256"):
        study(model, tmp_path / "a", metric=other)

    class Callable:
        def __call__(self, logits, ids):
            return logits[:, -1].amax(-1)

    with pytest.raises(InputError, match="metric.* is a Callable, which cannot be stored"):
        study(model, tmp_path / "b", metric=Callable())


@pytest.mark.slow
def test_storing_a_sweep_costs_little(demo, tmp_path):
    def seconds(folder):
        start = time.perf_counter()
        study(demo, folder, data=TEXTS, metric="cross_entropy", rows=3)
        return time.perf_counter() - start

    plain = min(seconds(None) for _ in range(2))
    assert min(seconds(tmp_path / str(i)) for i in range(2)) < 2 * plain + 0.3
