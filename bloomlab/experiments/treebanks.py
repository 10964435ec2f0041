"""Treebanks of Universal Dependencies: words with their part of speech, relation and head.

Parallel treebanks (PUD; Zeman et al., 2017, K17-3001) hold the same sentences in each language, so
that a probe that was fitted in one can be tested in another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bloomlab.errors import UnknownNameError
from bloomlab.experiments.conllu import Sentence, read_conllu
from bloomlab.experiments.task_files import Source, find_file, find_files

PART = "ud_pud"
PATTERN = r"([a-z]{2,3})_.*\.conllu"  # en_pud-ud-test.conllu


@dataclass(frozen=True, kw_only=True, slots=True)
class Words:
    """Sentences whose words have labels.

    `probe(model, words.texts, words.labels, spans=words.spans)` takes them.

    Attributes:
        language: its code, such as "en".
        ids: of the sentences; those of parallel treebanks are equal.
        texts: the sentences.
        spans: for each text (start, stop) characters of each word. Words that are fused into one
            whose letters are not theirs (French "du": "de", "le") all have the span of that one.
        labels: for each text the label of each word; None for fused words, which have no place of
            their own, and for words without one.
        heads: for each text the number of each word's head among the words, -1 for the root; see
            `analysis.structural.tree_distances`.
    """

    language: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    spans: tuple[tuple[tuple[int, int], ...], ...]
    labels: tuple[tuple[str | None, ...], ...]
    heads: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Texts that have a label each.

    Attributes:
        ids: of the texts; translations of each other have the same.
        texts: the texts.
        labels: one a text.
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)


def part_of_speech(language: str = "en", source: Source = None) -> Words:
    """Words with their universal part of speech ("NOUN", "VERB" ..., 17 at most).

    Args:
        language: code with which the file's name begins: "en" of en_pud-ud-test.conllu.
        source: a folder of CoNLL-U files or one file; None: 50 sentences in each of ar, en, es,
            fr, hi, id, pt, zh, which the package has.

    Raises:
        InputError: no such folder or file, or a bad one; names file and line.
        UnknownNameError: no treebank of the language.
    """
    sentences = _sentences(language, source)
    return _words(language, sentences, [one.upos for one in sentences])


def dependency_relations(
    language: str = "en", source: Source = None, *, subtypes: bool = False
) -> Words:
    """Words with the relation to their head ("nsubj", "obj", "root" ...).

    Args:
        language: as in `part_of_speech`.
        source: as in `part_of_speech`.
        subtypes: keep what follows a colon ("nmod:poss"), which differs between languages.

    Raises:
        InputError: no such folder or file, or a bad one; names file and line.
        UnknownNameError: no treebank of the language.
    """
    sentences = _sentences(language, source)
    kept = [
        tuple(name if subtypes or name is None else name.split(":")[0] for name in one.relations)
        for one in sentences
    ]
    return _words(language, sentences, kept)


def language_identification(languages: Sequence[str] | None = None, source: Source = None) -> Texts:
    """Sentences with the code of their language, language after language.

    Args:
        languages: codes; None: all that are there.
        source: as in `part_of_speech`.

    Raises:
        InputError: no such folder or file, or a bad one; names file and line.
        UnknownNameError: no treebank of a language.
    """
    files = find_files(source, PART, PATTERN)
    chosen = list(files) if languages is None else list(languages)
    for language in chosen:
        if language not in files:
            raise UnknownNameError("treebank of language", language, files)
    read = {language: read_conllu(files[language]) for language in chosen}
    every = [(one, language) for language, sentences in read.items() for one in sentences]
    return Texts(
        ids=tuple(one.id for one, _ in every),
        texts=tuple(one.text for one, _ in every),
        labels=tuple(language for _, language in every),
    )


def _sentences(language: str, source: Source) -> list[Sentence]:
    return read_conllu(find_file(source, PART, PATTERN, language))


def _words(
    language: str, sentences: list[Sentence], labels: Sequence[tuple[str | None, ...]]
) -> Words:
    shown = [
        tuple(None if fused else name for name, fused in zip(names, one.fused, strict=True))
        for names, one in zip(labels, sentences, strict=True)
    ]
    return Words(
        language=language,
        ids=tuple(one.id for one in sentences),
        texts=tuple(one.text for one in sentences),
        spans=tuple(one.spans for one in sentences),
        labels=tuple(shown),
        heads=tuple(one.heads for one in sentences),
    )
