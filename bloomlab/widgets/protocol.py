"""What views ask of a session; `bl.Session` is one."""

from typing import Any, Protocol, runtime_checkable


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
