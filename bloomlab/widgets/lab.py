"""LabView: the views of a session put together."""

from pathlib import Path
from typing import Any

import ipywidgets as W

from bloomlab.widgets.alibi import AlibiView
from bloomlab.widgets.compare import CompareRuns
from bloomlab.widgets.controls import controls_of
from bloomlab.widgets.grid import HeadGrid
from bloomlab.widgets.hidden import HiddenStates
from bloomlab.widgets.lens import LensTable
from bloomlab.widgets.main_thread import MainThread
from bloomlab.widgets.mask import HeadMaskLab
from bloomlab.widgets.page import page_path, write_page
from bloomlab.widgets.protocol import check_open
from bloomlab.widgets.scrub import GenScrubber
from bloomlab.widgets.showing import PNG, show
from bloomlab.widgets.state import load_whole, part, read_whole, whole_state
from bloomlab.widgets.strip import TokenStrip
from bloomlab.widgets.view import View
from bloomlab.widgets.zoom import HeadZoom

TABS = {
    "masks": HeadMaskLab,
    "text": TokenStrip,
    "generation": GenScrubber,
    "lens": LensTable,
    "ALiBi": AlibiView,
    "hidden states": HiddenStates,
    "clean | edited": CompareRuns,
}


class LabView(W.VBox):
    """A prompt on top, all heads and the chosen one below it, every other view in a tab."""

    _watched: tuple[Any, ...] = ()  # what is observed: object, handler, names

    def __init__(self, session: Any) -> None:
        check_open(session, type(self).__name__)
        self.session, self._main = session, MainThread()
        self.prompt = W.Textarea(
            session.prompt,
            placeholder="text for the model",
            description="prompt",
            continuous_update=False,
            rows=2,
            layout={"width": "auto"},
        )
        self.run = W.ToggleButtons(
            options=[("edited", "edited"), ("all heads on", "clean")],
            value=session.selection.run,
            description="show",
        )
        self.grid, self.zoom = HeadGrid(session), HeadZoom(session)
        self.views = {name: view(session) for name, view in TABS.items()}
        tabs = W.Tab(list(self.views.values()), titles=tuple(self.views))
        sides = [
            W.VBox([view], layout={"min_width": "0", "flex": "1 1 460px"})
            for view in (self.grid, self.zoom)
        ]
        heads = W.HBox(sides, layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        super().__init__([self.prompt, self.run, heads, tabs])
        self.prompt.observe(self._on_prompt, "value")
        self.run.observe(self._on_run, "value")
        self._watched = (
            (session, self._on_session, ["prompt"]),
            (session.selection, self._on_selection, ["run"]),
        )
        for watched, handler, names in self._watched:
            watched.observe(handler, names)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.session.prompt[:40]!r}, {len(self._all())} views)"

    def close(self) -> None:
        """End the lab and its views; the session no longer tells them of changes."""
        if self._watched:
            for watched, handler, names in self._watched:
                watched.unobserve(handler, names)
            self._watched = ()
            for one in (*self._all().values(), self.prompt, self.run):
                one.close()
        super().close()

    def state_dict(self) -> dict[str, Any]:
        """Everything that makes the lab look as it does, as plain values."""
        return {
            "view": "LabView",
            **whole_state(self.session),
            "controls": {name: dict(view.controls) for name, view in self._all().items()},
        }

    def load_state_dict(self, state: Any) -> None:
        """Make the session and all views as `state_dict` found them.

        Raises:
            InputError: the state of a view or of another model, or none; nothing changes.
        """
        whole, given = read_whole(self.session, state, "LabView")
        controls = {
            name: controls_of(view, part(given, name, dict)) for name, view in self._all().items()
        }
        load_whole(self.session, whole)
        for name, view in self._all().items():
            view.controls = controls[name]

    def to_html(self, path: Any) -> Path:
        """Write all views as one file that asks for nothing: it opens anywhere, offline.

        Raises:
            InputError: the session was closed, or the path is none for a page.
        """
        check_open(self.session, type(self).__name__)
        target = page_path(path)
        views = [view.saved() for view in self._all().values()]
        return write_page(target, f"{type(self).__name__}: {self.session.prompt}", views)

    def _all(self) -> dict[str, View]:
        return {"grid": self.grid, "zoom": self.zoom, **self.views}

    def _ipython_display_(self) -> None:
        picture = self.grid._repr_mimebundle_()[0].get(PNG)
        live: Any = self._repr_mimebundle_()
        show({**live, **({PNG: picture} if picture else {})}, {})

    def _on_prompt(self, change: Any) -> None:
        self._main(setattr, self.session, "prompt", change["new"])

    def _on_run(self, change: Any) -> None:
        self.session.selection.run = change["new"]

    def _on_selection(self, change: Any) -> None:
        self.run.value = change["new"]

    def _on_session(self, change: Any) -> None:
        self.prompt.value = change["new"]
