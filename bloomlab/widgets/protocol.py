"""What views ask of a session; `bl.Session` is one."""

from typing import Any, Protocol, runtime_checkable

from bloomlab.errors import InputError


@runtime_checkable
class ViewSession(Protocol):
    """A prompt, edits and a selection that can be observed, and the runs they make."""

    prompt: Any
    edits: Any
    selection: Any

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        ...

    @property
    def n_head(self) -> int:
        """Number of heads in a layer."""
        ...

    def kept(self, layer: int) -> list[int]:
        """Numbers of a layer's heads."""
        ...

    def run(self, which: str) -> Any:
        """The "edited" or the "clean" run."""
        ...

    def observe(self, handler: Any, names: Any) -> Any:
        """Call `handler` when something changes."""
        ...

    def unobserve(self, handler: Any, names: Any) -> Any:
        """Call it no longer."""
        ...


def check_open(session: Any, name: str) -> None:
    """Refuse what no view can look through.

    Raises:
        InputError: no session, or a closed one.
    """
    if not isinstance(session, ViewSession):
        raise InputError(
            f"{name} looks through a session, got {type(session).__name__}; "
            f"for a model: {name}(bl.Session(model, prompt))."
        )
    session.kept(0)  # a closed one says so
