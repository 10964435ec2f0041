"""Clean texts and corrupted ones, token beside token."""

from typing import Any

from bloomlab.errors import InputError, ShapeError
from bloomlab.experiments.dataset import Dataset, dataset


def aligned(model: Any, clean: Any, corrupted: Any) -> tuple[Dataset, Dataset]:
    """Both as datasets of one shape and one padding.

    Args:
        model: decides the device and, for text, the tokenizer.
        clean: texts, ids [batch pos] or a mapping with `attention_mask`.
        corrupted: as many, each as long as its clean one.

    Raises:
        InputError: a corrupted text that is longer or shorter than its clean one, or padded
            elsewhere; names the example.
        ShapeError: another number of examples.
    """
    ours, theirs = dataset(model, clean), dataset(model, corrupted)
    if len(ours) != len(theirs):
        raise ShapeError(
            "corrupted", got=theirs.tokens.shape, expected=f"[{len(ours)} pos], as the clean texts"
        )
    lengths = ours.attended.sum(-1), theirs.attended.sum(-1)
    for example, (n_clean, n_corrupted) in enumerate(zip(*map(list, lengths), strict=True)):
        if n_clean != n_corrupted:
            raise InputError(
                f"example {example} has {int(n_clean)} tokens clean and {int(n_corrupted)} "
                "corrupted: values are patched token by token. Choose words that are as many "
                "tokens (model.to_str_tokens shows them)."
            )
    if ours.tokens.shape != theirs.tokens.shape or bool((ours.attended != theirs.attended).any()):
        raise InputError(
            "the corrupted texts are padded at other columns than the clean ones: pad both alike."
        )
    return ours, theirs
