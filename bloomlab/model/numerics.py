"""Where NaN or infinity first appears in a forward."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from bloomlab.errors import NumericalError
from bloomlab.model.decode import Decoder

POINTS = ("hook_attn_out", "hook_mlp_out", "hook_resid_post")


def numerical_error(
    decoder: Decoder, ids: Tensor, *, hooks: Sequence[Any] = (), step: int
) -> NumericalError:
    """The error to raise for logits that came out broken; runs their forward once more to see why.

    Args:
        decoder: as it was before the broken forward; its cache is left alone.
        ids: what that forward read [batch new].
        hooks: (name, function) pairs that were attached.
        step: number of the step.
    """
    model = decoder.model
    names = ["hook_embed"]
    names += [f"blocks.{layer}.{point}" for layer in range(len(model.blocks)) for point in POINTS]
    found: list[str] = []

    def look(value: Tensor, hook: Any) -> None:
        if not found and not bool(value.isfinite().all()):
            found.append(f"{hook.name} ({'NaN' if bool(value.isnan().any()) else 'infinite'})")

    look.only_reads = True  # pyright: ignore[reportFunctionMemberAccess]  # functions have it
    with model.hooks(fwd_hooks=[*hooks, *((name, look) for name in names)]):
        logits = decoder.fork().advance(ids)
    rows = (~logits.isfinite().all(-1)).nonzero()[:, 0].tolist()
    if not found and not rows:
        return NumericalError(
            f"step {step}: the model's logits are finite, but no token is left to choose: the "
            "logits processors made every score -inf, or some NaN. Check logits_processor, "
            "min_new_tokens and no_repeat_ngram_size."
        )
    where = found[0] if found else "the logits themselves"
    return NumericalError(
        f"step {step}: the logits of row {', '.join(map(str, rows))} are NaN or infinite. It first "
        f"appears at {where}; the model computes in {str(model.dtype).removeprefix('torch.')}. "
        "Check hooks and interventions up to there; float16 overflows above 65504: load with "
        "dtype=torch.bfloat16 or torch.float32; else the weights themselves may be broken."
    )
