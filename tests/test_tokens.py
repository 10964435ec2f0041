import pickle
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, DataCollatorWithPadding

from bloomlab import tokens
from bloomlab.errors import BloomlabError, InputError, TokenizerError, UnknownArgumentError
from bloomlab.tokens import BloomTokenizer

DEMO = Path(tokens.__file__).parent / "demo" / "checkpoint"
TEXTS = [
    "Hello world",
    "Hello, world. (yes) | no!",
    "def f(x):\n\treturn x  # sum\n",
    "今天天气很好，我们去公园。",
    "नमस्ते दुनिया। कैसे हैं?",
    "اردو متن، سلام دنیا۔",
    "emoji 👨‍👩‍👧 🇪🇺 e\u0301 \u00a0 \x00",
    "The quick brown fox</s>jumps <pad>",
    " ",
]


@pytest.fixture(scope="module")
def tokenizer():
    return BloomTokenizer.from_pretrained(DEMO)


@pytest.fixture(scope="module")
def spaced():
    return BloomTokenizer.from_pretrained(DEMO, add_prefix_space=True)


@pytest.fixture(scope="module")
def hf():
    return AutoTokenizer.from_pretrained(DEMO)


@pytest.fixture
def dialled(monkeypatch):
    calls = []

    def getaddrinfo(*address, **_):
        calls.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return calls


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_transformers_and_tokenizers(tokenizer, hf, text):
    ids = tokenizer(text).input_ids
    assert ids == hf(text).input_ids
    assert ids == Tokenizer.from_file(str(DEMO / "tokenizer.json")).encode(text).ids
    assert tokenizer.decode(ids) == text


def test_defaults_are_those_of_4_56(tokenizer):
    bare = BloomTokenizer(tokenizer_file=DEMO / "tokenizer.json")
    for tok in (tokenizer, bare):
        assert tok.all_special_tokens == ["<s>", "</s>", "<unk>", "<pad>"]
        assert (tok.unk_token_id, tok.bos_token_id, tok.eos_token_id, tok.pad_token_id) == (
            0,
            1,
            2,
            3,
        )
        assert tok.padding_side == "left"
        assert tok.model_input_names == ["input_ids", "attention_mask"]
        assert list(tok("ab")) == ["input_ids", "attention_mask"]
    assert bare.model_max_length > 1e29
    assert tokens.BloomTokenizerFast is BloomTokenizer
    assert BloomTokenizer.from_pretrained(DEMO, padding_side="right").padding_side == "right"


def test_padding_equals_transformers_and_serves_the_collator(tokenizer, hf):
    texts = ["a longer text here", "short"]
    ours = tokenizer(texts, padding=True, return_tensors="pt")
    theirs = hf(texts, padding=True, return_tensors="pt")
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert torch.equal(ours.attention_mask, theirs.attention_mask)
    assert ours.input_ids[1, 0] == tokenizer.pad_token_id
    batch = DataCollatorWithPadding(tokenizer)([tokenizer(text) for text in texts])
    assert torch.equal(batch["input_ids"], ours.input_ids)


@pytest.mark.parametrize("text", [*TEXTS[:-1], "\n(first", ""])
def test_prefix_space_gives_the_ids_of_the_text_after_a_space(spaced, hf, text):
    assert spaced(text).input_ids == (hf(" " + text).input_ids if text else [])


@pytest.mark.parametrize("text", [" already", "  twice", " "])
def test_prefix_space_is_not_doubled(spaced, hf, text):
    assert spaced(text).input_ids == hf(text).input_ids


def test_prefix_space_with_a_byte_level_alone(hf):
    backend = Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spaced = BloomTokenizer(tokenizer_object=backend, add_prefix_space=True)
    assert spaced("Hello, world").input_ids == backend.encode(" Hello, world").ids
    assert not backend.pre_tokenizer.add_prefix_space  # the caller's object is untouched


