"""Figures of a cache: which tokens it still holds as a text is read."""

# pyright: standard
# plotly comes without types

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from bloomlab.errors import InputError
from bloomlab.plots import theme
from bloomlab.plots.tokens import axis, escape, label_room, places


def memory_figure(
    held: Mapping[str, Sequence[Sequence[int]]], tokens: Sequence[str], *, title: str = ""
) -> go.Figure:
    """Which tokens (columns) a cache holds after each one is read (rows); a panel for each cache.

    Args:
        held: for each cache, the places of the tokens held after each of the first tokens, as
            `past.positions[0].tolist()` after every step (without reindexing).
        tokens: labels of the text.
        title: of the figure.

    Raises:
        InputError: no caches, no steps, caches that read unlike numbers of tokens or more than
            there are, or that hold a token which was not read yet.
    """
    lengths = {len(steps) for steps in held.values()}
    if len(lengths) != 1 or not 0 < max(lengths) <= len(tokens):
        raise InputError(
            f"held is of {len(held)} caches after {sorted(lengths)} tokens, expected the same "
            f"number for all, from 1 to {len(tokens)}."
        )
    n = max(lengths)
    layout, domains, _, most = theme.panels(n, n, count=len(held), room=label_room(tokens))
    layout["width"] -= 150  # there are no colour bars
    layout["margin"] |= {"r": 20}
    names, labels = places(tokens[:n]), [escape(name) for name in held]
    traces: list[Any] = []
    for place, (name, steps) in enumerate(zip(labels, held.values(), strict=True)):
        own = str(place + 1) if place else ""
        traces.append(
            go.Heatmap(
                z=_grid(name, steps),
                x=names,
                y=names,
                xaxis=f"x{own}",
                zmin=0,
                zmax=1,
                colorscale=[[0, theme.NEGATIVE], [1, theme.NEGATIVE]],
                showscale=False,
                hoverongaps=False,
                hovertemplate="after %{y}: holds %{x}<extra>" + name + "</extra>",
            )
        )
        layout[f"xaxis{own}"] = axis(tokens[:n], title="token in the cache", most=most) | {
            "domain": domains[place],
            "tickangle": -90,  # the same in all panels
        }
    down = axis(tokens[:n], title="after reading", most=most)
    layout["yaxis"] |= down | {"autorange": "reversed"}
    pairs = zip(labels, domains, strict=True)
    layout["annotations"] = [theme.panel_title(name, domain) for name, domain in pairs]
    return theme.figure(traces, title=title, layout=layout)


def _grid(name: str, steps: Sequence[Sequence[int]]) -> Any:
    """1 where a token is held, NaN elsewhere, [step token]."""
    grid = np.full((len(steps), len(steps)), np.nan)
    for step, columns in enumerate(steps):
        if len(columns) and not 0 <= min(columns) <= max(columns) <= step:
            raise InputError(
                f"{name!r} holds tokens {min(columns)} to {max(columns)} after {step + 1} were "
                "read; expected their places in the text, so no reindexing."
            )
        grid[step, list(columns)] = 1
    return grid
