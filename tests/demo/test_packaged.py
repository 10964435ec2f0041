"""The packaged models are those of the card, and can do what it says."""

import math
import re
import time
import zlib
from pathlib import Path

import pytest
import torch

import bloomlab as bl
from bloomlab.demo import phases
from bloomlab.demo.evaluate import file_hashes
from bloomlab.demo.measures import copying, text_loss
from bloomlab.errors import CheckpointError
from bloomlab.tokens import DEMO

CARD = (DEMO.parent / "README.md").read_text(encoding="utf-8")
# greedy continuations in which the likeliest token leads by a tenth of a nat or more
WRITTEN = {
    "To open a file, choose": " File - File - File - File - File - File - File - File -",
    "The President of the United States": (", and the United States, and the United States, and"),
    "El presidente del gobierno": (
        " de la barra de herramientas de herramientas de herramientas de"
    ),
}
BITS = 1.572  # per byte of `UNSEEN`
UNSEEN = Path(__file__).with_name("inaugural_1829.txt")  # Jackson's address; public domain


def table(name):
    """Cells of a table of the card, without its header."""
    lines = re.search(f"<!-- table: {name} -->\n(.*?)<!-- end -->", CARD, re.DOTALL)[1]
    return [line[2:-2].split(" | ") for line in lines.splitlines()[2:]]


@pytest.fixture(scope="module")
def copied(demo):
    return copying(demo)


def test_the_files_are_those_of_the_card():
    found = {name: facts["sha256"] for name, facts in file_hashes(DEMO).items()}
    assert found == {name: digest.strip("`") for name, _, digest in table("files")}
    assert len([name for name in found if name.endswith(".safetensors")]) == 2


def test_random_tokens_are_copied_and_not_foretold(demo, copied):
    uniform = math.log(demo.config.vocab_size)
    assert copied.induction.max() >= 0.85
    assert copied.second <= uniform - 7
    assert abs(copied.first - uniform) <= 0.5


def test_the_card_says_what_the_heads_do(demo, copied):
    for layer, head in [(0, 0), (1, 5), (3, 2), (5, 7)]:
        row = next(row for row in table("heads") if row[0] == f"L{layer}H{head}")
        mask = torch.ones(demo.config.n_layer, demo.config.n_head)
        mask[layer, head] = 0
        without = copying(demo, head_mask=mask).second - copied.second
        for cell, name in zip(row[1:4], ("induction", "previous", "duplicate"), strict=True):
            assert float(cell) == pytest.approx(
                getattr(copied, name)[layer, head].item(), abs=0.006
            )
        assert float(row[5]) == pytest.approx(without, abs=0.006)
    assert len(table("heads")) == demo.config.n_layer * demo.config.n_head


def test_some_heads_are_needed_to_copy_and_many_for_nothing_in_english():
    needed = [float(row[5]) for row in table("heads")] + [float(row[3]) for row in table("groups")]
    assert max(needed) > 5
    shares = [float(re.search(r"\((.*)%\)", row[4])[1]) for row in table("heads")]
    assert sum(abs(share) < 1 for share in shares) * 3 >= len(shares)


def test_unseen_english_is_foretold_as_well_as_ever(demo):
    got = text_loss(demo, [UNSEEN.read_text(encoding="utf-8")])
    assert got.n_token > 1000
    assert got.bits == pytest.approx(BITS, abs=0.005)


@pytest.mark.parametrize("prompt", WRITTEN)
def test_greedy_text_is_stable(demo, prompt):
    out = demo.generate(prompt, max_new_tokens=16, do_sample=False)
    assert demo.to_string(out)[0][len(prompt) :] == WRITTEN[prompt]


def test_half_of_the_greedy_texts_end_in_no_loop():
    loops = [row[2] for row in table("samples")]
    assert len(loops) == 20
    assert sum(bool(loop) for loop in loops) <= 10


def test_induction_appears_between_the_phases():
    names = phases()
    assert names[0] == "step0"
    assert 6 <= len(names) <= 8
    scores = [
        float(copying(bl.load("demo-phases", revision=name, device="cpu")).induction.max())
        for name in names
    ]
    assert max(scores[:2]) < 0.1
    assert scores[-1] > 0.8
    assert any(0.15 < score < 0.75 for score in scores)
    with pytest.raises(CheckpointError, match="no revision 'step7'"):
        bl.load("demo-phases", revision="step7")


def test_everything_fits_in_the_wheel():
    parts = [DEMO, DEMO.with_name("phases")]
    files = [f for part in parts for f in part.rglob("*") if f.is_file()]
    assert sum(len(zlib.compress(f.read_bytes())) for f in files) < 40e6


def test_loading_takes_no_time(demo):
    def seconds():
        start = time.perf_counter()
        bl.load("demo", device="cpu")
        return time.perf_counter() - start

    assert min(seconds() for _ in range(3)) < 0.5
