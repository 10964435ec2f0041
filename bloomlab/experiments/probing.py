"""Linear probes at any site, all layers and heads, with the baselines that give them meaning.

Alain and Bengio (2017, arXiv:1610.01644); Hewitt and Liang (2019, arXiv:1909.03368); Voita and
Titov (2020, arXiv:2003.12298).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm

from bloomlab.analysis.linear_probe import STRENGTHS, LinearProbe, ProbeFitter, check_kind
from bloomlab.analysis.probes import OnlineCode, control_labels, online_code
from bloomlab.errors import InputError
from bloomlab.experiments.activations import Activations, collect
from bloomlab.experiments.probe_labels import Labelled, label_examples
from bloomlab.experiments.probe_scores import Tested
from bloomlab.experiments.probes import Fitted, Probes
from bloomlab.experiments.sites import Point, find_points

EMBEDDING = "hook_embed"
PARTS = ("train", "dev", "test")


def probe(
    model: Any,
    texts: Any,
    labels: Any,
    *,
    sites: Any = "resid_post",
    kind: Any = "logistic",
    spans: Any = None,
    attention_mask: Any = None,
    pool: str = "last",
    split: Sequence[int | float] = (0.7, 0.1, 0.2),
    strengths: Sequence[int | float] | None = None,
    code: bool = False,
    seed: int = 0,
    folder: str | Path | None = None,
    rows: int | None = None,
    progress: bool = True,
) -> Probes:
    """Probes fitted at each layer (and head) of sites, tested on texts they never saw.

    Features are standardised on the train texts; the strength is the one with the highest accuracy
    on the dev texts. Always beside: the majority class, a probe on the token embeddings, probes at
    the same places of a model with random weights (same configuration, drawn by `seed`), and
    probes on control labels, which depend on the token or word alone.

    Args:
        model: a BLOOM of any class, whole or pruned.
        texts: texts, ids [batch pos] or a dict with `attention_mask`.
        labels: one a text, a token or a span; see `label_examples`.
        sites: names of sites or hooks, such as "resid_post", "z" (each head), "mlp_post"; several
            as a list.
        kind: "logistic", "ridge" (one-hot targets, largest wins), "linear" (without penalty), or a
            linear classifier of scikit-learn, such as LinearSVC(); it is cloned for each place.
        spans: for each text (start, stop) characters of what has a label, or its words in order.
        attention_mask: [batch pos], 0 for padding.
        pool: the vector of several tokens: of the "last", of the "first", or their "mean".
        split: shares of the texts for train, dev and test; the same for as many texts and seed.
        strengths: C (logistic) or alpha (ridge) to choose from, from strong to weak; None: four
            powers of ten.
        code: also the online code length of the train labels, by logistic probes of the chosen
            strength; takes about twice as long.
        seed: of split, control labels, random weights and the order of the code.
        folder: where activations are kept if they do not fit into memory, a folder for each
            model; a killed run goes on. See `collect`.
        rows: texts in a forward; None: by free memory.
        progress: show a bar while it takes long.

    Returns:
        `Probes`; its `frame` has a row a probe, and `read` and `direction` use them.

    Raises:
        InputError: labels that do not match the texts (names the text), classes with one example,
            shares of a split without a train or test text, or without a dev text if there are
            several strengths; a code without probabilities.
        UnknownNameError: no such site, kind or pooling.
        ResultsError: the folder is of another study.
    """
    check_kind(kind, strengths)
    if code and kind != "logistic":
        raise InputError(f"a code needs probabilities, which {kind!r} lacks: kind='logistic'.")
    points = find_points(model, sites)
    given = label_examples(model, texts, labels, spans=spans, attention_mask=attention_mask)
    parts = split_texts(torch.unique(given.spans.text), split, seed=seed)
    n_strength = 1 if not isinstance(kind, str) else len(strengths or STRENGTHS[kind])
    if n_strength > 1 and not len(parts["dev"]):
        raise InputError(
            f"there are {n_strength} strengths and no dev text to choose one on. Give more texts, "
            "a larger share for dev, or one strength."
        )
    task = _Task.of(given, parts, kind=kind, strengths=strengths, seed=seed)

    def seen(one: Any, place: str) -> Activations:
        names = dict.fromkeys([EMBEDDING, *(point.name for point in points)])
        where = None if folder is None else Path(folder).expanduser() / place
        return collect(
            one,
            given.data,
            list(names),
            spans=given.spans,
            pool=pool,
            folder=where,
            rows=rows,
            progress=progress,
        )

    there, blank = seen(model, "model"), seen(random_twin(model, seed=seed), "random")
    embedding = task.fit(there[EMBEDDING], task.labels)
    fitted = {}
    for point in tqdm(points, desc="probes", unit="site", delay=2, disable=not progress):
        pairs = zip(_by_head(model, point, there), _by_head(model, point, blank), strict=True)
        for (head, values), (_, without) in pairs:
            fitted[point.site, point.layer, head] = task.fitted(values, without, code=code)
    return Probes(
        classes=given.classes,
        points=points,
        fitted=fitted,
        tested=task.tested(embedding[1]),
        split=parts,
        unit=given.unit,
        kind=kind if isinstance(kind, str) else repr(kind),
        pool=pool,
    )


def split_texts(
    texts: Int[Tensor, " text"], shares: Sequence[int | float] = (0.7, 0.1, 0.2), *, seed: int = 0
) -> dict[str, Int[Tensor, " _"]]:
    """Texts drawn into "train", "dev" and "test", each in rising order.

    Raises:
        InputError: shares that are not three numbers of sum one, or no text to train or test on.
    """
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"split is {tuple(shares)}, expected three shares that sum to 1.")
    n = len(texts)
    order = texts[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    n_dev, n_test = round(n * shares[1]), round(n * shares[2])
    if n_test < 1 or n - n_dev - n_test < 1:
        raise InputError(
            f"{n} texts split by {tuple(shares)} leave {n - n_dev - n_test} to train and {n_test} "
            "to test on; expected one of each at least. Give more texts or other shares."
        )
    cut = order.split([n - n_dev - n_test, n_dev, n_test])
    return {name: part.sort().values for name, part in zip(PARTS, cut, strict=True)}


def random_twin(model: Any, *, seed: int = 0) -> Any:
    """A model of the same class and configuration with freshly drawn weights, evaluating."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        twin = type(model)(model.config)
    return twin.to(device=model.device, dtype=model.dtype).eval()


