"""Probes of parts of speech in eight languages at every layer, and one against scikit-learn.

python -m tests.bench.bench_probing --source FOLDER    the treebanks ??_pud-ud-test.conllu
"""

import time
import warnings
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from sklearn.linear_model import LogisticRegression

import bloomlab as bl
from bloomlab.analysis.linear_probe import STRENGTHS, ProbeFitter
from bloomlab.bench.table import LEGEND, heading, line
from bloomlab.bench.timing import Row, interleaved
from bloomlab.experiments import probe
from bloomlab.experiments.activations import collect
from bloomlab.experiments.probe_labels import label_examples, without_rare
from bloomlab.experiments.tasks import part_of_speech

LANGUAGES = ("ar", "en", "es", "fr", "hi", "id", "pt", "zh")
LIMIT = 300.0  # seconds
SHOWN = ["accuracy", "low", "high", "majority", "embedding", "random", "control_accuracy"]
SHOWN += ["selectivity", "selectivity_low", "selectivity_high"]


def all_languages(model, source):
    """Seconds for all, and the best layer of each language."""
    start, best = time.perf_counter(), []
    for language in LANGUAGES:
        words = part_of_speech(language, source)
        frame = probe(model, words.texts, without_rare(words.labels), spans=words.spans).frame
        best.append(frame.loc[[frame.accuracy.idxmax()]].assign(language=language))
    return time.perf_counter() - start, pd.concat(best)[["language", "layer", *SHOWN]]


def against_scikit_learn(model, source, seconds):
    """One layer's probe of English words, four strengths, on the same features."""
    words = part_of_speech("en", source)
    given = label_examples(model, words.texts, without_rare(words.labels), spans=words.spans)
    name = f"blocks.{model.config.n_layer // 2}.hook_resid_post"
    values, n_class = collect(model, given.data, name, spans=given.spans)[name], len(given.classes)
    cut = len(values) * 4 // 5
    seen, labels = values[:cut], given.labels[:cut]
    fitter = ProbeFitter(seen, values[cut:], kind="linear")  # for its scaling alone
    scaled = ((seen - fitter.mean.float()) / fitter.scale.float()).numpy()

    def ours():
        fitted = ProbeFitter(seen, values[cut:])
        return list(fitted.problem.fit(labels, n_class, STRENGTHS["logistic"]))

    def theirs():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [
                LogisticRegression(C=c, max_iter=500).fit(scaled, labels.numpy())
                for c in STRENGTHS["logistic"]
            ]

    tested = (values[cut:] - fitter.mean.float()) / fitter.scale.float()
    off = [
        abs(float(((tested @ w.T.float() + b).argmax(-1) == given.labels[cut:]).double().mean())
            - other.score(tested.numpy(), given.labels[cut:].numpy()))
        for (w, b), other in zip(ours(), theirs(), strict=True)
    ]  # fmt: skip
    mine, slow = interleaved([ours, theirs], seconds=seconds, least=2)
    case = f"{cut} words, 4 strengths, {n_class} classes"
    note = f"accuracies differ by {max(off):.4f} at most"
    return Row(case=case, peer="scikit-learn", ours=mine, theirs=slow, note=note)


def main(
    source: Annotated[Path | None, typer.Option(help="Whole treebanks; else excerpts.")] = None,
    seconds: Annotated[float, typer.Option(help="Measuring time of the comparison.")] = 60.0,
    markdown: bool = False,
) -> None:
    """Print a table, then the best layer of each language."""
    model = bl.load("demo", device="cpu")
    print(f"{LEGEND}\n\n{heading(markdown=markdown)}", flush=True)
    with torch.no_grad():
        print(line(against_scikit_learn(model, source, seconds), markdown=markdown), flush=True)
    took, best = all_languages(model, source)
    row = Row(case="POS, 8 languages", peer="its limit", ours=(took,), theirs=(LIMIT,))
    print(line(row, markdown=markdown), flush=True)
    print(best.round(3).to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
