"""Ready tasks: data with labels, from excerpts in the package or the whole sets in a folder."""

from bloomlab.experiments.answer_spans import marked_answers, score_answers
from bloomlab.experiments.choices import Choices, causal_choices, score_choices
from bloomlab.experiments.minimal_pairs import (
    Pairs,
    minimal_pairs,
    score_pairs,
    sentence_log_probs,
)
from bloomlab.experiments.question_answering import Questions, question_answering
from bloomlab.experiments.treebanks import (
    Texts,
    Words,
    dependency_relations,
    language_identification,
    part_of_speech,
)
from bloomlab.experiments.word_pairs import WordPairs, word_pairs

__all__ = [
    "Choices",
    "Pairs",
    "Questions",
    "Texts",
    "WordPairs",
    "Words",
    "causal_choices",
    "dependency_relations",
    "language_identification",
    "marked_answers",
    "minimal_pairs",
    "part_of_speech",
    "question_answering",
    "score_answers",
    "score_choices",
    "score_pairs",
    "sentence_log_probs",
    "word_pairs",
]
