"""Every error class: what was wrong, what was got, what was expected, what to do."""

import difflib
from collections.abc import Iterable
from inspect import Signature
from typing import Any


class BloomlabError(Exception):
    """Base of all errors that a user of bloomlab can cause and mend."""

    def __reduce__(self) -> tuple[Any, ...]:
        # subclasses are made from parts; a worker process must be able to send them whole
        return _rebuilt, (type(self), self.args)


def _rebuilt(kind: type[BloomlabError], args: tuple[Any, ...]) -> BloomlabError:
    error = kind.__new__(kind, *args)
    error.args = args
    return error


class UnknownNameError(BloomlabError, KeyError):
    """A hook, argument, layer, head or model name that does not exist."""

    def __init__(self, kind: str, name: object, known: Iterable[str], *, where: str = "") -> None:
        names = list(known)
        close = difflib.get_close_matches(str(name), names, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        listing = where or ("Known: " + ", ".join(names) + "." if len(names) <= 40 else "")
        super().__init__(f"no {kind} {name!r}.{hint} {listing}".rstrip())

    __str__ = Exception.__str__  # a KeyError would print the message in quotes


class UnknownArgumentError(BloomlabError, TypeError):
    """A keyword argument that the function does not take."""

    def __init__(self, function: str, name: str, known: Signature | Iterable[str]) -> None:
        if isinstance(known, Signature):
            known = [n for n, p in known.parameters.items() if p.kind != p.VAR_KEYWORD]
        names = [n for n in known if not n.startswith("_")]
        close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        super().__init__(
            f"{function} got an unknown argument {name!r}.{hint} It takes: {', '.join(names)}."
        )


class InputError(BloomlabError, ValueError):
    """An input (token ids, mask, text, label) of the wrong kind, range or combination."""


class ShapeError(InputError):
    """A tensor of the wrong shape."""

    def __init__(self, name: str, *, got: Iterable[int], expected: str, fix: str = "") -> None:
        super().__init__(
            f"{name} has shape {tuple(got)}, expected {expected}.{' ' + fix if fix else ''}"
        )


class ConfigError(BloomlabError, ValueError):
    """A configuration that describes no BLOOM."""


class CacheError(BloomlabError, ValueError):
    """A key-value cache used with inputs or a model it does not fit."""


class NumericalError(BloomlabError, ArithmeticError):
    """Activations or logits that are NaN or infinite."""


class CheckpointError(BloomlabError, OSError):
    """A checkpoint that cannot be found, trusted or read; nothing was loaded."""


class ResultsError(BloomlabError, ValueError):
    """A results folder of another study, or none at all; nothing was written."""


class TokenizerError(BloomlabError, ValueError):
    """A tokenizer that is missing or cannot do what was asked."""


class UnsupportedError(BloomlabError, NotImplementedError):
    """A request that is not defined for this model."""
