import re
import shutil
import struct
import sys
from importlib.util import find_spec

import pytest

from bloomlab.errors import InputError, UnsupportedError
from bloomlab.plots import lens_figure, save_figure, theme
from bloomlab.plots.export import on_paper
from tests.plots.test_theme import WHITE, channels, contrast

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
needs_browser = pytest.mark.skipif(
    find_spec("kaleido") is None or not any(map(shutil.which, BROWSERS)),
    reason="pictures need the extra 'export' and a Chrome or Chromium",
)


@pytest.fixture
def figure():
    return lens_figure([[0.25, 0.5]], [["x", "<y>"]], tokens=["a", "b"], title="lens")


def test_a_page_is_whole(figure, tmp_path):
    path = save_figure(figure, tmp_path / "lens.html")
    assert path == tmp_path / "lens.html"
    text = path.read_text("utf-8")
    assert not re.search(r"<(script|link)[^>]*(src|href)=", text)
    assert len(text) > 1_000_000  # plotly.js is in it
    assert "likeliest token" in text


@needs_browser
@pytest.mark.parametrize("scale", [1, 2.0])
def test_a_png_has_the_size_of_the_figure_times_the_scale(figure, tmp_path, scale):
    data = save_figure(figure, str(tmp_path / "lens.PNG"), scale=scale).read_bytes()
    assert data.startswith(b"\x89PNG")
    size = struct.unpack(">II", data[16:24])  # width and height, of the first chunk
    assert size == (figure.layout.width * scale, figure.layout.height * scale)


@needs_browser
def test_an_svg_is_on_white_with_dark_text(figure, tmp_path):
    text = save_figure(figure, tmp_path / "lens.svg").read_text("utf-8")
    assert text.startswith("<svg")
    assert "fill: rgb(255, 255, 255)" in text
    assert f'width="{figure.layout.width}"' in text
    inks = set(re.findall(r"<text[^>]*fill: (rgb\([^)]*\))", text))
    assert inks == {f"rgb({', '.join(map(str, channels(theme.PAPER_INK)[0]))})"}


@needs_browser
def test_a_pdf_is_a_pdf(figure, tmp_path):
    assert save_figure(figure, tmp_path / "lens.pdf").read_bytes().startswith(b"%PDF")


def test_text_on_paper_is_read_easily():
    assert contrast(theme.PAPER_INK, channels(theme.PAPER)[0]) > 4.5
    assert channels(theme.PAPER)[0] == list(WHITE)
    assert contrast(theme.NODE_INK, channels(theme.NODE)[0]) > 4.5


def test_the_figure_itself_stays_as_it_is(figure):
    before = figure.to_json()
    copy = on_paper(figure)
    assert figure.to_json() == before
    assert copy.layout.paper_bgcolor == theme.PAPER
    assert theme.INK in before
    assert theme.INK not in copy.to_json()
    assert copy.data[0].z == figure.to_dict()["data"][0]["z"]


@pytest.mark.parametrize("name", ["lens.gif", "lens", "lens.svg.gz"])
def test_another_suffix_is_refused(figure, tmp_path, name):
    with pytest.raises(InputError, match=r"\.pdf, \.png, \.svg, \.html"):
        save_figure(figure, tmp_path / name)


def test_wrong_folders_and_scales_are_refused(figure, tmp_path):
    with pytest.raises(InputError, match="no folder"):
        save_figure(figure, tmp_path / "nowhere" / "lens.html")
    with pytest.raises(InputError, match="scale is 0"):
        save_figure(figure, tmp_path / "lens.png", scale=0)
    assert list(tmp_path.iterdir()) == []


def test_without_kaleido_the_error_says_what_to_install(figure, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'bloomlab\[export\]'.*Chromium"):
        save_figure(figure, tmp_path / "lens.svg")


@pytest.mark.skipif(find_spec("kaleido") is None, reason="pictures need the extra 'export'")
def test_without_a_browser_the_error_says_so_too(figure, tmp_path, monkeypatch):
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "none"))
    with pytest.raises(UnsupportedError, match=r"no browser.*Chrome or Chromium"):
        save_figure(figure, tmp_path / "lens.svg")
    assert list(tmp_path.iterdir()) == []
