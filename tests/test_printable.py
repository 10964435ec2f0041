import html
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from bloomlab import printable
from bloomlab.errors import InputError
from bloomlab.printable import printable_tokens, token_labels
from bloomlab.tokens import BloomTokenizer


@pytest.fixture(scope="module")
def tokenizer():
    demo = Path(printable.__file__).parent / "demo" / "checkpoint"
    return BloomTokenizer.from_pretrained(demo)


def byte_tokens(*pieces):
    """A tokenizer whose id n is the nth piece of bytes, None one it lacks."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    of_byte = {}
    for code in (*range(0x800), *range(0x800, 0xD800, 0x800), *range(0xE000, 0x110000, 0x1000)):
        spelled = byte_level.pre_tokenize_str(chr(code))[0][0]
        of_byte |= dict(zip(chr(code).encode(), spelled, strict=True))
    names = [None if p is None else "".join(of_byte[byte] for byte in p) for p in pieces]
    return SimpleNamespace(convert_ids_to_tokens=lambda ids: [names[i] for i in ids])


def spell(*pieces):
    return printable_tokens(byte_tokens(*pieces), range(len(pieces)))


def test_labels_take_lists_arrays_and_tensors_of_one_row(tokenizer):
    ids = tokenizer("Hello, world").input_ids
    expected = ["H", "el", "lo", ",", "␣world"]
    for given_ids in (ids, tuple(ids), np.array(ids), torch.tensor(ids), iter(ids)):
        assert token_labels(tokenizer, given_ids) == expected
    assert token_labels(tokenizer, []) == []
    for wrong in (torch.tensor([ids]), [-100], [0.5], "ab"):
        with pytest.raises(InputError):
            token_labels(tokenizer, wrong)


def test_labels_are_escaped_exactly_once(tokenizer):
    text = '<b>&amp; "it\'s"</b></s>'
    ids = tokenizer(text).input_ids
    plain, labels = printable_tokens(tokenizer, ids), token_labels(tokenizer, ids)
    assert "".join(plain).replace("␣", " ") == text
    assert [html.unescape(label) for label in labels] == plain
    assert not re.search(r"[<>\"']|&(?!lt;|gt;|amp;|#\w+;)", "".join(labels))
    assert labels[-1] == "&lt;/s&gt;"


def test_special_and_missing_ids_have_labels(tokenizer):
    assert printable_tokens(tokenizer, [0, 1, 2, 3]) == ["<unk>", "<s>", "</s>", "<pad>"]
    assert printable_tokens(tokenizer, [250_700]) == ["⟨id 250700⟩"]


def test_nothing_is_invisible():
    assert spell(b" a b\n\tc") == ["␣a␣b↵⇥c"]
    assert spell(b"\0\r\x7f") == ["␀␍␡"]
    assert spell("\u200d\u202e\u00a0\u3000".encode()) == ["⟨U+200D⟩⟨U+202E⟩⟨U+00A0⟩⟨U+3000⟩"]


def test_pieces_of_a_character_show_it_with_their_number():
    first, second, third = (bytes([byte]) for byte in "語".encode())
    assert spell(first, second, third) == ["語¹⁄³", "語²⁄³", "語³⁄³"]
    assert spell(b"a" + first + second, third + b"b") == ["a語¹⁄²", "語²⁄²b"]
    assert spell(first, second) == ["⟨e8⟩", "⟨aa⟩"]
    assert spell(first, None, second + third) == ["⟨e8⟩", "⟨id 1⟩", "⟨aa⟩⟨9e⟩"]
    assert spell(*(bytes([byte]) for byte in "👨".encode())) == ["👨¹⁄⁴", "👨²⁄⁴", "👨³⁄⁴", "👨⁴⁄⁴"]


def test_a_combining_mark_without_its_base_sits_on_a_circle(tokenizer):
    assert spell("é".encode(), "e\u0301\u0323".encode(), "\u0301\u0323x".encode()) == [
        "é",
        "e\u0301\u0323",
        "◌\u0301\u0323x",
    ]
    assert printable_tokens(tokenizer, tokenizer("नमस्ते").input_ids)[-1] == "◌े"
    assert spell(" \u0301".encode()) == ["␣◌\u0301"]


def test_right_to_left_labels_are_isolated_and_others_are_not():
    assert spell(" سلام".encode(), "שלום".encode(), b"abc 12") == [
        "\u2068␣سلام\u2069",
        "\u2068שלום\u2069",
        "abc␣12",
    ]


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=12))
def test_every_text_has_one_label_per_token_with_ink(tokenizer, text):
    ids = tokenizer(text).input_ids
    labels = printable_tokens(tokenizer, ids)
    assert len(labels) == len(ids)
    assert all(label.strip() for label in labels)
    if text.isascii() and text.isprintable():
        assert "".join(labels).replace("␣", " ") == text


@pytest.mark.parametrize("text", ["語👨é", "a b\n", "سلام"])
def test_labels_serve_other_tokenizers_too(text):
    """Tokens outside the byte alphabet, such as sentencepiece's, are read as text."""
    other = SimpleNamespace(convert_ids_to_tokens=lambda ids: ["▁" + text for _ in ids])
    (label,) = printable_tokens(other, [7])
    assert re.sub("[\u2068\u2069]", "", label) == "▁" + text.replace(" ", "␣").replace("\n", "↵")


def test_added_tokens_are_read_as_text(tokenizer):
    grown = BloomTokenizer(tokenizer_object=tokenizer.backend_tokenizer)
    grown.add_tokens(["é ü"])  # é and ü are letters of the byte alphabet too
    assert printable_tokens(grown, grown("aé üb").input_ids) == ["a", "é␣ü", "b"]
