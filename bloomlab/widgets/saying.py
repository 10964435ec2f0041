"""Errors as sentences for a status line."""

from bloomlab.errors import BloomlabError


def said(error: BaseException) -> tuple[str, bool]:
    """What a status line says of an error; and whether it was to be expected: saying it will do."""
    text = str(error)
    if isinstance(error, BloomlabError):
        return text, True
    if isinstance(error, KeyboardInterrupt):
        return "interrupted: the kernel stopped what it was doing; ask again", True
    if isinstance(error, MemoryError):
        return "out of memory: take a shorter prompt", True
    if isinstance(error, RuntimeError) and "memory" in text:
        return f"out of memory: take a shorter prompt ({text.splitlines()[0]})", True
    return f"unexpected: {type(error).__name__}: {text}", False
