"""What all views of a session point at."""

import traitlets

from bloomlab.errors import InputError


class Selection(traitlets.HasTraits):
    """Layer, head, query, key, step and run that are looked at; -1 where nothing is chosen.

    Attributes:
        layer: from 0.
        head: from 0.
        query: column of the token that attends.
        key: column of the token that is attended to.
        step: of a generation.
        run: "edited" or "clean".
    """

    layer = traitlets.Int(0)
    head = traitlets.Int(0)
    query = traitlets.Int(-1)
    key = traitlets.Int(-1)
    step = traitlets.Int(-1)
    run = traitlets.Enum(("edited", "clean"), "edited")

    def set(self, **places: object) -> None:
        """Change several at once; observers hear of each that differs.

        Raises:
            InputError: no such place; nothing changes.
        """
        for name in places:
            if name not in self.trait_names():
                raise InputError(f"a selection has no {name!r}; it has {self.trait_names()}.")
        with self.hold_trait_notifications():
            for name, value in places.items():
                setattr(self, name, value)