@pytest.mark.parametrize("prefix", [False, True])
def test_saved_folder_gives_the_same_ids_here_and_in_transformers(tmp_path, prefix):
    saved = BloomTokenizer.from_pretrained(DEMO, add_prefix_space=prefix)
    saved.save_pretrained(tmp_path)
    again, plain = BloomTokenizer.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert again.add_prefix_space is prefix
    for text in TEXTS:
        assert again(text).input_ids == plain(text).input_ids == saved(text).input_ids
    off = BloomTokenizer.from_pretrained(tmp_path, add_prefix_space=False)
    assert (
        off("Hello, world").input_ids
        == BloomTokenizer.from_pretrained(DEMO)("Hello, world").input_ids
    )
    (tmp_path / "tokenizer_config.json").unlink()
    assert BloomTokenizer.from_pretrained(tmp_path).add_prefix_space is prefix


def test_a_prefix_space_written_by_4_56_is_kept_until_turned_off(tmp_path, tokenizer):
    shutil.copy(DEMO / "tokenizer_config.json", tmp_path)
    old = (DEMO / "tokenizer.json").read_text("utf-8")
    old = re.sub(r'("ByteLevel",\s*"add_prefix_space": ?)false', r"\1true", old)
    (tmp_path / "tokenizer.json").write_text(old, "utf-8")
    kept = BloomTokenizer.from_pretrained(tmp_path, add_prefix_space=True)
    off = BloomTokenizer.from_pretrained(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert kept(text).input_ids == theirs(text).input_ids
        assert off(text).input_ids == tokenizer(text).input_ids
    assert theirs("a,b").input_ids != tokenizer("a,b").input_ids


def test_words_are_read_as_words_after_a_space(spaced, hf):
    words = ["Hello", "don't", "U.S.", "नमस्ते", ","]
    joined = [hf(" " + word).input_ids for word in words]
    encoding = spaced(words, is_split_into_words=True)
    assert encoding.input_ids == [number for ids in joined for number in ids]
    assert encoding.word_ids() == [w for w, ids in enumerate(joined) for _ in ids]


def test_words_without_prefix_space_raise_and_say_what_to_do(tokenizer):
    for call in (tokenizer, tokenizer.encode, tokenizer.tokenize):
        with pytest.raises(TokenizerError, match="add_prefix_space=True"):
            call(["Hello", "world"], is_split_into_words=True)


def test_vocab_and_merges_rebuild_the_tokenizer(tmp_path, tokenizer):
    paths = tokenizer.save_vocabulary(tmp_path)
    assert [Path(path).name for path in paths] == ["vocab.json", "merges.txt"]
    for tok in (BloomTokenizer(*paths), BloomTokenizer.from_pretrained(tmp_path)):
        for text in TEXTS:
            assert tok(text).input_ids == tokenizer(text).input_ids
            assert tok.decode(tok(text).input_ids) == text
    prefixed = tokenizer.save_vocabulary(str(tmp_path), "demo")
    assert [Path(path).name for path in prefixed] == ["demo-vocab.json", "demo-merges.txt"]


def test_pickled_and_retrained_tokenizers_stay_ours(spaced):
    assert pickle.loads(pickle.dumps(spaced))("a, b").input_ids == spaced("a, b").input_ids
    retrained = spaced.train_new_from_iterator(["hello, hello"], 300, show_progress=False)
    assert isinstance(retrained, BloomTokenizer)
    assert retrained.decode(retrained("hello").input_ids) == " hello"


@pytest.mark.parametrize("text", TEXTS)
def test_offsets_cut_the_text_where_the_tokens_do(tokenizer, text):
    encoding = tokenizer(text, return_offsets_mapping=True)
    groups = []  # tokens that share a character share a group
    for number, (start, end) in zip(encoding.input_ids, encoding.offset_mapping, strict=True):
        if groups and start < groups[-1][1]:
            groups[-1][1] = max(end, groups[-1][1])
            groups[-1][2].append(number)
        else:
            groups.append([start, end, [number]])
    for start, end, ids in groups:
        assert tokenizer.decode(ids) == text[start:end]
    assert "".join(text[start:end] for start, end, _ in groups) == text


def test_a_folder_never_asks_the_network(tmp_path, monkeypatch, dialled):
    words = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3} | {f"w{n}": n + 4 for n in range(100_001)}
    big = Tokenizer(models.BPE(vocab=words, merges=[]))
    big.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    monkeypatch.chdir(tmp_path)
    folder = Path("looks-like", "a-hub-id")
    BloomTokenizer(tokenizer_object=big).save_pretrained(folder)
    BloomTokenizer.from_pretrained(folder)
    monkeypatch.chdir(folder.parent)
    BloomTokenizer.from_pretrained(folder.name + "/tokenizer.json")
    monkeypatch.chdir(tmp_path)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json.*Expected tokenizer\.json"):
        BloomTokenizer.from_pretrained(folder)
    with pytest.raises(TokenizerError, match="no folder"):
        BloomTokenizer.from_pretrained(tmp_path / "missing")
    assert not dialled


