"""Sites: named points of a model whose value is a vector, or one a head, for every token."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bloomlab.errors import InputError, UnknownNameError

BY_HEAD = ("q", "k", "v", "z", "result")
NO_VECTORS = ("alibi", "attn_scores", "pattern", "attn_in", "q_input", "k_input", "v_input")


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """A hook point.

    Attributes:
        site: what it is called in every layer, such as "resid_post" or "mlp_post".
        layer: None outside the layers.
        name: of the hook.
    """

    site: str
    layer: int | None
    name: str

    @property
    def by_head(self) -> bool:
        """Whether the value is [batch pos head d_head], not [batch pos d]."""
        return self.layer is not None and self.site in BY_HEAD


def find_points(model: Any, sites: str | Sequence[str]) -> list[Point]:
    """The hook points of sites, each in all layers, in order.

    Args:
        model: a BLOOM.
        sites: "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_post", "z" (per
            head), "embed" and so on, or full names of hooks, or several of these.

    Raises:
        UnknownNameError: a site that the model lacks.
        InputError: no site, or one that has no vector for a token.
    """
    wanted = [sites] if isinstance(sites, str) else list(sites)
    if not wanted:
        raise InputError("no site was named. Expected one or several, such as 'resid_post'.")
    every = [_point(name) for name in model.hook_dict]
    found: dict[str, Point] = {}
    for site in wanted:
        named = [point for point in every if site in (point.site, point.name)]
        if not named:
            try:
                name = model.resolve_hook_name(site)
            except UnknownNameError as error:
                known = dict.fromkeys(p.site for p in every if p.site not in NO_VECTORS)
                raise UnknownNameError("site", site, [*known, "or the name of a hook"]) from error
            named = [_point(name)]
        if named[0].site in NO_VECTORS:
            raise InputError(
                f"the site {site!r} has no vector for every token. Sites that have one are "
                "'resid_pre', 'resid_mid', 'resid_post', 'z', 'mlp_post', 'mlp_out' and others."
            )
        found |= {point.name: point for point in named}
    return list(found.values())


def last_layer(model: Any, points: Sequence[Point]) -> int | None:
    """After how many layers a forward may stop; None: it must go to the end."""
    layers = [-1 if point.site == "embed" else point.layer for point in points]
    known = [layer for layer in layers if layer is not None]
    stop = max(known, default=-1) + 1
    return None if len(known) < len(layers) or stop == model.config.n_layer else stop


def _point(name: str) -> Point:
    inside = re.fullmatch(r"blocks\.(\d+)\.(.*)", name)
    layer, rest = (int(inside[1]), inside[2]) if inside else (None, name)
    site = rest.removeprefix("attn.").replace("mlp.hook_", "mlp_").replace("hook_", "")
    return Point(site=site, layer=layer, name=name)
