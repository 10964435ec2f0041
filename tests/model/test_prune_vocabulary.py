"""Fewer tokens: the same pieces, the same logits for what is kept, and every text readable."""

import json

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models

import bloomlab as bl
from bloomlab.errors import InputError, TokenizerError, UnsupportedError
from bloomlab.model.prune import prune_heads
from bloomlab.model.prune_vocabulary import prune_vocabulary
from tests.folders import out
from tests.tiny import CLASSES, distance_in_eps, pair, tokens

TEXTS = [
    "The history of the city begins with a small village on the river.",
    "La maison était grande et l'eau de la rivière montait.",
    "يبدأ تاريخ المدينة بقرية صغيرة.  नदी के किनारे एक गाँव।\n\n\tif x == 1:",
]
OTHERS = [
    "Zürich 東京 🙂 extraordinary",
    "\x00 \ufeff e\u0301  \r\n",
    "<s>x</s> <pad>",
    "thethethe",
]


@pytest.fixture(scope="module")
def pruned(demo):
    return prune_vocabulary(demo, TEXTS)


def old_ids(demo, pruned):
    """What the kept tokens are called in the whole model."""
    names = pruned.tokenizer.convert_ids_to_tokens(list(range(pruned.config.vocab_size)))
    return torch.tensor(demo.tokenizer.convert_tokens_to_ids(names))


@pytest.mark.parametrize("text", TEXTS)
def test_texts_of_kept_tokens_read_as_before(text, demo, pruned):
    before, now, old = demo.to_tokens(text), pruned.to_tokens(text), old_ids(demo, pruned)
    assert torch.equal(old[now], before)
    assert pruned.to_str_tokens(text) == demo.to_str_tokens(text)
    assert pruned.to_string(now[0]) == text
    with torch.no_grad():
        expected = demo(before).logits[..., old]
        torch.testing.assert_close(pruned(now).logits, expected, atol=2e-4, rtol=1e-5)
    assert pruned.config.vocab_size < demo.config.vocab_size / 5
    assert pruned.cfg.d_vocab == len(pruned.tokenizer) == pruned.config.vocab_size


def test_parts_of_texts_and_joined_words_need_nothing_new(demo, pruned):
    old = set(old_ids(demo, pruned).tolist())
    checked = 0
    for text in TEXTS:
        words = text.split(" ")
        for start in range(len(words)):
            for piece in (" ".join(words[start:]), " " + words[start], words[start] * 2):
                before = demo.tokenizer(piece)["input_ids"]
                if piece and set(before) <= old:
                    checked += 1
                    now = pruned.tokenizer(piece)["input_ids"]
                    assert pruned.tokenizer.convert_ids_to_tokens(now) == (
                        demo.tokenizer.convert_ids_to_tokens(before)
                    )
    assert checked > 40


@pytest.mark.parametrize("text", OTHERS)
def test_other_texts_fall_into_smaller_pieces(text, demo, pruned):
    now = pruned.tokenizer(text)["input_ids"]
    assert pruned.tokenizer.decode(now) == demo.tokenizer.decode(demo.tokenizer(text)["input_ids"])
    assert len(now) >= len(demo.tokenizer(text)["input_ids"])
    assert torch.isfinite(pruned(text).logits).all()


@pytest.mark.slow
def test_every_token_kept_on_its_own_is_reached(demo):
    """Merges of any token alone, against the library's own answer with all merges."""
    names = demo.tokenizer.convert_ids_to_tokens(list(range(300, demo.config.vocab_size, 41)))
    for start in range(0, len(names), 40):
        some = names[start : start + 40]
        ids = demo.tokenizer.convert_tokens_to_ids(some)
        small = prune_vocabulary(demo, ids).tokenizer
        for text in map(demo.tokenizer.convert_tokens_to_string, ([name] for name in some)):
            before = demo.tokenizer.tokenize(text)
            if set(before) <= set(some):
                assert small.tokenize(text) == before


