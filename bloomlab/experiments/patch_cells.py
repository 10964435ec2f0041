"""Which places of a model are patched, one run each."""

from collections.abc import Iterable
from itertools import product
from typing import Any, NamedTuple

from bloomlab.errors import InputError, UnknownNameError

STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
HEAD = ("q", "k", "v", "z")
GRID = ("pattern", "attn_scores")
SITES = (*STREAM, "kv", *HEAD, *GRID)
# what a cell is, by site: the axes of a result, in TransformerLens' order; the first is usual
AXES = {
    STREAM: {"position": ("layer", "position"), "layer": ("layer",)},
    ("kv",): {"position": ("layer", "position"), "layer": ("layer",)},
    HEAD: {"position": ("layer", "position", "head"), "head": ("layer", "head")},
    GRID: {
        "head": ("layer", "head"),
        "position": ("layer", "head", "position"),
        "edge": ("layer", "head", "position", "key"),
    },
}


class Cell(NamedTuple):
    """What one run patches; None: all of that axis.

    Attributes:
        layer: its number; of a window the first.
        head: its number.
        position: column of the token, of a pattern that of the query.
        key: column of a pattern's key.
    """

    layer: int
    head: int | None = None
    position: int | None = None
    key: int | None = None


def axes_of(site: str, by: str | None) -> tuple[str, ...]:
    """The axes that tell the cells of a site apart.

    Raises:
        UnknownNameError: no such site, or no such way to cut it.
    """
    for sites, ways in AXES.items():
        if site in sites:
            way = next(iter(ways)) if by is None else by
            if way not in ways:
                raise UnknownNameError(f"way to cut {site}", way, ways)
            return ways[way]
    raise UnknownNameError("site", site, SITES)


def cells_of(
    model: Any, axes: tuple[str, ...], *, layers: Any, heads: Any, columns: Any, n_pos: int
) -> list[Cell]:
    """Every combination of the chosen layers, heads and columns; None: all.

    Raises:
        InputError: one that is not there, or heads or columns where the site has none.
    """
    chosen = {
        "layer": _chosen("layers", layers, model.config.n_layer),
        "head": _chosen("heads", heads, model.config.n_head),
        "position": _chosen("columns", columns, n_pos),
        "key": list(range(n_pos)),
    }
    for what, given, axis in (("heads", heads, "head"), ("columns", columns, "position")):
        if given is not None and axis not in axes:
            raise InputError(f"{what} is {given!r}, but a cell here is a {' x '.join(axes)}.")
    every = (dict(zip(axes, one, strict=True)) for one in product(*(chosen[a] for a in axes)))
    cells = [Cell(**one) for one in every]
    return [one for one in cells if one.key is None or one.key <= (one.position or 0)]


def groups(cells: list[Cell], size: int) -> Iterable[list[int]]:
    """Cells of one layer, at most `size` together, those of early columns first."""
    order = sorted(range(len(cells)), key=lambda i: (cells[i].layer, cells[i].position or 0, i))
    layers: dict[int, list[int]] = {}
    for i in order:
        layers.setdefault(cells[i].layer, []).append(i)
    for some in layers.values():
        for start in range(0, len(some), size):
            yield some[start : start + size]


def _chosen(what: str, given: Any, n: int) -> list[int]:
    if given is None:
        return list(range(n))
    several = [given] if isinstance(given, int) else list(given)
    if not several or not all(isinstance(i, int) and -n <= i < n for i in several):
        raise InputError(f"{what} is {given!r}, expected numbers from 0 to {n - 1}.")
    return sorted({i % n for i in several})
