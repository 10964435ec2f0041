"""One head, live: its attention pattern, and what switching heads off does to the next token."""

import html
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import ipywidgets as W
import numpy as np
import plotly.graph_objects as go
import traitlets
from jaxtyping import Float

from bloomlab.errors import BloomlabError, InputError, ShapeError
from bloomlab.plots import theme
from bloomlab.plots.attention import pattern_figure
from bloomlab.plots.predictions import next_token_figure
from bloomlab.widgets.heads import heads_off, mask_without

_ALERT = '<b class="bloomlab-error" role="alert">{}</b>'


@runtime_checkable
class AttentionSession(Protocol):
    """What the view asks of a model; the labels are printable and HTML-escaped."""

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        ...

    @property
    def n_head(self) -> int:
        """Number of heads in each layer."""
        ...

    def tokens(self, prompt: str) -> list[str]:
        """One label for each token; raises BloomlabError for a prompt it cannot take."""
        ...

    def pattern(
        self, prompt: str, layer: int, head: int, head_mask: Float[np.ndarray, "layer head"]
    ) -> Float[np.ndarray, "query key"]:
        """Attention of one head, with every head scaled by `head_mask`."""
        ...

    def next_tokens(
        self, prompt: str, head_mask: Float[np.ndarray, "layer head"], k: int
    ) -> tuple[list[str], Float[np.ndarray, " token"], Float[np.ndarray, " token"]]:
        """Labels, and their probabilities with all heads on and with `head_mask`."""
        ...