def test_special_tokens_get_their_new_ids_everywhere(demo, pruned):
    whole, small = demo.tokenizer, pruned.tokenizer
    assert small.all_special_tokens == whole.all_special_tokens
    assert pruned.config.eos_token_id == small.eos_token_id
    assert pruned.config.pad_token_id == small.pad_token_id
    assert small.convert_ids_to_tokens(pruned.config.bos_token_id) == "<s>"
    assert whole.eos_token_id == demo.config.eos_token_id  # the given ones are as they were
    assert small.padding_side == "left"
    ids, mask = pruned.to_tokens_and_mask(TEXTS)
    assert (ids[mask == 0] == small.pad_token_id).all()
    with torch.no_grad():
        together = pruned(TEXTS, return_type="logits")[:, -1]
        alone = torch.cat([pruned(text, return_type="logits")[:, -1] for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=1e-4)


def test_it_is_saved_with_its_tokenizer(pruned, tmp_path):
    both = prune_heads(pruned, {0: [0]})
    pruned.save_pretrained(tmp_path / "a")
    both.save_pretrained(tmp_path / "b")
    for folder, model in (("a", pruned), ("b", both)):
        loaded = bl.load(tmp_path / folder, device="cpu")
        assert torch.equal(loaded.to_tokens(TEXTS), model.to_tokens(TEXTS))
        assert torch.equal(loaded(TEXTS[0]).logits, model(TEXTS[0]).logits)
    stock = transformers.BloomForCausalLM.from_pretrained(tmp_path / "a", dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "a")
    ids = tokenizer(TEXTS[0], return_tensors="pt")["input_ids"]
    assert torch.equal(ids, pruned.to_tokens(TEXTS[0]))
    with torch.no_grad():
        assert distance_in_eps(pruned(ids).logits, stock(ids).logits) < 200


def test_it_generates_words_that_decode(pruned):
    said = pruned.generate(TEXTS[0], max_new_tokens=8)
    assert pruned.to_string(said)[0].startswith(TEXTS[0])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", CLASSES)
def test_without_a_tokenizer_ids_and_special_ids_stay(kind, tied):
    _, ours = pair(kind, tie_word_embeddings=tied)
    ids = tokens(2, 9)
    pruned = prune_vocabulary(ours, ids)
    kept = sorted({1, 2, 3, *ids.flatten().tolist()})
    assert pruned.config.vocab_size == len(kept)
    assert (pruned.config.bos_token_id, pruned.config.pad_token_id) == (0, 2)
    place = {number: i for i, number in enumerate(kept)}
    with torch.no_grad():
        got = pruned(ids.clone().apply_(place.get), return_type="logits")
        expected = ours(ids, return_type="logits")
    if kind == "BloomForCausalLM":
        expected = expected[..., kept]
    assert distance_in_eps(got, expected) < 200
    assert torch.equal(out(ours), out(pair(kind, tie_word_embeddings=tied)[1]))


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ([], "keep is empty"),
        ([0.5], "expected texts or token ids"),
        (["a", 3], "expected texts or token ids"),
        (None, "expected texts or token ids"),
        ([99999], "no token 99999: ids run to"),
        ([-1], "no token -1"),
    ],
)
def test_mistakes_are_told(keep, says, demo):
    with pytest.raises(InputError, match=says):
        prune_vocabulary(demo, keep)


def test_text_needs_a_tokenizer_and_of_a_known_kind(demo):
    _, ours = pair()
    with pytest.raises(TokenizerError, match="no tokenizer"):
        prune_vocabulary(ours, "text")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    ours.tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words)
    with pytest.raises(UnsupportedError, match="a WordLevel tokenizer"):
        prune_vocabulary(ours, [1])


def test_merges_are_a_part_of_those_there_were_in_their_order(demo, pruned):
    read = [json.loads(m.tokenizer.backend_tokenizer.to_str())["model"] for m in (demo, pruned)]
    merges = [["\n".join(pair) for pair in one["merges"]] for one in read]
    places = [merges[0].index(pair) for pair in merges[1]]
    assert places == sorted(places)
    assert len(places) < len(merges[0]) / 5
