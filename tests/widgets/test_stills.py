import io

import numpy as np
import pytest
import torch
from PIL import Image

from bloomlab.widgets import stills
from tests.widgets.asking import NAMES, TEXTS, make

WIDGET, PNG = "application/vnd.jupyter.widget-view+json", "image/png"
NAN = np.full((3, 4), np.nan)


def opened(data):
    picture = Image.open(io.BytesIO(data))
    picture.load()
    assert picture.format == "PNG"
    return picture


@pytest.mark.parametrize("text", ["".join(TEXTS.values()), "one two three " * 200])
def test_a_view_shows_itself_live_and_as_a_small_picture(text, session):
    session.prompt = text
    for name in NAMES:
        bundle, _ = make(name, session)._repr_mimebundle_()
        assert bundle[WIDGET]["model_id"]
        assert opened(bundle[PNG]).width == stills.WIDTH
        assert len(bundle[PNG]) < 60_000


@pytest.mark.parametrize("name", NAMES)
def test_a_view_of_no_text_is_live(name, session):
    session.prompt = ""
    bundle, _ = make(name, session)._repr_mimebundle_()
    assert WIDGET in bundle
    assert (PNG in bundle) == (name in ("AlibiView", "PruningBoard"))  # they show no token


@pytest.mark.parametrize("name", NAMES)
def test_a_view_of_a_shorter_text_forgets_the_chosen_token(name, session):
    view = make(name, session)
    session.selection.query = len(session.run("clean")) - 1
    session.prompt = "the cat"
    assert PNG in view._repr_mimebundle_()[0]


def test_a_model_of_broken_weights_can_be_shown(broken):
    with torch.no_grad():
        broken.model.embed.weight.fill_(torch.nan)
    for name in NAMES:
        opened(make(name, broken)._repr_mimebundle_()[0][PNG])


@pytest.mark.parametrize("shape", [(24, 16, 48, 48), (6, 8, 11, 11), (1, 1, 1, 1), (2, 2, 9, 9)])
def test_a_mosaic_fits_any_model(shape):
    tiles = np.tril(np.random.default_rng(0).random(shape) ** 4)
    data = stills.mosaic(tiles, title="title")
    assert opened(data).width == stills.WIDTH
    assert len(data) <= stills.LARGEST


def test_larger_numbers_are_darker():
    picture = opened(stills.matrix(np.array([[0.0, 0.3, 1.0]]), title="")).convert("L")
    y = picture.height - stills.EDGE - 5
    shades = [picture.getpixel((stills.EDGE + 24 * i + 12, y)) for i in range(3)]
    assert shades == sorted(shades, reverse=True)
    assert shades[0] == 255
    assert shades[2] < 60


def test_more_words_take_more_lines():
    heights = [opened(stills.words(["word"] * n, np.ones(n))).height for n in (1, 10, 100)]
    assert heights[0] == heights[1] < heights[2]


def test_numbers_that_are_none_are_drawn_as_nothing():
    for data in (
        stills.matrix(NAN, title="t"),
        stills.curves(NAN, title="t"),
        stills.curves(np.zeros((1, 1)), title="t"),
        stills.bars(["a", "b"], [np.nan, 0.5], [0.1, np.nan], title="t"),
        stills.words(["a", "b"], np.array([np.nan, 1])),
        stills.table([["a", "b"]], np.array([[np.nan, 1]]), ["x", "y"]),
        stills.words([], np.zeros(0)),
    ):
        opened(data)
