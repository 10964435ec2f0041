"""A decoder under observation: interventions and a recorder attached for one step at a time."""

from collections.abc import Iterable, Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

from bloomlab.errors import InputError
from bloomlab.model.decode import Decoder


def check_interventions(model: Any, interventions: Any) -> list[Any]:
    """The interventions as a list, each known to be one.

    Raises:
        InputError: something that is neither a pair nor has `hooks` and `enters_cache`.
        UnknownNameError: a pair with a hook name that the model lacks.
    """
    if isinstance(interventions, tuple) and len(interventions) == 2 and callable(interventions[1]):
        interventions = [interventions]  # a lone pair
    several = isinstance(interventions, Iterable) and not hasattr(interventions, "hooks")
    checked = list(interventions) if several else [interventions]
    for one in checked:
        if hasattr(one, "hooks") and hasattr(one, "enters_cache"):
            continue
        if not isinstance(one, tuple | list) or len(one) != 2 or not callable(one[1]):
            raise InputError(
                f"an intervention is {one!r}, expected a pair of hook name and function, or an "
                "object with hooks(start, step) and enters_cache."
            )
        model.picked(one[0])
    return checked


class Instrumented:
    """Advances a decoder with the hooks of each step in force, and only then.

    Args:
        decoder: what is advanced.
        interventions: pairs, or objects with `hooks(start, step)` and `enters_cache`.
        recorder: keeps what each step leaves behind, or None.
    """

    def __init__(self, decoder: Decoder, *, interventions: Sequence[Any], recorder: Any) -> None:
        self.decoder, self.recorder = decoder, recorder
        self.interventions, self.step = interventions, 0

    def edits(self, step: int) -> list[Any]:
        """Pairs in force at a step."""
        return [pair for pair, _ in self._in_force(step)]

    def advance(self, ids: Int[Tensor, "batch new"]) -> Float[Tensor, "batch vocab"]:
        """As `Decoder.advance`. What shall not enter the cache costs a second forward."""
        decoder, recorder, in_force = self.decoder, self.recorder, self._in_force(self.step)
        edits = [pair for pair, _ in in_force]
        staying = [pair for pair, stays in in_force if stays]
        apart = decoder.cache is not None and len(staying) < len(edits)
        seen = [] if recorder is None else recorder.hooks(edited=[name for name, _ in edits])
        with decoder.model.hooks(fwd_hooks=[*edits, *seen]):
            logits = (decoder.fork() if apart else decoder).advance(ids)
        if apart:
            seen = [] if recorder is None else recorder.cache_hooks()
            with decoder.model.hooks(fwd_hooks=[*staying, *seen]):
                decoder.advance(ids)
        if recorder is not None:
            recorder.add(ids, decoder.mask)
        self.step += 1
        return logits

    def _in_force(self, step: int) -> list[tuple[Any, bool]]:
        """Pairs in force at a step, and whether what they do may enter the cache."""
        start = 0 if self.decoder.cache is None else self.decoder.length
        found: list[tuple[Any, bool]] = []
        for one in self.interventions:
            scheduled = hasattr(one, "hooks")
            pairs = one.hooks(start, step) if scheduled else [tuple(one)]
            found += [(pair, not scheduled or one.enters_cache) for pair in pairs]
        return found