def test_a_hub_id_is_read_from_the_cache(tmp_path, tokenizer, dialled):
    repo = tmp_path / "models--nobody--bloom"
    hidden = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(DEMO, repo / "snapshots" / "abc", ignore=hidden)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc")
    cached = BloomTokenizer.from_pretrained("nobody/bloom", cache_dir=tmp_path)
    assert cached.name_or_path == "nobody/bloom"
    assert cached("Hello, world").input_ids == tokenizer("Hello, world").input_ids
    assert dialled


def test_a_hub_id_out_of_reach_says_what_to_do(tmp_path, dialled):
    for local_only in (True, False):
        with pytest.raises(TokenizerError, match="download the model and give its folder"):
            BloomTokenizer.from_pretrained(
                "nobody/no-bloom", cache_dir=tmp_path, local_files_only=local_only
            )


@pytest.mark.parametrize(
    "content", ["", "{", "{}", "[]", "version https://git-lfs", b"\xff\xfe", "cut"]
)
def test_a_corrupt_tokenizer_json_is_named(tmp_path, content):
    shutil.copy(DEMO / "tokenizer_config.json", tmp_path)
    whole = (DEMO / "tokenizer.json").read_bytes()
    content = whole[: len(whole) // 2] if content == "cut" else content
    data = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "tokenizer.json").write_bytes(data)
    for load in (
        BloomTokenizer.from_pretrained,
        lambda f: BloomTokenizer(None, None, f / "tokenizer.json"),
    ):
        with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
            load(tmp_path)


def test_bad_arguments_raise_our_errors(tokenizer, tmp_path):
    for text in (5, 2.5, b"bytes", ["a", 3], [["a"], [None]], [], "\ud800"):
        with pytest.raises(InputError):
            tokenizer(text)
    with pytest.raises(UnknownArgumentError, match="return_tensors"):
        tokenizer("a", return_tensor="pt")
    with pytest.raises(TokenizerError, match="vocab_file"):
        BloomTokenizer(vocab_file="vocab.json")
    with pytest.raises(TokenizerError, match="folder"):
        tokenizer.save_vocabulary(tmp_path / "missing")
    with pytest.raises(BloomlabError, match="side"):
        BloomTokenizer.from_pretrained(DEMO, padding_side="up")
    assert tokenizer("").input_ids == []


def test_ids_no_token_has_decode_to_nothing(tokenizer, hf):
    assert tokenizer.decode([5, len(tokenizer), 250_700, 6]) == hf.decode([5, 6])
    assert tokenizer.decode(torch.tensor([[5, 6], [7, 3]])) == [
        hf.decode([5, 6]),
        hf.decode([7, 3]),
    ]
    assert tokenizer.convert_ids_to_tokens([5, 250_700]) == [hf.convert_ids_to_tokens(5), None]


@pytest.mark.parametrize("ids", [[-1], [1.0], [True], ["a"], "ab", None, [2**32], [1, [2]]])
def test_what_is_no_id_raises(tokenizer, ids):
    for reader in (tokenizer.decode, tokenizer.convert_ids_to_tokens):
        with pytest.raises(InputError):
            reader(ids)


def test_importing_tokens_does_not_import_torch():
    code = "import sys, bloomlab.tokens; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=DEMO.parents[2]).returncode == 0