class AttentionView(W.VBox):
    """Type a prompt, pick a head, switch heads off; see its pattern and the next token.

    For the next cell: `value` is the pattern on screen, `head_mask` (layer x head, 1 = on) says
    which heads are off. Assign a new mask to change it; `observe` both like any trait.
    """

    head_mask = traitlets.Instance(np.ndarray)
    value = traitlets.Instance(np.ndarray, read_only=True)

    def __init__(self, session: Any, prompt: str = "", *, k: int = 10) -> None:
        if not isinstance(session, AttentionSession):
            raise InputError(
                f"AttentionView looks through a session, got {type(session).__name__}; "
                "for a model: AttentionView(bl.Session(model), prompt)."
            )
        self._session = session
        self._k = k
        self._tokens: list[str] | None = None  # None: the prompt is not usable, nothing to draw
        slim = {"description_width": "initial"}
        self.prompt = W.Text(
            prompt,
            description="prompt",
            placeholder="text for the model",
            continuous_update=False,
            style=slim,
            layout={"width": "auto"},
        )
        self.layer, self.head = (
            W.IntSlider(0, 0, n - 1, description=name, continuous_update=False, style=slim)
            for name, n in (("layer", session.n_layer), ("head", session.n_head))
        )
        self.head_on = W.Checkbox(True, description="head on", indent=False)
        self.off = W.Text(
            description="heads off",
            placeholder="none; type L0H0 L1H4-7",
            continuous_update=False,
            style=slim,
        )
        self.reset = W.Button(description="all heads on")
        self.status = W.HTML(layout={"min_height": "2em"})  # its text moves nothing
        none = np.zeros(0, dtype=np.float32)
        self.pattern_plot = go.FigureWidget(pattern_figure(np.zeros((1, 1)), [""]))
        self.next_token_plot = go.FigureWidget(next_token_figure([], none, none))
        wrap = {"flex_flow": "row wrap"}
        controls = W.HBox([self.layer, self.head, self.head_on, self.off, self.reset], layout=wrap)
        plots = W.HBox([self.pattern_plot, self.next_token_plot], layout=wrap)
        super().__init__([W.HTML(theme.CSS), self.prompt, controls, self.status, plots])
        self.add_class("bloomlab-view")
        self.head_mask = mask_without("", session.n_layer, session.n_head)
        self.set_trait("value", np.zeros((0, 0), dtype=np.float32))

        self.prompt.observe(self._on_prompt, "value")
        self.layer.observe(self._on_place, "value")
        self.head.observe(self._on_place, "value")
        self.head_on.observe(self._on_switch, "value")
        self.off.observe(self._on_off, "value")
        self.reset.on_click(self._on_reset)
        self.observe(self._on_mask, "head_mask")
        self._on_prompt(None)

    @traitlets.validate("head_mask")
    def _check_mask(self, proposal: dict[str, Any]) -> Float[np.ndarray, "layer head"]:
        mask = np.array(proposal["value"], dtype=np.float32)
        expected = (self._session.n_layer, self._session.n_head)
        if mask.shape != expected:
            raise ShapeError("head_mask", got=mask.shape, expected=str(expected))
        mask.flags.writeable = False  # a change in place would not reach the screen
        return mask

    def _on_prompt(self, _change: object) -> None:
        self._tokens = None
        with self._reporting():
            self._tokens = self._session.tokens(self.prompt.value)
            self._draw_pattern(self._tokens, keep_zoom=False)
            self._draw_next_tokens()

    def _on_place(self, _change: object) -> None:
        self._show_mask()
        if self._tokens is not None:
            with self._reporting():
                self._draw_pattern(self._tokens, keep_zoom=True)

    def _on_mask(self, _change: object) -> None:
        self._show_mask()
        if self._tokens is not None:
            with self._reporting():
                self._draw_pattern(self._tokens, keep_zoom=True)
                self._draw_next_tokens()

    def _on_switch(self, _change: object) -> None:
        if self.head_on.value != self._is_on():
            mask = self.head_mask.copy()
            mask[self.layer.value, self.head.value] = self.head_on.value
            self.head_mask = mask

    def _on_off(self, _change: object) -> None:
        if self.off.value == heads_off(self.head_mask):  # our own echo, or a mistake taken back
            if self._tokens is not None:
                self.status.value = ""
            return
        mask = None
        with self._reporting():
            mask = mask_without(self.off.value, *self.head_mask.shape)
        if mask is not None:  # outside: the redraw reports for itself
            self.head_mask = mask

    def _on_reset(self, _button: object) -> None:
        self.head_mask = np.ones_like(self.head_mask)

    def _is_on(self) -> bool:
        return bool(self.head_mask[self.layer.value, self.head.value])

    def _show_mask(self) -> None:
        self.head_on.value = self._is_on()
        self.off.value = heads_off(self.head_mask)

    def _draw_pattern(self, tokens: list[str], *, keep_zoom: bool) -> None:
        layer, head = self.layer.value, self.head.value
        pattern = self._session.pattern(self.prompt.value, layer, head, self.head_mask.copy())
        title = f"L{layer}H{head}" + ("" if self._is_on() else " (off)")
        _redraw(self.pattern_plot, pattern_figure(pattern, tokens, title=title), keep_zoom)
        self.set_trait("value", pattern)

    def _draw_next_tokens(self) -> None:
        mask = self.head_mask.copy()
        labels, before, after = self._session.next_tokens(self.prompt.value, mask, self._k)
        figure = next_token_figure(labels, before, after, title="next token")
        _redraw(self.next_token_plot, figure, keep_zoom=False)

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        """Says that work goes on; shows an expected error, lets any other one through."""
        self.status.value = "computing …"
        message = "an unexpected error; its traceback is in the log (View, Show Log Console)"
        try:
            yield
            message = ""
        except BloomlabError as error:
            message = str(error)
        finally:
            self.status.value = message and _ALERT.format(html.escape(message))


def _redraw(shown: go.FigureWidget, fresh: go.Figure, keep_zoom: bool) -> None:
    """Make `shown` like `fresh` in one message; what is the same is not sent again."""
    with shown.batch_update():
        for old, new in zip(shown.data, fresh.data, strict=True):
            old.update(new.to_plotly_json())  # pyright: ignore[reportAttributeAccessIssue]  # untyped
        shown.update_layout({"title": fresh.layout.title} if keep_zoom else fresh.layout)
