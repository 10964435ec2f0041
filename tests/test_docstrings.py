"""Everything public says what it is: modules, classes, functions, methods, properties."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from functools import cached_property
from types import ModuleType
from typing import Any

import pytest

import bloomlab

OPTIONAL = {"bloomlab.lm_eval"}  # imports lm-eval, which need not be there
MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(bloomlab.__path__, "bloomlab.")
    if name not in OPTIONAL | {"bloomlab.__main__"}  # which runs
]


def undocumented(name: str, thing: Any, seen: set[int]) -> Iterator[str]:
    """Names of what has no docstring of its own: a public thing and all that is public in it."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, ModuleType):
        if not thing.__doc__:
            yield name
        for one in public(thing):
            yield from undocumented(f"{name}.{one}", getattr(thing, one), seen)
    elif inspect.isclass(thing) and ours(thing):
        if not vars(thing).get("__doc__") or thing.__doc__.startswith(f"{thing.__name__}("):
            yield name  # a dataclass without a docstring is given its signature
        for parent in filter(ours, thing.__mro__):
            for one, value in vars(parent).items():
                function = function_of(value)
                if one.startswith("_") or not inspect.isfunction(function) or not ours(function):
                    continue
                if id(function) not in seen and not function.__doc__:
                    yield f"{parent.__module__}.{parent.__qualname__}.{one}"
                seen.add(id(function))
    elif inspect.isfunction(thing) and ours(thing) and not thing.__doc__:
        yield name


def public(module: ModuleType) -> list[str]:
    """`__all__`, or what the module defines."""
    own = [name for name, value in vars(module).items() if ours(value, of=module.__name__)]
    return list(getattr(module, "__all__", [name for name in own if not name.startswith("_")]))


def ours(thing: Any, of: str = "bloomlab") -> bool:
    """Whether it is written in the package, not inherited from another."""
    home = getattr(thing, "__module__", None)
    return isinstance(home, str) and (home == of or home.startswith(f"{of}."))


def function_of(value: Any) -> Any:
    """The function behind a method, property or class method."""
    if isinstance(value, classmethod | staticmethod):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    return value.func if isinstance(value, cached_property) else value


def test_all_that_is_public_has_a_docstring():
    seen: set[int] = set()
    assert list(undocumented("bloomlab", bloomlab, seen)) == []
    assert len(seen) > 500  # the walk has seen the package


@pytest.mark.parametrize("module", MODULES)
def test_a_module_and_what_it_defines_have_docstrings(module):
    assert list(undocumented(module, importlib.import_module(module), set())) == []


def test_what_has_no_docstring_is_found():
    module = ModuleType("bloomlab.planted")
    source = (
        "from dataclasses import dataclass\n"
        "from collections import OrderedDict\n"
        "def told():\n  'Told.'\n"
        "def silent(): ...\n"
        "class Told:\n  'Told.'\n  @property\n  def silent(self): ...\n"
        "  @classmethod\n  def mute(cls): ...\n  def _inner(self): ...\n"
        "@dataclass\nclass Silent(Told): ...\n"
    )
    exec(source, vars(module))
    expected = ["", ".silent", ".Told.silent", ".Told.mute", ".Silent"]
    found = list(undocumented("bloomlab.planted", module, set()))
    assert found == [f"bloomlab.planted{name}" for name in expected]
