"""What it means when the hub does not give a model, in a sentence that a stranger can use."""

import difflib

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

BLOOMS = (  # what a misspelt name may mean: BLOOM and BLOOMZ as bigscience has them, and ours
    "demo",
    "demo-phases",
    *(
        f"bigscience/{kind}{size}"
        for kind, sizes in {
            "bloom": ("-560m", "-1b1", "-1b7", "-3b", "-7b1", ""),
            "bloomz": ("-560m", "-1b1", "-1b7", "-3b", "-7b1", ""),
            "bloomz-7b1": ("-mt", "-p3"),
            "bloomz-": ("mt", "p3"),
        }.items()
        for size in sizes
    ),
)


def hub_trouble(
    error: Exception, name: str, *, revision: str | None = None, local_files_only: bool = False
) -> str:
    """Why there is no model of this name, ending in a full stop; and what may have been meant."""
    close = [] if name in BLOOMS else difflib.get_close_matches(name, BLOOMS, n=1)
    meant = f" Did you mean {close[0]!r}?" if close else ""
    if isinstance(error, GatedRepoError):
        return "the hub gives it only to those who asked for access and are logged in."
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub has no such model (or it is private).{meant}"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub has no revision {revision!r} of it."
    if isinstance(error, HFValidationError):
        return f"it is no hub id, such as 'bigscience/bloom-560m'.{meant}"
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        if local_files_only or constants.HF_HUB_OFFLINE:
            by = "local_files_only" if local_files_only else "the variable HF_HUB_OFFLINE"
            return f"it was not downloaded before, and {by} forbids to ask the hub.{meant}"
        return f"the hub cannot be reached ({_first_line(error).removeprefix('Got: ')}).{meant}"
    return f"the hub says: {type(error).__name__}: {_first_line(error).rstrip('.')}.{meant}"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