@dataclass(frozen=True, kw_only=True)
class _Task:
    """The labels of a study, and which examples they are fitted, chosen and tested on."""

    labels: Int[Tensor, " example"]
    control: Int[Tensor, " example"] | None
    text: Int[Tensor, " example"]
    part: dict[str, Bool[Tensor, " example"]]
    n_class: int
    kind: Any
    strengths: Sequence[int | float] | None
    seed: int

    @classmethod
    def of(
        cls,
        given: Labelled,
        parts: dict[str, Int[Tensor, " _"]],
        *,
        kind: Any,
        strengths: Sequence[int | float] | None,
        seed: int,
    ) -> "_Task":
        """Of labels and a split of their texts."""
        drawn = control_labels(given.types, given.labels, seed=seed)
        return cls(
            labels=given.labels,
            control=None if given.unit == "text" else drawn,  # no text comes twice
            text=given.spans.text,
            part={name: torch.isin(given.spans.text, texts) for name, texts in parts.items()},
            n_class=len(given.classes),
            kind=kind,
            strengths=strengths,
            seed=seed,
        )

    def fit(self, values: Tensor, *labels: Tensor) -> tuple[Any, ...]:
        """For each set of labels a probe and, after all these, what they predict."""
        train, dev, test = (values[self.part[name]] for name in PARTS)
        fitter = ProbeFitter(train, dev, kind=self.kind, strengths=self.strengths)
        sets = [(some[self.part["train"]], some[self.part["dev"]]) for some in labels]
        probes = fitter.fit_each(sets, self.n_class)
        return *probes, *(one.logits(test).argmax(-1) for one in probes)

    def fitted(self, values: Tensor, without: Tensor, *, code: bool) -> Fitted:
        """The probe at a place, and its baselines."""
        control = None
        if self.control is None:
            one, predicted = self.fit(values, self.labels)
        else:
            one, _, predicted, control = self.fit(values, self.labels, self.control)
        return Fitted(
            probe=one,
            predicted=predicted,
            control=control,
            random=self.fit(without, self.labels)[1],
            code=self._code(values, one) if code else None,
        )

    def tested(self, embedding: Tensor) -> Tested:
        """What the probes are tested against."""
        test = self.part["test"]
        labels = self.labels[test]
        common = torch.bincount(self.labels[self.part["train"]]).argmax()
        return Tested(
            labels=labels,
            control=None if self.control is None else self.control[test],
            text=torch.unique(self.text[test], return_inverse=True)[1],
            n_class=self.n_class,
            majority=float((labels == common).double().mean()),
            embedding=float((embedding == labels).double().mean()),
        )

    def _code(self, values: Tensor, chosen: LinearProbe) -> OnlineCode:
        """Of the train examples, text by text in a drawn order."""
        train = self.part["train"].nonzero()[:, 0]
        _, text = torch.unique(self.text[train], return_inverse=True)
        source = torch.Generator().manual_seed(self.seed)
        place = torch.randperm(int(text.max()) + 1, generator=source)[text]
        train = train[place.argsort(stable=True)]

        def coder(features: Tensor, labels: Tensor, after: Tensor) -> Tensor:
            fitter = ProbeFitter(
                features, features[:0], kind=self.kind, strengths=[chosen.strength]
            )
            one = fitter.fit(labels, labels[:0], self.n_class)
            return one.logits(after).log_softmax(-1) / torch.log(torch.tensor(2.0))

        return online_code(values[train], self.labels[train], self.n_class, coder)


def _by_head(model: Any, point: Point, seen: Activations) -> Iterator[tuple[int | None, Tensor]]:
    """The features at a point; for a point of heads, of each with its number."""
    values = seen[point.name]
    if not point.by_head or point.layer is None:
        yield None, values.flatten(1)
        return
    for index, head in enumerate(model.blocks[point.layer].attn.heads):
        yield head, values[:, index]
