"""Static pictures: what a saved notebook shows where nothing is live. PNG, on white."""

import io
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

STOPS = ("#ffffff", "#c3d4fb", "#6f94ee", "#5b47c4", "#54158c", "#2a0533")
INK, SOFT = "#222222", "#888888"
BEFORE, AFTER = "#7a7a85", "#b8430a"
WIDTH, LINE, EDGE = 760, 18, 10  # px
PALETTES, LARGEST = (64, 16, 4), 150_000  # fewer colours where a picture takes more bytes
FONTS = ("DejaVuSans.ttf", "NotoSans-Regular.ttf", "Arial.ttf")  # the first has ␣ and ↵


def mosaic(tiles: Float[np.ndarray, "layer head row column"], *, title: str) -> bytes:
    """All heads, layers down and heads across, white lines between."""
    n_layer, n_head, n, _ = tiles.shape
    step = max(1, n * n_head // (WIDTH - 2 * EDGE))  # so that the widest grids still fit
    small = tiles[:, :, ::step, ::step] if step > 1 else tiles
    gapped = np.pad(small, ((0, 0), (0, 0), (0, 1), (0, 1)))
    side = gapped.shape[-1]
    flat = gapped.transpose(0, 2, 1, 3).reshape(n_layer * side, n_head * side)
    return matrix(flat, title=title)


def matrix(values: Float[np.ndarray, "row column"], *, title: str) -> bytes:
    """Numbers 0 to 1 as colours, square roots for small ones."""
    rows, columns = values.shape
    picture = Image.fromarray(_colors(values))
    scale = (WIDTH - 2 * EDGE) / columns
    fit = max(1, int(scale)) if scale >= 1 else scale
    size = (max(1, round(columns * min(fit, 24))), max(1, round(rows * min(fit, 24))))
    picture = picture.resize(size, Image.Resampling.NEAREST)
    sheet, draw = _sheet(size[1] + LINE + 2 * EDGE)
    draw.text((EDGE, EDGE // 2), title[:110], fill=INK, font=_font())
    sheet.paste(picture, (EDGE, EDGE + LINE))
    return _png(sheet)


def bars(
    labels: Sequence[str], before: Sequence[float], after: Sequence[float], *, title: str
) -> bytes:
    """Pairs of bars, before and after."""
    top = max(value for value in (*before, *after, 1e-9) if math.isfinite(value))
    sheet, draw = _sheet(2 * EDGE + LINE * (1 + len(labels)))
    draw.text((EDGE, EDGE // 2), title[:110], fill=INK, font=_font())
    for i, (label, *pair) in enumerate(zip(labels, before, after, strict=True)):
        y = EDGE + LINE * (i + 1)
        draw.text((EDGE, y), label[:18], fill=INK, font=_font())
        for k, (value, color) in enumerate(zip(pair, (BEFORE, AFTER), strict=True)):
            across = 140 + (WIDTH - 240) * (value if math.isfinite(value) else 0) / top
            draw.rectangle((140, y + 2 + 7 * k, across, y + 7 + 7 * k), fill=color)
        text = f"{pair[0]:.3f} / {pair[1]:.3f}"
        draw.text((WIDTH - 95, y), text, fill=SOFT, font=_font())
    return _png(sheet)


def words(tokens: Sequence[str], weights: Float[np.ndarray, " token"]) -> bytes:
    """A wrapped text whose tokens are coloured, 0 to 1."""
    font, spots, x, y = _font(), [], EDGE, EDGE
    colors = _colors(np.resize(np.asarray(weights, dtype=float), len(tokens))[None])[0]
    for token, color in zip(tokens, colors, strict=True):
        width = int(font.getlength(token)) + 6
        if x + width > WIDTH - EDGE:
            x, y = EDGE, y + LINE + 4
        spots.append((x, y, width, token, tuple(int(c) for c in color)))
        x += width + 2
    sheet, draw = _sheet(y + LINE + EDGE)
    for left, top, width, token, color in spots:
        draw.rectangle((left, top, left + width, top + LINE), fill=color)
        ink = "#ffffff" if sum(color) < 380 else INK
        draw.text((left + 3, top + 1), token, fill=ink, font=font)
    return _png(sheet)


def table(
    labels: Sequence[Sequence[str]],
    weights: Float[np.ndarray, "row column"],
    names: Sequence[str],
) -> bytes:
    """Words in coloured cells under their column's name."""
    cell = (WIDTH - 2 * EDGE) // max(1, len(names))
    sheet, draw = _sheet(2 * EDGE + LINE * (1 + len(labels)))
    colors, font = _colors(weights), _font()
    for column, name in enumerate(names):
        draw.text((EDGE + column * cell, EDGE // 2), name[:8], fill=INK, font=font)
    for row, line in enumerate(labels):
        for column, label in enumerate(line):
            left, top = EDGE + column * cell, EDGE + LINE * (row + 1)
            color = tuple(int(c) for c in colors[row, column])
            draw.rectangle((left, top, left + cell - 2, top + LINE - 2), fill=color)
            ink = "#ffffff" if sum(color) < 380 else INK
            draw.text((left + 2, top), label[:8], fill=ink, font=font)
    return _png(sheet)


def curves(values: Float[np.ndarray, "line point"], *, title: str) -> bytes:
    """Lines over their index, one scale."""
    height = 240
    sheet, draw = _sheet(height + LINE + 2 * EDGE)
    draw.text((EDGE, EDGE // 2), title[:110], fill=INK, font=_font())
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    n = values.shape[1]
    for i, line in enumerate(values):
        color = tuple(int(c) for c in _colors(np.array([[0.1 + 0.5 * i / len(values)]]))[0, 0])
        x = EDGE + np.arange(n) / max(1, n - 1) * (WIDTH - 2 * EDGE - 60)
        y = EDGE + LINE + (high - np.nan_to_num(line, nan=low)) / ((high - low) or 1.0) * height
        draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=color, width=2)
    draw.text((WIDTH - 62, EDGE + LINE), f"{high:.3g}", fill=SOFT, font=_font())
    draw.text((WIDTH - 62, EDGE + LINE + height - 14), f"{low:.3g}", fill=SOFT, font=_font())
    return _png(sheet)


def _colors(values: np.ndarray) -> np.ndarray:
    share = np.sqrt(np.clip(np.nan_to_num(values), 0, 1)) * 0.9
    at = np.linspace(0, 1, len(STOPS))
    channels = [[int(stop[i : i + 2], 16) for stop in STOPS] for i in (1, 3, 5)]
    return np.stack([np.interp(share, at, c) for c in channels], -1).astype(np.uint8)


def _sheet(height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (WIDTH, height), "white")
    return sheet, ImageDraw.Draw(sheet)


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, 12)
        except OSError:
            continue
    return ImageFont.load_default(12)


def _png(sheet: Image.Image) -> bytes:
    data = b""
    for colors in PALETTES:
        out = io.BytesIO()
        sheet.quantize(colors).save(out, "PNG", optimize=True)
        data = out.getvalue()
        if len(data) <= LARGEST:
            break
    return data
