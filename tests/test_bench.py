import time
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from bloomlab.bench import generation, memory, timing
from bloomlab.bench.cases import CASES, chosen, rows
from bloomlab.bench.models import SHAPES, make_pair
from bloomlab.bench.plan import QUICK
from bloomlab.bench.table import heading, line
from bloomlab.bench.timing import Row, interleaved
from bloomlab.errors import UnknownNameError

CPU = torch.device("cpu")
SIZE = 2**26  # bytes of the tensor whose memory is measured
ROW = Row(case="walk", peer="a peer", ours=(1.0, 2.0, 4.0), theirs=(3.0, 5.0, 4.0))


@pytest.fixture(scope="module")
def tiny():
    return make_pair("tiny")


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `clock.pass_by(seconds)` moves: no other program disturbs it."""
    found = SimpleNamespace(now=0.0)
    found.pass_by = lambda seconds: setattr(found, "now", found.now + seconds)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: found.now))
    return found


def test_a_peer_that_takes_twice_as_long_gives_a_ratio_of_two(clock):
    calls = [lambda: clock.pass_by(0.01), lambda: clock.pass_by(0.02)]
    ours, theirs = interleaved(calls, seconds=0.3, least=7)
    assert ours == pytest.approx([0.01] * 10)
    row = replace(ROW, ours=ours, theirs=theirs)
    assert [row.ratio, row.best, *row.quartiles] == pytest.approx([2] * 4)


def test_the_clock_is_the_real_one():
    calls = [lambda: time.sleep(0.005), lambda: time.sleep(0.05)]
    ours, theirs = interleaved(calls, seconds=0.0, least=5)
    assert 0.005 <= min(ours) < 0.05 <= min(theirs)


def test_every_turn_makes_all_calls_and_begins_with_another():
    made = []
    times = interleaved([lambda n=n: made.append(n) for n in "abc"], seconds=0.0, least=4)
    assert [len(turns) for turns in times] == [4, 4, 4]
    assert "".join(made) == "abc" + "abc" + "bca" + "cab" + "abc"  # the first is not counted


def test_first_calls_are_not_counted(clock):
    waits = iter([5.0, 0.02, 0.02])
    (times,) = interleaved([lambda: clock.pass_by(next(waits, 0.01))], seconds=0.0, least=5)
    assert times == pytest.approx([0.02, 0.02, 0.01, 0.01, 0.01])
    waits = iter([0.5] + [0.1] * 20)
    (times,) = interleaved([lambda: clock.pass_by(next(waits, 0.01))], seconds=6.0, least=5)
    assert sum(times) == pytest.approx(6, abs=0.1)
    assert times[0] == pytest.approx(0.1)
    assert len(times) > 100


@pytest.mark.parametrize(
    ("kind", "ratios", "best"),
    [("speed", [3, 2.5, 1], 3), ("cost", [1 / 3, 0.4, 1], 1 / 3), ("share", [3, 2.5, 1], 3)],
)
def test_ratios_are_those_of_the_turns(kind, ratios, best):
    row = replace(ROW, kind=kind)
    assert row.ratios == pytest.approx(ratios)
    assert row.ratio == pytest.approx(sorted(ratios)[1])
    low, high = row.quartiles
    assert [low, high] == pytest.approx([sum(p) / 2 for p in pairwise(sorted(ratios))])
    assert row.best == pytest.approx(best)


def test_a_single_turn_has_no_spread():
    row = replace(ROW, ours=(2.0,), theirs=(3.0,))
    assert row.quartiles == (1.5, 1.5)
    assert "to" not in line(row, markdown=False)


@pytest.mark.parametrize(
    ("row", "cells"),
    [
        (ROW, ["walk", "2.00 s", "a peer", "4.00 s", "2.50x", "1.75x to 2.75x", "3.00x"]),
        (replace(ROW, kind="share", note="n"), ["250%", "175% to 275%", "n"]),
        (replace(ROW, kind="cost"), ["costs 0.40x", "0.37x to 0.70x"]),
        (replace(ROW, unit="B", ours=(2e6,), theirs=(3e3,)), ["2.00 MB", "3.00 kB", "0.00x"]),
        (replace(ROW, ours=(0.0123,), theirs=(4.5e-5,)), ["12.3 ms", "45 µs"]),
    ],
)
def test_a_row_shows_its_numbers_under_the_heading(row, cells):
    text, markdown = (line(row, markdown=kind) for kind in (False, True))
    assert all(cell in text and f"| {cell} |" in markdown for cell in cells)
    head, rule = heading(markdown=True).splitlines()
    assert head.count("|") == rule.count("|") == markdown.count("|")
    assert text.index("a peer") == heading(markdown=False).index("compared with")


def test_a_shape_has_its_parameters_shared_by_both_models(tiny):
    theirs = dict(tiny.theirs.named_parameters())
    assert sum(value.numel() for value in theirs.values()) == SHAPES["tiny"].parameters
    for name, value in tiny.ours.hf_named_parameters():
        assert value.data_ptr() == theirs[name].data_ptr()
    assert tiny.weight_bytes == 4 * SHAPES["tiny"].parameters
    assert tiny.disagreement() < 1e-5


def test_random_weights_are_random(monkeypatch):
    monkeypatch.setattr("bloomlab.bench.models.DRAWN", 1001)
    for value in map(torch.Tensor.detach, make_pair("tiny").theirs.parameters()):
        assert value.std() == pytest.approx(0.02, rel=0.3)
        assert value.mean().round().item() in (0, 1)
        assert len(value.unique(dim=0)) == len(value) or value.ndim == 1


def test_the_packaged_model_is_measured_with_its_own_weights(demo):
    pair = make_pair("demo", device="cpu")
    assert torch.equal(pair.ours.embed.weight, demo.embed.weight)
    assert pair.disagreement() < 1e-4


def test_neither_a_shape_nor_a_model_is_refused(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnknownNameError, match=r"'560n'.*Did you mean '560m'"):
        make_pair("560n")


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_every_benchmark_measures(tiny, name):
    found = list(rows(tiny, QUICK, [name]))
    assert found
    for row in found:
        assert len(row.ours) == len(row.theirs) >= 1
        assert all(value > 0 for value in (*row.ours, *row.theirs))
        assert line(row, markdown=False).startswith(row.case)


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(UnknownNameError, match="Did you mean 'prefill'"):
        chosen(["decode", "prefil"])
    assert chosen([]) == list(CASES)


def sleeper(clock, seconds):
    """Generates a token in so many seconds, whatever the batch."""

    def generate(ids, *, max_new_tokens, **_):
        clock.pass_by(seconds * max_new_tokens)
        return torch.cat([ids, ids.new_zeros(len(ids), max_new_tokens)], 1)

    return SimpleNamespace(generate=generate, device=CPU, config=SHAPES["tiny"], parameters=list)


def test_decoding_is_timed_per_token(tiny, clock):
    pair = replace(tiny, ours=sleeper(clock, 0.002), theirs=sleeper(clock, 0.006))
    for row in generation.decode(pair, replace(QUICK, new_tokens=5)):
        assert row.ratio == pytest.approx(3)
        assert row.ours == pytest.approx([0.002] * len(row.ours))
        assert row.note == "same tokens"


def test_the_share_of_the_bandwidth_counts_weights_once_and_what_is_cached(tiny, monkeypatch):
    monkeypatch.setattr(generation, "CACHES", 0)
    monkeypatch.setattr(generation, "READ", 2**20)
    *_, row = generation.decode(tiny, replace(QUICK, batches=(), prompt=90, new_tokens=20))
    kept = 2 * 2 * 64 * 100  # keys and values of two layers, on average 100 tokens
    assert row.kind == "share"
    assert row.note == f"{4 * (SHAPES['tiny'].parameters + kept) / 1000:.0f} kB a token"
    speed = float(row.peer.split()[-2]) * 1e9
    assert 4 * (SHAPES["tiny"].parameters + kept) / row.theirs[0] == pytest.approx(speed, rel=0.6)


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [True, False])
def test_peak_memory_is_seen_though_it_is_given_back(monkeypatch, tmp_path, kernel):
    if not kernel:
        monkeypatch.setattr(memory, "PROCESS", tmp_path / "none")

    def call():
        held = torch.ones(SIZE // 4)
        time.sleep(0.02)
        return held.sum()

    memory.peak_extra(call, CPU)
    assert memory.peak_extra(call, CPU) == pytest.approx(SIZE, rel=0.1)
    assert memory.peak_extra(lambda: None, CPU) < SIZE / 10


def test_forks_share_their_prefix(tiny):
    plan = replace(QUICK, prefix=256, forks=64)
    counted, process, going_on = memory.forks(tiny, plan)
    a_token = 2 * 2 * 64 * 4  # a key and a value in two layers, in float32
    assert counted.theirs == (256 * a_token,)
    assert 1 <= counted.ratio < 3
    assert process.ratio < 3
    assert going_on.theirs == ((256 + 64) * a_token,)


def test_the_command_prints_machine_and_rows(run):
    arguments = ("bench", "--model", "tiny", "--quick", "--only", "prefill, hooked")
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert f"torch {torch.__version__}" in out
    assert "tiny float32" in out
    assert [text.split(",")[0] for text in out.splitlines()[4:]] == [
        "prefill",
        "prefill",
        "generate 8",
    ]
    _, out, _ = run(*arguments, "--markdown", "--dtype", "bfloat16")
    assert "tiny bfloat16" in out
    assert [text[:10] for text in out.splitlines()[5:]] == [
        "| prefill,",
        "| prefill,",
        "| generate",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--only", "prefil"), "no benchmark 'prefil'. Did you mean 'prefill'"),
        (("--model", "560n"), "no model '560n'. Did you mean '560m'"),
        (("--model", "tiny", "--dtype", "int3"), "dtype is 'int3'"),
    ],
)
def test_what_cannot_be_measured_is_one_clean_message(run, monkeypatch, arguments, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    code, out, err = run("bench", *arguments)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1
