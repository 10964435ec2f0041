"""Readings of streams against brute force over whole logits."""

import math

import pytest
import torch
from scipy.stats import entropy

from bloomlab.analysis.lens import divergence, log_probabilities, ranks, read_streams
from bloomlab.errors import InputError

LAYERS, ROWS, WIDTH, VOCAB = 3, 11, 5, 17


def made(dtype=torch.float64):
    source = torch.Generator().manual_seed(0)
    draw = {"generator": source, "dtype": torch.float64}
    streams = [torch.randn(ROWS, WIDTH, **draw).to(dtype) for _ in range(LAYERS)]
    unembed = torch.randn(WIDTH, VOCAB, **draw).to(dtype)
    chosen = torch.randint(0, VOCAB, (ROWS, 2), generator=source)
    return streams, unembed, chosen


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_a_reading_is_what_whole_logits_say(at_once):
    streams, unembed, chosen = made()
    read_outs = [lambda x, scale=scale: scale * x @ unembed for scale in (1, 2, 3)]
    got = read_streams(
        streams,
        read_outs,
        streams[-1],
        lambda x: x @ unembed,
        chosen=chosen,
        k=4,
        at_once=at_once,
    )
    final = (streams[-1] @ unembed).softmax(-1).numpy()
    assert got.last.tolist() == final.argmax(-1).tolist()
    for layer, stream in enumerate(streams):
        p = ((layer + 1) * stream @ unembed).softmax(-1).numpy()
        assert got.entropy[layer].numpy() == pytest.approx(entropy(p, axis=-1))
        assert got.kl[layer].numpy() == pytest.approx(entropy(final, p, axis=-1))
        for row in range(ROWS):
            order = (-p[row]).argsort()
            assert got.top[layer, row].tolist() == order[:4].tolist()
            assert got.top_logprob[layer, row].exp().numpy() == pytest.approx(p[row][order[:4]])
            wanted = [*chosen[row].tolist(), int(got.last[row])]
            places = [order.tolist().index(token) for token in wanted]
            assert [*got.chosen_rank[layer, row].tolist(), int(got.last_rank[layer, row])] == places
            logprob = [
                *got.chosen_logprob[layer, row].tolist(),
                float(got.last_logprob[layer, row]),
            ]
            assert logprob == pytest.approx([math.log(p[row][token]) for token in wanted])


def test_no_more_logits_than_asked_are_ever_made():
    streams, unembed, chosen = made()
    sizes = []

    def read(x):
        sizes.append(len(x))
        return x @ unembed

    read_streams(streams, [read] * 3, streams[0], read, chosen=chosen, k=1, at_once=4)
    assert max(sizes) == 4
    assert sum(sizes) == ROWS * (LAYERS + 1)


def test_half_precision_is_read_in_float32():
    streams, unembed, chosen = made(torch.bfloat16)
    read = {"chosen": chosen, "k": 2, "at_once": 50}
    got = read_streams(
        streams, [lambda x: x @ unembed] * 3, streams[-1], lambda x: x @ unembed, **read
    )
    assert got.entropy.dtype == torch.float32
    logits = (streams[0] @ unembed).double()
    assert got.entropy[0].numpy() == pytest.approx(
        entropy(logits.softmax(-1).numpy(), axis=-1), abs=1e-5
    )
    assert not got.kl[-1].any()  # the same prediction


def test_ties_share_the_better_rank():
    values = torch.tensor([[1.0, 3.0, 3.0, 2.0]])
    assert ranks(values, torch.tensor([[1, 2, 3, 0]])).tolist() == [[0, 0, 2, 3]]
    even = log_probabilities(torch.zeros(1, 8))
    assert even[0, 0].item() == pytest.approx(-math.log(8))
    assert divergence(even, even).item() == 0


def test_wrong_sizes_are_refused():
    streams, unembed, chosen = made()

    def read(k=1, at_once=1, rows=ROWS):
        some = [stream[:rows] for stream in streams]
        out = [lambda x: x @ unembed] * 3
        return read_streams(some, out, some[0], out[0], chosen=chosen[:rows], k=k, at_once=at_once)

    for wrong in ({"k": 0}, {"at_once": 0}, {"rows": 0}):
        with pytest.raises(InputError, match="expected 1 or more"):
            read(**wrong)
    with pytest.raises(InputError, match="vocabulary has 17"):
        read(k=18)
