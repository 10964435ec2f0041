"""Losses and head scores against transformers and brute force."""

import math

import pytest
import torch
from torch.nn import functional as F

from bloomlab.demo.measures import copying, repeated_tokens, text_loss, windows

TEXTS = [
    "The cat sat on the mat; it was fat.",
    "Le chat était gros.\n猫很胖。",
    "def f(x):\n    return x",
]


def test_windows_predict_every_token_once():
    ids = torch.arange(23)
    rows = windows(ids, 6)
    assert rows[:, 1:].flatten().tolist() == list(range(1, 21))
    assert windows(ids[:4], 6).tolist() == [[0, 1, 2, 3]]


def test_the_loss_of_a_text_is_transformers(demo):
    got = text_loss(demo, TEXTS, width=9)
    theirs, end = demo.to_hf(), demo.tokenizer.eos_token_id
    ids = [i for text in TEXTS for i in [*demo.tokenizer(text)["input_ids"], end]]
    total, n, n_byte = 0.0, 0, 0
    for start in range(0, len(ids) - 8, 8):
        row = torch.tensor([ids[start : start + 9]])
        total += 8 * theirs(row, labels=row).loss.item()
        n += 8
        pieces = demo.tokenizer.convert_ids_to_tokens(row[0, 1:].tolist())
        n_byte += sum(1 if piece == "</s>" else len(piece) for piece in pieces)
    assert got.n_token == n
    assert got.n_byte == n_byte
    assert got.nats == pytest.approx(total / n, rel=1e-5)
    assert got.bits == pytest.approx(total / math.log(2) / n_byte, rel=1e-5)


def test_bytes_are_counted_as_utf8(demo):
    text = "naïve 中文 text"
    width = len(demo.tokenizer(text)["input_ids"]) + 1
    got = text_loss(demo, [text], width=width)
    first = demo.tokenizer.convert_ids_to_tokens(demo.tokenizer(text)["input_ids"][0])
    assert got.n_byte == len(text.encode()) + 1 - len(first)


def test_masked_heads_count(demo):
    mask = torch.ones(demo.config.n_layer, demo.config.n_head)
    assert text_loss(demo, TEXTS, head_mask=mask).nats == pytest.approx(
        text_loss(demo, TEXTS).nats, rel=1e-6
    )
    mask[0] = 0
    assert text_loss(demo, TEXTS, head_mask=mask).nats > text_loss(demo, TEXTS).nats + 0.1


def test_copying_is_what_the_patterns_and_logits_say(demo):
    period = 8
    got = copying(demo, period=period, rows=3)
    ids = repeated_tokens(demo, period=period, rows=3)
    assert ids.shape == (3, 17)
    assert torch.equal(ids[:, 1:9], ids[:, 9:])
    assert (ids[:, 0] == 1).all()
    out = demo.to_hf()(ids, output_attentions=True)
    losses = F.cross_entropy(out.logits[:, :-1].mT, ids[:, 1:], reduction="none")
    assert got.first == pytest.approx(losses[:, :8].mean().item(), rel=1e-5)
    assert got.second == pytest.approx(losses[:, 9:].mean().item(), rel=1e-4)
    right = [
        bool(out.logits[row, at].argmax() == ids[row, at + 1])
        for row in range(3)
        for at in range(9, 16)
    ]
    assert got.accuracy == pytest.approx(sum(right) / len(right))
    for name, distance in (("induction", 7), ("previous", 1), ("duplicate", 8)):
        for layer, pattern in enumerate(out.attentions):
            mean = torch.stack([pattern[:, :, q, q - distance] for q in range(9, 17)]).mean((0, 1))
            torch.testing.assert_close(getattr(got, name)[layer], mean, atol=1e-5, rtol=1e-4)
