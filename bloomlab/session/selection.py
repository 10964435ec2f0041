"""What all views of a session point at."""

from typing import Any

import traitlets

from bloomlab.errors import InputError

RUNS = ("edited", "clean")


class Selection(traitlets.HasTraits):
    """Layer, head, query, key, step and run that are looked at; -1 where nothing is chosen.

    Attributes:
        layer: from 0.
        head: from 0.
        query: column of the token that attends.
        key: column of the token that is attended to.
        step: of a generation.
        run: "edited" or "clean".

    Raises:
        InputError: a layer or head that the model lacks, or something else than such a place.
    """

    layer: Any = traitlets.TraitType(0)
    head: Any = traitlets.TraitType(0)
    query: Any = traitlets.TraitType(-1)
    key: Any = traitlets.TraitType(-1)
    step: Any = traitlets.TraitType(-1)
    run: Any = traitlets.TraitType("edited")

    def __init__(self, n_layer: int, n_head: int) -> None:
        self._limits = {"layer": (0, n_layer), "head": (0, n_head)}
        super().__init__()

    def __repr__(self) -> str:
        places = (f"{name}={getattr(self, name)!r}" for name in sorted(self.trait_names()))
        return f"Selection({', '.join(places)})"

    @traitlets.validate("layer", "head", "query", "key", "step", "run")
    def _validated(self, proposal: Any) -> Any:
        return self._checked(proposal["trait"].name, proposal["value"])

    def _checked(self, name: str, value: Any) -> Any:
        if name == "run":
            if value not in RUNS:
                raise InputError(f"run is {value!r}, expected one of {RUNS}.")
            return value
        low, high = self._limits.get(name, (-1, 2**31))
        whole = hasattr(value, "__index__") and not isinstance(value, bool)
        if not whole or not low <= value < high:
            limit = f" to {high - 1}" if high < 2**31 else ", or -1 for none"
            raise InputError(f"{name} is {value!r}, expected a number from {max(low, 0)}{limit}.")
        return int(value)

    def set(self, **places: object) -> None:
        """Change several at once; observers hear of each that differs.

        Raises:
            InputError: no such place, or a value that it cannot have; nothing changes.
        """
        for name in places:
            if name not in self.trait_names():
                raise InputError(f"a selection has no {name!r}; it has {self.trait_names()}.")
        checked = {name: self._checked(name, value) for name, value in places.items()}
        with self.hold_trait_notifications():
            for name, value in checked.items():
                setattr(self, name, value)
