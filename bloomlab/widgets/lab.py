"""LabView: the views of a session put together."""

from typing import Any

import ipywidgets as W

from bloomlab.widgets.alibi import AlibiView
from bloomlab.widgets.compare import CompareRuns
from bloomlab.widgets.grid import HeadGrid
from bloomlab.widgets.hidden import HiddenStates
from bloomlab.widgets.lens import LensTable
from bloomlab.widgets.main_thread import MainThread
from bloomlab.widgets.mask import HeadMaskLab
from bloomlab.widgets.scrub import GenScrubber
from bloomlab.widgets.showing import PNG, show
from bloomlab.widgets.strip import TokenStrip
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

    def __init__(self, session: Any) -> None:
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
            W.Box([view], layout={"width": "auto", "flex": "1 1 460px"})
            for view in (self.grid, self.zoom)
        ]
        heads = W.HBox(sides, layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        super().__init__([self.prompt, self.run, heads, tabs])
        self.prompt.observe(self._on_prompt, "value")
        self.run.observe(self._on_run, "value")
        session.observe(self._on_session, ["prompt"])
        session.selection.observe(self._on_selection, ["run"])

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
