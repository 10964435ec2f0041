import itertools
import re

import numpy as np
import pytest

from bloomlab.plots import theme

WHITE, BLACK = (255, 255, 255), (0x11, 0x11, 0x11)


def channels(color):
    if color.startswith("#"):
        return [int(color[i : i + 2], 16) for i in (1, 3, 5)], 1.0
    *rgb, alpha = map(float, re.findall(r"[\d.]+", color))
    return rgb, alpha


def luminance(rgb):
    """WCAG 2.2, relative luminance."""
    parts = [c / 255 for c in rgb]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return np.dot(linear, (0.2126, 0.7152, 0.0722))


def contrast(color, page):
    rgb, alpha = channels(color)
    seen = luminance([alpha * c + (1 - alpha) * p for c, p in zip(rgb, page, strict=True)])
    low, high = sorted((seen, luminance(page)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("page", [WHITE, BLACK])
@pytest.mark.parametrize("color", [theme.INK, theme.BASELINE, theme.ACCENT, *theme.line_colors(31)])
def test_opaque_colours_are_seen_on_light_and_on_dark(color, page):
    assert contrast(color, page) > 4.1


def test_no_grey_is_clearer_on_the_worse_page_than_the_ink():
    worse = [
        min(contrast(f"#{g:02x}{g:02x}{g:02x}", p) for p in (WHITE, BLACK)) for g in range(256)
    ]
    assert min(contrast(theme.INK, WHITE), contrast(theme.INK, BLACK)) == max(worse)


@pytest.mark.parametrize("page", [WHITE, BLACK])
@pytest.mark.parametrize(
    "scale", [theme.SEQUENTIAL, theme.SQUARE_ROOT, theme.TINT, theme.DIVERGING[33:]]
)
def test_a_larger_value_stands_out_more_on_light_and_on_dark(scale, page):
    seen = [contrast(color, page) for _, color in scale]
    assert all(a < b for a, b in itertools.pairwise(seen))


@pytest.mark.parametrize("page", [WHITE, BLACK])
def test_an_attention_weight_of_one_percent_differs_from_none(page):
    stops = dict(theme.SQUARE_ROOT)
    small = max(at for at in stops if at <= 0.01)
    assert contrast(stops[small], page) / contrast(stops[0.0], page) > 1.02


def test_differences_of_opposite_sign_are_equally_strong():
    left, right = theme.DIVERGING[:33], theme.DIVERGING[:32:-1]
    assert [at for at, _ in left] == pytest.approx([1 - at for at, _ in right])
    assert [channels(c)[1] for _, c in left] == [channels(c)[1] for _, c in right]
    assert channels(left[0][1])[0] != channels(right[0][1])[0]


def test_the_page_shines_through():
    layout = theme.TEMPLATE.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"


def test_no_button_sends_the_chart_away():
    assert "sendChartToCloud" in theme.TEMPLATE.layout.modebar.remove


def test_no_difference_has_neither_colour():
    (left, right) = (color for at, color in theme.DIVERGING if at == 0.5)
    assert left == right
    assert len(set(channels(left)[0])) == 1  # grey


@pytest.mark.parametrize(("page", "least"), [(WHITE, 2.7), (BLACK, 3.0)])
def test_text_in_tinted_cells_is_seen(page, least):
    for _, color in theme.TINT:
        rgb, alpha = channels(color)
        cell = [alpha * c + (1 - alpha) * p for c, p in zip(rgb, page, strict=True)]
        assert contrast(theme.INK, cell) > least
        if page == WHITE:
            assert contrast(theme.PAPER_INK, cell) > 4.5
