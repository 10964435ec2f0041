"""What fine-tuning with transformers' Trainer starts from: a task model, and examples for it.

Examples are dicts of plain lists, which transformers' data collators pad.
"""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from bloomlab.analysis.probes import resampled_interval
from bloomlab.errors import InputError, UnknownNameError
from bloomlab.experiments.probe_labels import NO_LABEL, label_examples
from bloomlab.experiments.treebanks import Words

PIECES = ("first", "last")
TASK_HEADS = ("score.", "classifier.", "qa_outputs.")
UNEMBEDDING = "unembed."


def with_task_head(
    model: Any, kind: Any, labels: Sequence[str] | None = None, *, seed: int = 0
) -> Any:
    """A task model with a copy of a model's weights below a new head, evaluating.

    The same as saving a model without this head and `kind.from_pretrained(folder, id2label=...)`,
    but without files. Edited ALiBi slopes come along too. A task head is always new, drawn from
    N(0, initializer_range), even where the model has one of the same class; an unembedding is
    the model's, or new where it has none.

    Args:
        model: a BLOOM of any class, whole or pruned.
        kind: the class, such as bloomlab.BloomForTokenClassification.
        labels: names of the classes, in order; None for a head without classes.
        seed: of the new head.

    Raises:
        InputError: labels that are not all different, or none in a list; a model whose weights
            are not those that its config tells of.
    """
    config = copy.deepcopy(model.config)
    if labels is not None:
        names = list(labels)
        if not names or len(set(names)) < len(names):
            raise InputError(f"labels is {names!r:.80}, expected different names, at least one.")
        config.id2label = dict(enumerate(names))
        config.label2id = {name: i for i, name in enumerate(names)}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        task = kind(config)
    task = task.to(device=model.device, dtype=model.dtype)
    task.load_state_dict(_body(model, task), strict=False)
    for new, old in zip(task.blocks, model.blocks, strict=True):
        new.attn.slopes = old.attn.slopes.detach().clone()
    task.tokenizer = model.tokenizer
    return task.eval()


def _body(model: Any, task: Any) -> dict[str, torch.Tensor]:
    """The model's weights that a task model has too, without task heads.

    Raises:
        InputError: one of another shape than the config says, or none.
    """
    theirs, found = model.state_dict(), {}
    for name, value in task.state_dict().items():
        if name.startswith(TASK_HEADS) or (name.startswith(UNEMBEDDING) and name not in theirs):
            continue
        if name not in theirs:
            raise InputError(
                f"the model lacks the weight {name}, which its config tells of. Was the config "
                "edited?"
            )
        if theirs[name].shape != value.shape:
            raise InputError(
                f"{name} is {tuple(theirs[name].shape)}, expected {tuple(value.shape)}, as the "
                "model's config says. Was the config edited?"
            )
        found[name] = theirs[name]
    return found


def text_examples(
    tokenizer: Any, texts: Sequence[str], *, labels: Sequence[str], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Texts for sequence classification: input_ids, attention_mask, labels (a number).

    Args:
        tokenizer: the model's.
        texts: of any lengths.
        labels: the class of each text.
        classes: names of all, in the order of their numbers.

    Raises:
        InputError: another number of labels than of texts.
        UnknownNameError: a label that is none of the classes.
    """
    if len(texts) != len(labels):
        raise InputError(f"there are {len(texts)} texts and {len(labels)} labels.")
    number = {name: i for i, name in enumerate(classes)}
    for label in labels:
        if label not in number:
            raise UnknownNameError("label", label, classes)
    encoded = tokenizer(list(texts))
    rows = zip(encoded["input_ids"], encoded["attention_mask"], labels, strict=True)
    return [
        {"input_ids": ids, "attention_mask": mask, "labels": number[label]}
        for ids, mask, label in rows
    ]


def word_examples(
    model: Any, words: Words, classes: Sequence[str], *, piece: str = "last"
) -> list[dict[str, Any]]:
    """Words for token classification: input_ids, attention_mask, labels (a number a token).

    One token of each word has its label, and every other -100, which a loss leaves out: the last
    one by default, because in a causal model only that one has read the whole word. Where words
    are so short that two have the same token, the later one's label counts.

    Args:
        model: a BLOOM with its tokenizer.
        words: such as `tasks.part_of_speech("en")`.
        classes: names of the labels; words with others have none.
        piece: "first" or "last" token of each word.

    Raises:
        UnknownNameError: another piece.
        InputError: no word with one of the labels.
    """
    if piece not in PIECES:
        raise UnknownNameError("piece of a word", piece, PIECES)
    known = [[name if name in classes else None for name in some] for some in words.labels]
    if not any(name is not None for some in known for name in some):
        raise InputError(f"no word has one of the labels {list(classes)!r:.80}.")
    given = label_examples(model, words.texts, known, spans=words.spans, fitting=False)
    number = torch.tensor([list(classes).index(name) for name in given.classes])
    tokens, attended = given.data.tokens.cpu(), given.data.attended.cpu()
    labels = torch.full_like(tokens, NO_LABEL)
    column = given.spans.last if piece == "last" else given.spans.first
    labels[given.spans.text, column] = number[given.labels]
    return [
        {
            "input_ids": ids[on].tolist(),
            "attention_mask": [1] * int(on.sum()),
            "labels": numbers[on].tolist(),
        }
        for ids, numbers, on in zip(tokens, labels, attended, strict=True)
    ]


def label_scores(prediction: Any) -> dict[str, float]:
    """Share of the labels that are right, for Trainer's `compute_metrics`; of texts or tokens.

    accuracy; low and high, its 95% interval of the bootstrap over texts; majority, the share of the
    commonest label among them.

    Args:
        prediction: predictions (logits [batch *pos class]) and label_ids ([batch *pos], -100 for
            none), as Trainer gives them.

    Raises:
        InputError: no label.
    """
    labels = torch.as_tensor(np.asarray(prediction.label_ids))
    said = torch.as_tensor(np.asarray(prediction.predictions)).argmax(-1)
    counts = labels != NO_LABEL
    if not bool(counts.any()):
        raise InputError(f"all {labels.numel()} labels are {NO_LABEL}: there is nothing to score.")
    each = torch.stack([(said == labels) & counts, counts], -1).double()
    sums = each if labels.ndim == 1 else each.sum(1)  # of each text: right, all
    low, high = resampled_interval(sums, lambda some: some[:, 0] / some[:, 1])
    right, n = sums.sum(0).tolist()
    common = int(torch.bincount(labels[counts]).max())
    return {"accuracy": right / n, "low": low, "high": high, "majority": common / n}
