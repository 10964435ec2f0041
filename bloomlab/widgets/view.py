"""What every view is: one canvas widget that asks, a session that answers, a status line."""

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from bloomlab.errors import BloomlabError, InputError
from bloomlab.widgets.heads import heads_off
from bloomlab.widgets.main_thread import MainThread
from bloomlab.widgets.page import Saved, packed, page
from bloomlab.widgets.protocol import ViewSession

PLACES = ("layer", "head", "query", "key", "step", "run")
Answer = tuple[dict[str, Any], list[bytes]]  # small facts, and arrays as bytes
SHARED = ("wire", "colors", "shell", "matrix", "drawing", "tokens")
FOLDER = files("bloomlab.widgets") / "js"


@cache
def script(parts: tuple[str, ...], title: str, draw: str) -> str:
    """The ESM of a view: what all share, its own parts, and which of them draws."""
    sources = [(FOLDER / f"{name}.js").read_text("utf-8") for name in (*SHARED, *parts, "entry")]
    return f'const TITLE = "{title}", VIEW = {draw};\n' + "\n".join(sources)


@cache
def style() -> str:
    """The one style sheet of all views."""
    return (FOLDER / "view.css").read_text("utf-8")


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
    controls = traitlets.Dict().tag(sync=True)
    place = traitlets.Dict().tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    kind = traitlets.Unicode().tag(sync=True)

    name = "view"  # of the script that draws it
    parts: tuple[str, ...] = ()  # scripts that it needs beside its own
    _css = style()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "name" in vars(cls):  # not the subclass that every instance gets for its traits
            cls._esm = script((*cls.parts, cls.name), cls.__name__, cls.name)
        super().__init_subclass__(**kwargs)

    def __init__(self, session: Any, prompt: str | None = None, **controls: Any) -> None:
        if not isinstance(session, ViewSession):
            raise InputError(
                f"{type(self).__name__} looks through a session, got {type(session).__name__}; "
                f"for a model: {type(self).__name__}(bl.Session(model, prompt))."
            )
        self.session: Any = session
        if prompt is not None:
            session.prompt = prompt
        super().__init__(kind=self.name, controls={**self.defaults(), **controls})
        self._version = 0
        self._main = MainThread()
        self._on_session(None)
        self._on_selection(None)
        session.observe(self._on_session, ["prompt", "edits"])
        session.selection.observe(self._on_selection, list(PLACES))
        self.observe(self._on_place, "place")
        self.on_msg(self._on_message)

    # -- for subclasses ----------------------------------------------------------------------------

    def defaults(self) -> dict[str, Any]:
        """The controls of a new view."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Facts beside shape and tokens."""
        return {}

    def exported(self) -> list[dict[str, Any]]:
        """Questions whose answers a saved page needs."""
        return []

    def companions(self) -> list["View"]:
        """Views that stand beside this one in a saved page."""
        return []

    def still(self) -> bytes:
        """A PNG of the view for where nothing is live."""
        raise NotImplementedError

    # -- state -------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that makes the view look as it does, as plain values."""
        edits = self.session.edits
        return {
            "view": type(self).__name__,
            "prompt": self.session.prompt,
            "controls": dict(self.controls),
            "selection": {name: getattr(self.session.selection, name) for name in PLACES},
            "edits": {n: getattr(edits, n).tolist() for n in ("scale", "mean", "slopes")},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the view and its session as `state_dict` found them.

        Raises:
            InputError: the state of another kind of view, or none.
        """
        if state.get("view") != type(self).__name__:
            raise InputError(
                f"a state of {state.get('view')!r}, expected one of {type(self).__name__!r}."
            )
        self.session.prompt = state["prompt"]
        self.session.edits = type(self.session.edits)(**state["edits"])
        for name, value in state["selection"].items():
            setattr(self.session.selection, name, value)
        self.controls = dict(state["controls"])

    def code(self) -> str:
        """Python that makes this view again, of a model named `model`."""
        edits, selection = self.session.edits, self.session.selection
        lines = [f"session = bl.Session(model, {self.session.prompt!r})"]
        if made := edits.code():
            off = heads_off(edits.scale)
            lines.append(
                f"session.edits = session.edits{made}" + (f"  # off: {off}" if off else "")
            )
        places = {name: getattr(selection, name) for name in PLACES}
        lines.append(f"session.selection.set(**{places!r})")
        controls = ", ".join(f"{name}={value!r}" for name, value in self.controls.items())
        lines.append(f"bl.widgets.{type(self).__name__}(session, {controls})".replace(", )", ")"))
        return "\n".join(lines)

    def to_html(self, path: Any) -> Path:
        """Write the view as one file that asks for nothing: it opens anywhere, offline.

        It holds what the view shows and a choice of heads; what is missing says so when asked for.
        """
        views = [self, *self.companions()]
        text = page(f"{type(self).__name__}: {self.session.prompt}", [v.saved() for v in views])
        target = Path(path)
        target.write_text(text, encoding="utf-8")
        return target

    def saved(self) -> Saved:
        """The view for a page: script, state, and the answers it will ask for."""
        answers = {}
        for question in self.exported():
            whole = {
                n: int(v) if isinstance(v, float) and v == int(v) else v
                for n, v in question.items()
            }
            name = json.dumps(
                whole, sort_keys=True, separators=(",", ":")
            )  # as JavaScript writes it
            answers[name] = self._answer(dict(question))
        state = {name: getattr(self, name) for name in ("controls", "place", "kind", "status")}
        facts = {**self.facts, "static": True}
        return Saved(
            script=self._esm,
            style=style(),
            state={"facts": facts, **state, "answers": packed(answers)},
        )

    # -- wiring ------------------------------------------------------------------------------------

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        live = super()._repr_mimebundle_(**kwargs)
        bundle, metadata = live if isinstance(live, tuple) else (live, {})
        try:
            picture = self.still()
        except BloomlabError:  # nothing to draw yet: the status line says why
            return live
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
        self.facts = facts

    def _on_selection(self, _change: object) -> None:
        self.place = {name: getattr(self.session.selection, name) for name in PLACES}

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
        return method(**question)

    def answer_code(self) -> Answer:
        """Python that makes this view."""
        return {"code": self.code()}, []

    def answer_edit(self, heads: Any, scale: float = 1.0, mean: bool = False) -> Answer:
        """Scale or average heads in the session."""
        self.session.edits = self.session.edits.with_heads(heads, scale=scale, mean=mean)
        return {}, []

    def _reported(
        self, work: Callable[[], None], otherwise: Callable[[], None] | None = None
    ) -> None:
        """Run; say in the status line what went wrong. Only what nobody expects goes on."""
        self.status, message = "", ""
        try:
            work()
            return
        except BloomlabError as error:
            message = str(error)
        except KeyboardInterrupt:
            message = "interrupted: the kernel stopped what it was doing; ask again"
        except MemoryError:
            message = "out of memory: take a shorter prompt"
        except RuntimeError as error:
            if "memory" not in str(error):
                message = f"unexpected: {type(error).__name__}: {error}"
                raise
            message = f"out of memory: take a shorter prompt ({str(error).splitlines()[0]})"
        except Exception as error:
            message = f"unexpected: {type(error).__name__}: {error}"
            raise
        finally:
            if message:
                self.status = message
                if otherwise is not None:
                    otherwise()
