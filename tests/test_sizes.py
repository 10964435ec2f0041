import pytest
import torch
import transformers

from bloomlab import sizes as sizes_module
from bloomlab.errors import BloomlabError
from bloomlab.sizes import USABLE, Need, Sizes, fit_lines, need, readable, sizes_of

# name: hidden, layers, heads, parameters, 16-bit KV bytes per token. The published models.
PUBLISHED = {
    "560m": (1024, 24, 16, 559_214_592, 98_304),
    "1b1": (1536, 24, 16, 1_065_314_304, 147_456),
    "1b7": (2048, 24, 16, 1_722_408_960, 196_608),
    "3b": (2560, 30, 32, 3_002_557_440, 307_200),
    "7b1": (4096, 30, 32, 7_069_016_064, 491_520),
    "176b": (14336, 70, 112, 176_247_271_424, 4_014_080),
}


def published(name):
    hidden, layers, heads, *_ = PUBLISHED[name]
    return Sizes(hidden_size=hidden, n_layer=layers, n_head=heads, vocab_size=250880)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_cache_of_the_published_models(name):
    *_, parameters, cache = PUBLISHED[name]
    sizes = published(name)
    assert sizes.parameters == parameters
    assert need(sizes, "bfloat16", tokens=1).cache == cache
    assert need(sizes, "float16", tokens=2048).weights == 2 * parameters
    assert need(sizes, "float32", tokens=7).total == 4 * parameters + 7 * 2 * cache


def test_the_published_shapes_are_those_of_the_table():
    assert {name: published(name) for name in PUBLISHED} == sizes_module.PUBLISHED


def test_head_widths_of_the_published_models():
    assert [published(name).d_head for name in PUBLISHED] == [64, 96, 128, 80, 128, 128]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("layers", "heads", "width", "vocab"), [(1, 3, 12, 50), (3, 4, 32, 97)])
def test_formula_equals_the_count_of_transformers(tied, layers, heads, width, vocab):
    config = transformers.BloomConfig(
        n_layer=layers, n_head=heads, hidden_size=width, vocab_size=vocab, tie_word_embeddings=tied
    )
    with torch.device("meta"):
        model = transformers.BloomForCausalLM(config)
    model.tie_weights()
    assert sizes_of(config).parameters == sum(p.numel() for p in model.parameters())


def test_cache_bytes_equal_those_of_a_real_cache():
    config = transformers.BloomConfig(n_layer=2, n_head=3, hidden_size=12, vocab_size=50)
    model = transformers.BloomModel(config).eval()
    with torch.no_grad():
        past = model(torch.arange(5)[None], use_cache=True).past_key_values
    held = sum(x.nbytes for layer in past.layers for x in (layer.keys, layer.values))
    assert need(sizes_of(config), "float32", tokens=5).cache == held


def test_a_tenth_of_the_memory_stays_free():
    assert USABLE == 0.9
    assert Need(weights=80, cache=10).fits(100)
    assert not Need(weights=81, cache=10).fits(100)
    assert Need(weights=0, cache=0).fits(0)


def test_counted_parameters_take_the_place_of_the_formula():
    assert need(published("560m"), "float32", tokens=0, parameters=10).weights == 40


def test_fit_lines_show_the_arithmetic():
    lines = fit_lines(published("560m"), {"RAM": 2 * 10**9, "GPU 0 (small)": 0}, tokens=2048)
    assert lines[0] == "RAM: 2.00 GB free, 90% of it is 1.80 GB"
    assert lines[1] == "  no   float32           2.24 GB + 403 MB = 2.64 GB > 1.80 GB"
    assert lines[2] == "  yes  bfloat16, float16 1.12 GB + 201 MB = 1.32 GB <= 1.80 GB"
    assert lines[3] == "GPU 0 (small): 0 B free, 90% of it is 0 B"
    assert [line.split()[0] for line in lines[4:]] == ["no", "no"]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (98_304, "98.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (1_118_429_184, "1.12 GB"),
        (352_494_542_848, "352 GB"),
        (42 * 10**14, "4,200.00 TB"),
    ],
)
def test_bytes_are_readable(count, text):
    assert readable(count) == text


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_head": 7}, "hidden_size 1024 is not divisible by n_head 7"),
        ({"n_layer": 0}, "n_layer is 0"),
        ({"vocab_size": -1}, "vocab_size is -1"),
    ],
)
def test_a_shape_of_no_bloom_is_refused(wrong, message):
    right = {"hidden_size": 1024, "n_layer": 24, "n_head": 16, "vocab_size": 250880}
    with pytest.raises(BloomlabError, match=message):
        Sizes(**(right | wrong))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"dtype": "int3"}, "expected one of float64"), ({"tokens": -1}, "tokens is -1")],
)
def test_a_need_that_means_nothing_is_refused(wrong, message):
    with pytest.raises(BloomlabError, match=message):
        need(published("560m"), **({"dtype": "float32", "tokens": 1} | wrong))
