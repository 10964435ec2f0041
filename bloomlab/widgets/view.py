"""What every view is: one canvas widget that asks, a session that answers, a status line."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from bloomlab.errors import BloomlabError, InputError
from bloomlab.widgets.controls import Controls, Kind, controls_of
from bloomlab.widgets.main_thread import MainThread
from bloomlab.widgets.pack import plain
from bloomlab.widgets.page import Saved, asked, packed, page_path, write_page
from bloomlab.widgets.protocol import check_open
from bloomlab.widgets.saying import said
from bloomlab.widgets.showing import show
from bloomlab.widgets.source import script, style
from bloomlab.widgets.state import PLACES, load_whole, places, read_whole, session_code, whole_state

Answer = tuple[dict[str, Any], list[bytes]]  # small facts, and arrays as bytes
Number = int | float  # JavaScript writes 1.0 as 1


class View(anywidget.AnyWidget):
    """A view of a session.

    The browser sends {id, op, ...}; the method `answer_op` returns facts and arrays, which go back
    under the same id. Expected errors stand in the status line, others too, and go on to the log.

    Attributes:
        facts: what the view is of: shape, tokens, version; changes when the session does.
        controls: what is set in the browser: mode, filter, scale ...; assign to change it.
        place: the session's selection as a dictionary.
        status: what went wrong or is going on; empty if all is well.
        kind: name of the script that draws.
    """

    facts = traitlets.Dict().tag(sync=True)
    controls = Controls().tag(sync=True)
    place = traitlets.Dict().tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    kind = traitlets.Unicode().tag(sync=True)

    name = "view"  # of the script that draws it
    parts: tuple[str, ...] = ()  # scripts that it needs beside its own
    kinds: Mapping[str, Kind] = {}  # of its controls, where they are not as in `controls.KINDS`
    still: Callable[[], bytes]  # a PNG of the view, for where nothing is live
    _css = style()
    _watched: tuple[Any, ...] = ()  # what is observed: object, handler, names

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "name" in vars(cls):  # not the subclass that every instance gets for its traits
            cls._esm = script((*cls.parts, cls.name), cls.__name__, cls.name)
        super().__init_subclass__(**kwargs)

    def __init__(self, session: Any, prompt: str | None = None, **controls: Any) -> None:
        check_open(session, type(self).__name__)
        controls = controls_of(self, controls)
        self.session: Any = session
        if prompt is not None:
            session.prompt = prompt
        super().__init__(kind=self.name, controls=controls)
        self._version = 0
        self._main = MainThread()
        self._on_session(None)
        self._on_selection(None)
        self._watch(session, self._on_session, ["version", "edits"])
        self._watch(session.selection, self._on_selection, list(PLACES))
        self.observe(self._on_place, "place")
        self.on_msg(self._on_message)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.session.prompt[:40]!r})"

    # -- for subclasses ----------------------------------------------------------------------------

    def defaults(self) -> dict[str, Any]:
        """The controls of a new view."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Facts beside shape and tokens."""
        return {}

    def exported(self) -> Iterable[dict[str, Any]]:
        """Questions whose answers a saved page needs; each is answered before the next is made."""
        return []

    def answer_in_page(self, question: dict[str, Any]) -> Answer:
        """The answer that a saved page has to a question."""
        return self._answer(question)

    def given(self) -> list[str]:
        """Arguments beside the session and the controls, as they stand in code."""
        return []

    def companions(self) -> list["View"]:
        """Views that stand beside this one in a saved page."""
        return []

    # -- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that makes the view look as it does, as plain values."""
        return {
            "view": type(self).__name__,
            **whole_state(self.session),
            "controls": dict(self.controls),
        }

    def load_state_dict(self, state: Any) -> None:
        """Make the view and its session as `state_dict` found them.

        Raises:
            InputError: the state of another kind of view or of model, or none; nothing changes.
        """
        whole, given = read_whole(self.session, state, type(self).__name__)
        controls = controls_of(self, given)
        load_whole(self.session, whole)
        self.controls = controls

    def code(self) -> str:
        """Python that makes this view again, of a model named `model`."""
        controls = [f"{name}={value!r}" for name, value in self.controls.items()]
        arguments = ", ".join(["session", *self.given(), *controls])
        return "\n".join(
            [
                *session_code(self.session),
                f"session.selection.set(**{places(self.session)!r})",
                f"bl.widgets.{type(self).__name__}({arguments})",
            ]
        )

    def to_html(self, path: Any) -> Path:
        """Write the view as one file that asks for nothing: it opens anywhere, offline.

        It holds what the view shows and a choice of heads; what is missing says so when asked for.

        Raises:
            InputError: the session was closed, or the path is none for a page.
        """
        self.session.kept(0)  # a closed session has no answers to save
        target = page_path(path)
        beside = self.companions()
        views = [view.saved() for view in (self, *beside)]
        for view in beside:
            view.close()
        return write_page(target, f"{type(self).__name__}: {self.session.prompt}", views)

    def saved(self) -> Saved:
        """The view for a page: script, state, and the answers it will ask for."""
        answers: dict[str, Answer] = {}
        for question in self.exported():
            try:
                answers[asked(question)] = self.answer_in_page(dict(question))
            except BloomlabError as error:  # the page says it, as the view does
                answers[asked(question)] = {"error": str(error)}, []
        state = {name: getattr(self, name) for name in ("controls", "place", "kind", "status")}
        facts = {**self.facts, "static": True}
        return Saved(
            script=self._esm,
            style=style(),
            state={"facts": facts, **state, "answers": packed(answers)},
        )

    # -- wiring ------------------------------------------------------------------------------------

    def close(self) -> None:
        """End the view; the session no longer tells it of changes."""
        for watched, handler, names in self._watched:
            watched.unobserve(handler, names)
        self._watched = ()
        super().close()

    def set_state(self, sync_data: Any) -> None:
        """Take what the browser sets; what is not allowed stands in the status line."""
        try:
            super().set_state(sync_data)
        except BloomlabError as error:
            self.status = said(error)[0]
            self._on_selection(None)
            self.send_state(["controls", "place"])

    def _watch(self, watched: Any, handler: Callable[[Any], None], names: list[str]) -> None:
        watched.observe(handler, names)
        self._watched += ((watched, handler, names),)

    def _query(self) -> int:
        """Place of the chosen token; the last one's if none is chosen or the text is shorter."""
        last, query = len(self.facts["tokens"]) - 1, self.session.selection.query
        return last if query < 0 else min(last, query)

    def _ipython_display_(self) -> None:
        bundle, metadata = self._repr_mimebundle_()
        show(bundle, metadata)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        live = super()._repr_mimebundle_(**kwargs)
        bundle, metadata = live if isinstance(live, tuple) else (live, {})
        try:
            picture = self.still()
        except BloomlabError:  # nothing to draw yet: the status line says why
            return bundle or {}, metadata
        except Exception as error:  # the live view can do without its picture
            self.status = f"no picture: {said(error)[0]}"
            return bundle or {}, metadata
        return {**(bundle or {}), "image/png": picture}, metadata

    def _on_session(self, _change: object) -> None:
        """Facts of the session as it is now; what is shown is asked for again."""
        self._version += 1
        session = self.session
        facts: dict[str, Any] = {
            "version": self._version,
            "group": f"{id(session):x}",
            "n_layer": session.n_layer,
            "n_head": session.n_head,
            "prompt": session.prompt,
            "tokens": [],
            "scale": session.edits.scale.tolist(),
            "mean": session.edits.mean.tolist(),
            "slopes": session.edits.slopes.tolist(),
            "kept": [],
        }

        def fill() -> None:
            facts["kept"] = [session.kept(layer) for layer in range(session.n_layer)]
            facts["tokens"] = session.run("clean").tokens
            facts.update(self.describe())

        self._reported(fill)
        self.facts = plain(facts)

    def _on_selection(self, _change: object) -> None:
        self.place = places(self.session)

    def _on_place(self, _change: object) -> None:
        self.session.selection.set(**{n: v for n, v in self.place.items() if n in PLACES})

    def _on_message(self, _widget: object, message: Any, _buffers: object) -> None:
        self._main(self._on_question, message)

    def _on_question(self, message: Any) -> None:
        given = dict(message)
        number = given.pop("id", None)
        found: list[Answer] = []

        def answer() -> None:
            found.append(self._answer(given))

        self._reported(answer, lambda: self._refuse(number, message))
        if found:
            facts, buffers = found[0]
            self.send({"id": number, "version": self._version, **facts}, buffers)

    def _refuse(self, number: Any, message: Any) -> None:
        self.send({"id": number, "version": self._version, "error": self.status}, [])

    def _answer(self, question: dict[str, Any]) -> Answer:
        op = question.pop("op", None)
        method = getattr(self, f"answer_{op}", None)
        if method is None:
            raise InputError(f"{type(self).__name__} has no answer to {op!r}.")
        facts, buffers = method(**question)
        return plain(facts), buffers

    def answer_code(self) -> Answer:
        """Python that makes this view."""
        return {"code": self.code()}, []

    def answer_edit(self, heads: Any, scale: Number = 1.0, mean: bool = False) -> Answer:
        """Scale or average heads in the session."""
        self.session.edits = self.session.edits.with_heads(heads, scale=float(scale), mean=mean)
        return {}, []

    def _reported(
        self, work: Callable[[], None], otherwise: Callable[[], None] | None = None
    ) -> None:
        """Run; say in the status line what went wrong. Only what nobody expects goes on."""
        self.status, message = "", ""
        try:
            work()
            return
        except (Exception, KeyboardInterrupt) as error:
            message, expected = said(error)
            if not expected:
                raise
        finally:
            if message:
                self.status = message
                if otherwise is not None:
                    otherwise()
